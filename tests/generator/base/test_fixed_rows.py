"""Groups of fixed rows: which picture lies where, and values to the bit whatever the batch."""

from dataclasses import replace

import pytest
import torch

from tests.tiny import TEXT_DIM, make_generator
from wvq.generator import sampling
from wvq.generator.base import linear
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.fixed_rows import fixed_groups, run_in_fixed_rows
from wvq.generator.base.sampling_settings import FIXED_ROWS, SamplingSettings
from wvq.generator.next_code import sampling as next_code
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.reduced import reduce_weights
from wvq.generator.sampling import sample_codes

BATCHES = (1, 3, 8, 32)
SIZES = {"num_codes": 512, "hidden_size": 128, "num_heads": 2, "intermediate_size": 384, "num_classes": 3}


def test_a_picture_lies_where_its_seed_says():
    assert fixed_groups([3, 4, 5, 6], 4) == [[1, 2, 3, 0]]
    assert fixed_groups([0, 4, 1, 8], 4) == [[0, 2, None, None], [1, None, None, None], [3, None, None, None]]
    assert fixed_groups([7], 1) == [[0]]
    assert fixed_groups([], 4) == []
    for seeds in (range(10, 26), [5, 5, 13, 2]):
        for group in fixed_groups(list(seeds), FIXED_ROWS):
            assert all(number is None or list(seeds)[number] % FIXED_ROWS == row for row, number in enumerate(group))


def test_each_result_is_its_own_pictures():
    shapes = []

    def work(numbers: list[int]) -> torch.Tensor:
        shapes.append(len(numbers))
        return torch.tensor([[10.0 * number] for number in numbers])

    results = run_in_fixed_rows([4, 0, 9, 3, 11], 4, work)
    assert results.flatten().tolist() == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert shapes == [4, 4]


def conditions(count: int, text: bool) -> Condition:
    labels = torch.arange(count) % 3
    if not text:
        return Condition(labels)
    features = torch.randn(count, 5, TEXT_DIM, generator=torch.Generator().manual_seed(7))
    return Condition(labels, features, torch.arange(5)[None] >= torch.arange(count)[:, None] % 6)  # some all masked


def parts(batch: int) -> list[list[int]]:
    """Numbers of pictures in batches: eight of them, or all at once."""
    count = max(batch, 8)
    return [list(range(start, min(start + batch, count))) for start in range(0, count, batch)]


def drawn(model, batch: int, settings: SamplingSettings, text: bool, monkeypatch) -> tuple[torch.Tensor, list]:
    """Codes of eight pictures drawn in batches, and all logits of the first three that codes were drawn from."""
    sampler, draw, group = sampling._SAMPLERS[ImageCodeTransformer], next_code.draw, []
    seen = {seed: [] for seed in (5, 6, 7)}

    def watched_fill(codes, model, condition, seeds, *rest):
        group[:] = seeds
        return sampler.fill(codes, model, condition, seeds, *rest)

    def watched_draw(logits, uniform, used):
        for seed, rows in seen.items():
            places = [row for row, other in enumerate(group) if other == seed]  # several if it fills rows
            if places:
                row = seed % FIXED_ROWS
                rows.append(logits[row if row in places else places[0]].clone())
        return draw(logits, uniform, used)

    with monkeypatch.context() as patch:
        patch.setattr(next_code, "draw", watched_draw)
        patch.setitem(sampling._SAMPLERS, ImageCodeTransformer, replace(sampler, fill=watched_fill))
        given = conditions(32, text)
        codes = [sample_codes(model, given.rows(part), [5 + n for n in part], settings) for part in parts(batch)]
    return torch.cat(codes)[:8], [torch.stack(rows) for rows in seen.values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("scale", "text"),
    [(1.0, {}), (2.0, None), (2.0, {}), (2.0, {"null_text": "features", "text_projection": "mlp"})],
    ids=["text", "guided-class", "guided-text", "guided-features"],
)
@pytest.mark.parametrize("kernels", ["packed", "blas"])  # BLAS rounds by the number of rows
def test_logits_and_codes_are_those_of_any_batch(dtype, scale, text, kernels, monkeypatch):
    if kernels == "blas":
        monkeypatch.setattr(linear, "can_pack", lambda weight: False)
    sizes = SIZES if text is None else SIZES | {"text_dim": TEXT_DIM, "text_length": 5} | text
    model = make_generator(**sizes).to(dtype)
    settings = SamplingSettings(guidance_scale=scale, top_p=0.95, guidance_interval=(0.2, 0.9), deterministic=True)
    codes, logits = drawn(model, 1, settings, text is not None, monkeypatch)
    assert [len(rows) for rows in logits] == [16, 16, 16]
    for batch in BATCHES[1:]:
        others = drawn(model, batch, settings, text is not None, monkeypatch)
        assert torch.equal(others[0], codes), batch
        assert all(torch.equal(a, b) for a, b in zip(others[1], logits, strict=True)), batch


@pytest.mark.parametrize("change", ["window", "fixed", "bf16", "int8", "bias"])
def test_so_are_codes_under_every_way_of_sampling(change):
    model = make_generator(**SIZES, condition_bias=change == "bias")
    if change in ("bf16", "int8"):
        reduce_weights(model, change)
    settings = SamplingSettings(guidance_scale=2.0, window=4 if change == "window" else 0, deterministic=True)
    fixed = torch.full((32, 4, 4), -1)
    if change == "fixed":
        for number in range(9):  # none to all
            fixed[number].flatten()[: 2 * number] = number
    given = conditions(32, False)

    def codes(batch: int) -> torch.Tensor:
        drawn = [sample_codes(model, given.rows(part), part, settings, fixed=fixed[part]) for part in parts(batch)]
        return torch.cat(drawn)[:8]

    alone = codes(1)
    assert alone.unique().numel() > 20
    for batch in BATCHES[1:]:
        assert torch.equal(codes(batch), alone), batch
    assert torch.equal(torch.where(fixed[:8] < 0, alone, fixed[:8]), alone)


def test_the_same_distribution_as_without():
    model, given = make_generator(**SIZES), conditions(16, False)
    plain, fixed = (
        sample_codes(model, given, list(range(16)), SamplingSettings(deterministic=on)) for on in (False, True)
    )
    assert (plain == fixed).float().mean() > 0.9  # but for a draw that rounding decides, and what follows it
