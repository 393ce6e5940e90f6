"""The multi-scale quantizer: its arithmetic written out, statistics, training, every method behind it."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig

from tests.tokenizer.quantizers.features import saved_and_read
from tests.tokenizer.quantizers.scales import DIM, SCALES, SIDE, TOKENS, draw, make, seeded
from wvq.errors import DataError
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.quantizers.alignment import gaussian_wasserstein
from wvq.tokenizer.quantizers.multiscale import MultiScaleQuantizer
from wvq.tokenizer.quantizers.nearest import nearest_codes
from wvq.tokenizer.quantizers.registry import QUANTIZERS

NAMES = sorted(QUANTIZERS)
STATEFUL = ("affine", "ema", "online", "wasserstein")


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def same(a, b):
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in pairs)


# ---- arithmetic, written out for one picture (side, side, D) in float64


def area_down(maps, side):
    full, out = len(maps), np.zeros((side, side, maps.shape[-1]))
    for i in range(side):
        for j in range(side):
            rows = slice(i * full // side, math.ceil((i + 1) * full / side))
            columns = slice(j * full // side, math.ceil((j + 1) * full / side))
            out[i, j] = maps[rows, columns].mean((0, 1))
    return out


def cubic(distance, a=-0.75):
    distance = abs(distance)
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


def bicubic_up(maps, full):
    side = len(maps)
    weights = np.zeros((full, side))
    for i in range(full):
        place = (i + 0.5) * side / full - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            weights[i, min(max(j, 0), side - 1)] += cubic(place - j)
    return np.einsum("is,jt,std->ijd", weights, weights, maps)


def convolved(maps, conv):
    weight, bias = conv.weight.detach().double().numpy(), conv.bias.detach().double().numpy()
    padded, out = np.pad(maps, ((1, 1), (1, 1), (0, 0))), np.zeros_like(maps)
    for i in range(len(maps)):
        for j in range(len(maps)):
            out[i, j] = np.einsum("oiyx,yxi->o", weight, padded[i : i + 3, j : j + 3]) + bias
    return out


def written_out(quantizer, features, ratio):
    """Codes and f_hat after each scale, from the published algorithm."""
    book = quantizer.book.codebook.detach().double().numpy()
    places = np.linspace(0, 1, len(SCALES))
    middles = (np.arange(len(quantizer.convs)) + 0.5) / max(len(quantizer.convs), 1)
    rest, reached, codes, partial = features.double().numpy(), 0, [], []
    for place, side in zip(places, SCALES, strict=True):
        tokens = area_down(rest, side)
        chosen = np.square(tokens[:, :, None] - book).sum(-1).argmin(-1)
        maps = bicubic_up(book[chosen], SIDE) if side < SIDE else book[chosen]
        if len(middles):
            conv = quantizer.convs[np.abs(middles - place).argmin()]
            maps = (1 - ratio) * maps + ratio * convolved(maps, conv)
        reached, rest = reached + maps, rest - maps
        codes.append(chosen.reshape(-1))
        partial.append(reached)
    return np.concatenate(codes), partial


@pytest.mark.parametrize(("convs", "ratio"), [(4, 0.5), (2, 0.25), (2, 1.0), (1, 0.5), (0, 0.5)])
def test_equals_the_published_algorithm_written_out(convs, ratio):
    quantizer, features = make(num_scale_convs=convs, scale_conv_ratio=ratio), draw()
    codes, output = quantizer.encode(features), quantizer(features)
    assert len(quantizer.convs) == convs
    partial = quantizer.lookup_scales(codes)
    for index, picture in enumerate(features):
        expected, reached = written_out(quantizer, picture, ratio)
        assert codes[index].tolist() == expected.tolist()
        for maps, wanted in zip(partial, reached, strict=True):
            np.testing.assert_allclose(maps[index].detach(), wanted, atol=1e-5)
        np.testing.assert_allclose(output.quantized[index].detach(), reached[-1], atol=1e-5)


def test_saved_tokenizers_keep_the_table_that_they_were_trained_with(tmp_path):
    scales = [1, 2, 3, 4, 8]  # the third takes another one
    config = {"image_size": 16, "channel_multipliers": [1, 2], "base_channels": 8, "num_codes": 16, "code_dim": 4}
    config["scales"] = scales
    model = WassersteinVQModel(WassersteinVQConfig(**config, quantizer="vanilla", scale_conv_table="even"))
    model.save_pretrained(tmp_path / "new")
    model.save_pretrained(tmp_path / "former")
    file = tmp_path / "former" / "config.json"
    values = json.loads(file.read_text())
    del values["scale_conv_table"]
    file.write_text(json.dumps(values))
    for name in ("new", "former"):
        loaded = WassersteinVQModel.from_pretrained(tmp_path / name)
        assert loaded.config.scale_conv_table == "even"
        assert loaded.quantizer.conv_of_scale == [0, 1, 2, 3, 3]
    assert AutoConfig.from_pretrained(tmp_path / "former").scale_conv_table == "even"
    assert "scale_conv_table" not in loaded.config.identity()  # so that what was made with it is still known
    new = WassersteinVQConfig(**config)
    assert new.scale_conv_table == "var" == new.identity()["scale_conv_table"]
    assert MultiScaleQuantizer(new, model.quantizer.book).conv_of_scale == [0, 1, 2, 2, 3]
    plain = WassersteinVQConfig()
    assert plain.scale_conv_table is None
    assert "scale_conv_table" not in plain.to_dict() | plain.identity()


def test_there_are_at_most_as_many_convolutions_as_scales():
    assert len(make(scales=[1, 5]).convs) == 2
    assert len(make(scales=[5]).convs) == 1


# ---- the interface


def test_shapes_and_types(name):
    quantizer, features = make(name), draw()
    output = quantizer(features)
    assert output.quantized.shape == features.shape
    assert output.codes.shape == (3, TOKENS)
    assert output.codes.dtype == torch.int64
    assert 0 <= output.codes.min() <= output.codes.max() < quantizer.num_codes
    for group in (output.losses, output.statistics):
        assert all(value.shape == () and not value.requires_grad for value in group.values())
    scales = {f"utilization_scale_{side}" for side in SCALES}
    assert set(output.statistics) == {"quantization_error", "utilization", "perplexity"} | scales


def test_encode_and_lookup_repeat_the_forward_pass_to_the_bit(name):
    quantizer, features = make(name), draw()
    output, codes = quantizer(features), quantizer.encode(features)
    assert torch.equal(output.codes, codes)
    assert torch.equal(output.quantized, quantizer.lookup(codes))
    assert torch.equal(quantizer.lookup_scales(codes)[-1], quantizer.lookup(codes))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(features), codes)
        assert torch.equal(quantizer(features).quantized, output.quantized)
        assert torch.equal(quantizer.lookup(codes), output.quantized)


def test_codes_do_not_depend_on_the_batch(name):
    quantizer, features = make(name), draw(9)
    codes = quantizer.encode(features)
    for size in (1, 4):
        assert torch.equal(torch.cat([quantizer.encode(part) for part in features.split(size)]), codes)


def test_the_gradient_passes_straight_through(name):
    quantizer, features, incoming = make(name), draw().requires_grad_(), draw(seed=5)
    quantizer(features).quantized.backward(incoming)
    expected = incoming
    if name == "fsq":  # onto the bounded features
        again = features.detach().requires_grad_()
        (expected,) = torch.autograd.grad(quantizer.prepare(again), again, incoming)
    torch.testing.assert_close(features.grad, expected, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_residuals_are_what_was_quantized(name):
    quantizer, features = make(name), draw()
    codes = quantizer.encode(features)
    tokens = quantizer.residuals(quantizer.prepare(features), codes)
    assert [part.shape for part in tokens] == [(3 * side**2, DIM) for side in SCALES]
    for part, chosen in zip(tokens, codes.split([side**2 for side in SCALES], dim=1), strict=True):
        assert torch.equal(quantizer.book.assign(part), chosen.reshape(-1))


def test_utilization_of_a_batch_is_that_of_all_scales_and_of_each():
    quantizer, features = make(), draw()
    output = quantizer(features)
    for side, part in zip(SCALES, output.codes.split([side**2 for side in SCALES], dim=1), strict=True):
        assert output.statistics[f"utilization_scale_{side}"].item() == pytest.approx(len(part.unique()) / 16)
    assert output.statistics["utilization"].item() == pytest.approx(len(output.codes.unique()) / 16)
    counts = torch.bincount(output.codes.flatten(), minlength=16).double()
    entropy = torch.special.entr(counts / counts.sum()).sum()
    assert output.statistics["perplexity"].item() == pytest.approx(entropy.exp().item(), rel=1e-5)


def test_the_alignment_of_each_scale_is_that_of_its_residuals(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    fine, coarse = torch.randn(300, 3, generator=generator), 5 + torch.randn(40, 3, generator=generator)
    codebook = torch.randn(64, 3, generator=generator)
    quantizer = make(scales=[1, 5], num_codes=64, code_dim=3)
    quantizer.book.codebook.data.copy_(codebook)
    parts = [[coarse[10 * i : 10 * i + 10], fine[75 * i : 75 * i + 75]] for i in range(4)]
    monkeypatch.setattr(quantizer, "residuals", lambda features, codes: parts[int(codes)])
    (streamed,) = quantizer.measurements(torch.device("cpu"))
    for i in range(4):
        streamed.update(torch.zeros(()), torch.tensor(i))
    figures = streamed.compute()
    joined = torch.cat([coarse, fine]).double()
    unit = joined.std(0, correction=0).max()
    expected = []
    for rows in (joined, coarse.double(), fine.double()):
        centred = rows - rows.mean(0)
        moments = rows.mean(0) / unit, centred.T @ centred / len(rows) / unit**2
        expected.append(gaussian_wasserstein(*moments, codebook / unit, normalize=False).item())
    assert [figures["alignment"], *figures["alignment_per_scale"]] == pytest.approx(expected, rel=1e-5)
    whole = gaussian_wasserstein(joined.mean(0), (joined - joined.mean(0)).T.cov(correction=0), codebook).item()
    assert figures["alignment"] == pytest.approx(whole, rel=1e-5)
    assert figures["alignment_per_scale"][0] > 3 * figures["alignment_per_scale"][1] > 0


# ---- training


def train_step(quantizer, seed, features=None, rate=0.1):
    features = draw(seed=seed) if features is None else features
    output = seeded(quantizer, features.clone().requires_grad_(), seed=seed, update_statistics=True)
    quantizer.zero_grad()
    (output.loss + output.quantized.mean()).backward()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            if parameter.requires_grad and parameter.grad.isfinite().all():  # as the training loop skips such a step
                parameter -= rate * parameter.grad
    return output


def test_the_error_falls_in_training(name):
    quantizer, features = make(name), draw(8)
    errors = []
    for seed in range(30):
        output = train_step(quantizer, seed, features)
        assert output.loss.isfinite()
        errors.append(output.statistics["quantization_error"].item())
    assert errors[-1] < 0.9 * errors[0]


def test_the_alignment_uses_more_codes_than_vanilla():
    used = {}
    for name in ("vanilla", "sliced", "wasserstein"):
        quantizer = make(name, spread=False, num_codes=256)
        optimizer = torch.optim.Adam([p for p in quantizer.parameters() if p.requires_grad], lr=0.02)
        for seed in range(60):
            loss = seeded(quantizer, 3 + draw(16, seed=seed), seed=seed, update_statistics=True).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        used[name] = len(quantizer.encode(3 + draw(64, seed=1000)).unique()) / 256
    assert used["sliced"] > 0.5
    assert used["wasserstein"] > 0.5
    assert used["vanilla"] < 0.25


def test_training_resumes_from_the_saved_state(name):
    quantizer, other, fresh = (make(name) for _ in range(3))
    for seed in range(3):
        train_step(quantizer, seed)
    saved = saved_and_read(quantizer)
    for copied in (other, fresh):
        copied.load_state_dict(saved["weights"])
    other.load_training_state(copy.deepcopy(saved["state"]), torch.device("cpu"))
    for seed in range(3, 6):
        assert torch.equal(train_step(other, seed).loss, train_step(quantizer, seed).loss)
        train_step(fresh, seed)
    assert same([other.state_dict(), other.training_state()], [quantizer.state_dict(), quantizer.training_state()])
    assert same(fresh.state_dict(), quantizer.state_dict()) == (name not in STATEFUL)


@pytest.mark.parametrize("good_steps", [0, 2])
def test_a_batch_with_nan_changes_nothing(name, good_steps):
    quantizer, twin = (make(name, window_size=10_000, affine_interval=1) for _ in range(2))
    for seed in range(good_steps):
        train_step(quantizer, seed)
        train_step(twin, seed)
    bad = draw()
    bad[1, 2, 3] = torch.nan
    bad[0, 0, 0] = torch.inf
    train_step(quantizer, 99, bad)
    assert same(quantizer.state_dict(), twin.state_dict())
    for seed in range(10, 12):
        assert torch.equal(train_step(quantizer, seed).loss, train_step(twin, seed).loss)
    assert same(quantizer.state_dict(), twin.state_dict())


# ---- refusals


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_refused(name, value):
    quantizer, features = make(name), draw()
    features[1, 2, 3, -1] = value
    for call in (quantizer, quantizer.encode):
        with pytest.raises(DataError, match=r"^features must be finite"):
            call(features)


@pytest.mark.parametrize(("side", "dim"), [(4, DIM), (SIDE, 3)])
def test_features_of_another_shape_are_refused(side, dim):
    quantizer = make()
    for call in (quantizer, quantizer.encode):
        with pytest.raises(DataError, match=r"features must be \(B, 5, 5, 4\)|features have 3 dims"):
            call(draw(side=side, dim=dim))
        with pytest.raises(DataError, match=r"needs the whole map"):
            call(draw()[0])


def test_the_search_is_the_one_nearest_code_search():
    quantizer, features = make(scales=[SIDE], num_scale_convs=0), draw()
    codes = quantizer.encode(features)
    assert torch.equal(codes.flatten(), nearest_codes(features.reshape(-1, DIM), quantizer.book.codebook))
    assert torch.equal(quantizer.lookup(codes), F.embedding(codes, quantizer.book.codebook).view(features.shape))
