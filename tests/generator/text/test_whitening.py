"""Text projections that start from whitened features, and the condition's bias on every code token."""

import torch

from wvq.generator.base.conditioning import Condition, ConditionEmbedder
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.text.whitening import Moments, whitening


def alike_captions(count: int = 400, dim: int = 12) -> torch.Tensor:
    """Features that share a large mean and differ in directions of very different variance."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -0.8, dim)
    return 3 + torch.randn(count, dim, generator=generator) * spread


def moments_of(rows: torch.Tensor, size: int = 60) -> Moments:
    moments = Moments()
    for part in rows.split(size):
        moments.add(part)
    return moments


def test_moments_of_batches_are_those_of_all_rows_at_once():
    rows = 1e3 + alike_captions(997).double()  # far from 0, where sums of squares would lose half of their digits
    for size in (1, 64, 997):
        moments = moments_of(rows, size)
        assert moments.count == 997
        torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(moments.covariance, torch.cov(rows.T, correction=0), rtol=1e-9, atol=1e-12)


def test_rows_that_are_all_the_same_or_none_leave_the_weight():
    weight = torch.randn(4, 12, dtype=torch.float64)
    for rows in (torch.full((130, 12), 0.1), torch.zeros(0, 12)):
        moments = moments_of(rows)
        assert not moments.spread
        kept, bias = whitening(moments, weight)
        assert torch.equal(kept, weight)
        assert not bias.any()
    assert moments_of(torch.cat([torch.ones(70, 12), torch.zeros(1, 12)])).spread


def test_whitened_rows_have_zero_mean_and_about_unit_variance():
    rows = alike_captions().double()
    weight, bias = whitening(moments_of(rows), torch.eye(12, dtype=torch.float64))
    out = rows @ weight.T + bias
    assert out.mean(0).abs().max() < 1e-9
    variances = torch.linalg.eigvalsh(torch.cov(out.T, correction=0))
    before = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0))
    assert before.max() / before.min() > 20
    assert variances.min() > 0.8
    assert variances.max() <= 1


def test_directions_without_variance_are_not_blown_up():
    rows = alike_captions().double()
    rows[:, 0] = 5.0
    weight, bias = whitening(moments_of(rows), torch.eye(12, dtype=torch.float64))
    moved = rows[:1] + 0.01 * torch.eye(12, dtype=torch.float64)[:1]
    assert ((moved - rows[:1]) @ weight.T).norm() < 1
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()


def text_config(**fields) -> ImageCodeTransformerConfig:
    sizes = {"num_codes": 16, "grid": [2, 2], "hidden_size": 16, "num_layers": 1, "num_heads": 2}
    return ImageCodeTransformerConfig(**sizes, text_dim=12, text_length=3, **fields)


def test_fit_text_separates_captions_that_are_alike():
    torch.manual_seed(0)
    embedder = ConditionEmbedder(text_config(condition_bias=True))
    features = alike_captions(400 * 3).view(400, 3, 12)
    mask = torch.ones(400, 3, dtype=torch.bool)
    mask[::2, 0] = False

    def similarity() -> float:
        bias = embedder(Condition(text_features=features, text_mask=mask), 400).bias[:, 0]
        unit = torch.nn.functional.normalize(bias, dim=1)
        return float((unit @ unit.T).mean().detach())

    before = similarity()
    embedder.fit_text(zip(features.split(64), mask.split(64), strict=True))
    assert before > 0.5
    assert abs(similarity()) < 0.05


def test_bias_reaches_every_code_and_follows_the_condition():
    torch.manual_seed(0)
    model = ImageCodeTransformer(text_config(condition_bias=True, num_classes=2)).eval()
    codes = torch.zeros(1, 4, dtype=torch.int64)
    first, second = (model.condition(Condition(class_labels=torch.tensor([label])), 1).bias for label in (0, 1))
    assert first.shape == (1, 1, 16)
    assert not torch.equal(first, second)
    assert torch.equal(model.embed_codes(codes, first), model.embed_codes(codes) + first)


def test_without_the_option_there_is_no_bias():
    model = ImageCodeTransformer(text_config(num_classes=2))
    assert model.condition(Condition(), 1).bias is None
    assert not any("bias" in name and name.startswith("condition.class") for name, _ in model.named_parameters())


def test_a_missing_text_adds_no_bias():
    torch.manual_seed(0)
    embedder = ConditionEmbedder(text_config(condition_bias=True))
    features = alike_captions(30).view(10, 3, 12)
    mask = torch.ones(10, 3, dtype=torch.bool)
    embedder.fit_text([(features, mask)])
    mask[4] = False
    bias = embedder(Condition(text_features=features, text_mask=mask), 10).bias
    assert torch.equal(bias[4], torch.zeros_like(bias[4]))
    assert bias[5].norm() > 0
