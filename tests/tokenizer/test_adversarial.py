"""Adversarial losses and their signs, a toy that converges, the discriminator's regularisers, the adaptive weight."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wvq.tokenizer import adversarial, recipes
from wvq.tokenizer.adversarial import ADVERSARIAL_LOSSES, LECAM_DECAY, Adversary, combined_gradient, gradient_penalty
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.discriminators import Discriminator
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import DiscriminatorConfig, LossConfig, TokenizerTrainConfig
from wvq.tokenizer.task import TokenizerTask

LOGITS = (-4.0, -1.5, -0.5, 0.0, 0.5, 1.5, 4.0)


def slope(function, value: float) -> float:
    logit = torch.tensor([value], requires_grad=True)
    return torch.autograd.grad(function(logit), logit)[0].item()


def test_recipes_name_the_losses_that_there_are():
    assert tuple(ADVERSARIAL_LOSSES) == recipes.ADVERSARIAL_LOSSES


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_signs_of_the_gradients(name):
    """Descent raises real logits and lowers fake ones in the discriminator, and raises fake ones in the generator."""
    discriminator_loss, generator_loss = ADVERSARIAL_LOSSES[name]
    other = torch.zeros(1)
    for value in LOGITS:
        at_real = slope(lambda logit: discriminator_loss(logit, other), value)
        at_fake = slope(lambda logit: discriminator_loss(other, logit), value)
        if name == "hinge" and value > 1:
            assert at_real == 0
        else:
            assert at_real < 0
        if name == "hinge" and value < -1:
            assert at_fake == 0
        else:
            assert at_fake > 0
        assert slope(generator_loss, value) < 0


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_values_of_the_losses(name):
    discriminator_loss, generator_loss = ADVERSARIAL_LOSSES[name]
    real, fake = torch.tensor([[-2.0, 0.3], [0.9, 3.0]]), torch.tensor([[-3.0, -0.4], [0.2, 1.5]])

    def mean(function, logits):
        return sum(function(value) for value in logits.flatten().tolist()) / logits.numel()

    if name == "hinge":
        expected = mean(lambda x: max(0, 1 - x), real) + mean(lambda x: max(0, 1 + x), fake)
    else:
        expected = mean(lambda x: math.log(1 + math.exp(-x)), real) + mean(lambda x: math.log(1 + math.exp(x)), fake)
    assert discriminator_loss(real, fake).item() == pytest.approx(expected / 2, rel=1e-5)
    if name == "non_saturating":
        expected = mean(lambda x: -math.log(1 / (1 + math.exp(-x))), fake)
    else:
        expected = mean(lambda x: -x, fake)
    assert generator_loss(fake).item() == pytest.approx(expected, rel=1e-5)


def dirac_gan(name: str, penalty: float = 1.0, sign: float = 1.0, steps: int = 300) -> tuple[float, float]:
    """Where alternating descent ends; D(x) = phi x, real data at 0, fake data at theta."""
    discriminator_loss, generator_loss = ADVERSARIAL_LOSSES[name]
    phi, theta = torch.tensor(1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    for _ in range(steps):
        real = torch.zeros(1, 1, requires_grad=True)
        real_logits = phi * real
        loss = discriminator_loss(real_logits, (phi * theta).view(1, 1))
        loss = loss + penalty / 2 * gradient_penalty(real_logits, [real])
        (gradient,) = torch.autograd.grad(loss, phi)
        phi = (phi - 0.2 * gradient).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(sign * generator_loss((phi * theta).view(1, 1)), theta)
        theta = (theta - 0.2 * gradient).detach().requires_grad_()
    return phi.item(), theta.item()


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_the_dirac_gan_converges(name):
    """Mescheder et al. 2018, section 4.1: the penalty makes (0, 0) attract."""
    phi, theta = dirac_gan(name)
    assert abs(phi) < 1e-3
    assert abs(theta) < 1e-3


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
@pytest.mark.parametrize("wrong", [{"sign": -1.0}, {"penalty": 0.0}, {"penalty": -1.0}], ids=str)
def test_the_dirac_gan_needs_the_signs_and_the_penalty(name, wrong):
    phi, theta = dirac_gan(name, **wrong)
    assert math.hypot(phi, theta) > 0.3


def test_penalty_of_a_linear_discriminator():
    torch.manual_seed(0)
    x, weight = torch.randn(5, 3, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    value = gradient_penalty(x @ weight, [x])
    torch.testing.assert_close(value, weight.sum(1).square().sum())
    (gradient,) = torch.autograd.grad(value, weight)
    torch.testing.assert_close(gradient, 2 * weight.sum(1, keepdim=True).expand(3, 2))


def test_penalty_of_a_quadratic_discriminator_over_two_inputs():
    torch.manual_seed(0)
    x, y = torch.randn(5, 3, requires_grad=True), torch.randn(5, 2, 2, requires_grad=True)
    scale = torch.tensor(0.7, requires_grad=True)
    logits = (scale * x.square().sum(1) + 3 * y.flatten(1).sum(1))[:, None]
    value = gradient_penalty(logits, [x, y])
    expected = 4 * scale**2 * x.square().sum(1).mean() + 9 * 4
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, scale)[0], (8 * scale * x.square().sum(1).mean()).detach())


class Linear(Discriminator):
    """Logit = factor x sum of the pixels + bias."""

    def __init__(self, factor: float, bias: float = 0.0):
        super().__init__()
        self.factor, self.bias = nn.Parameter(torch.tensor(factor)), nn.Parameter(torch.tensor(bias))

    def features(self, pictures):
        return [pictures]

    def judge(self, features):
        return self.factor * features[0].flatten(1).sum(1, keepdim=True) + self.bias


def make_adversary(discriminator: Discriminator | None = None, **settings) -> Adversary:
    torch.manual_seed(0)
    adversary = Adversary(DiscriminatorConfig(network="patchgan", base_channels=4, num_layers=2, **settings))
    if discriminator is not None:
        adversary.discriminator = discriminator
    return adversary


def pictures(seed: int, size: int = 16, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_each_term_has_its_weight_and_appears_with_it_only():
    real, fake = pictures(0, 4), pictures(1, 4)
    judge = Linear(0.1, 0.2)
    plain, terms = make_adversary(judge)(real, fake)
    assert set(terms) == {"logits_real", "logits_fake"}
    torch.testing.assert_close(terms["logits_real"], judge(real).mean().detach())
    torch.testing.assert_close(terms["logits_fake"], judge(fake).mean().detach())
    for name in ("lecam", "consistency"):
        loss, terms = make_adversary(judge, **{f"{name}_weight": 0.3})(real, fake)
        assert set(terms) == {"logits_real", "logits_fake", name}
        assert terms[name] > 0
        torch.testing.assert_close(loss, plain + 0.3 * terms[name])


def test_r1_is_added_where_it_is_due_and_counts_for_its_interval():
    real, fake = pictures(0, 4), pictures(1, 4)
    adversary = make_adversary(Linear(0.1, 0.2), r1_weight=0.5, r1_interval=4)
    plain, terms = adversary(real, fake)
    assert "r1" not in terms
    loss, terms = adversary(real, fake, penalize=True)
    torch.testing.assert_close(terms["r1"], torch.tensor(48 * 0.1**2))
    torch.testing.assert_close(loss, plain + 4 * 0.5 / 2 * terms["r1"])
    (gradient,) = torch.autograd.grad(loss - adversary(real, fake)[0], adversary.discriminator.factor)
    torch.testing.assert_close(gradient, torch.tensor(4 * 0.5 / 2 * 2 * 48 * 0.1))


def test_terms_are_detached_and_the_loss_reaches_every_parameter():
    adversary = make_adversary(r1_weight=1.0, lecam_weight=0.1, consistency_weight=1.0)
    loss, terms = adversary(pictures(0), pictures(1), penalize=True)
    assert set(terms) == {"logits_real", "logits_fake", "lecam", "consistency", "r1"}
    assert not any(value.requires_grad for value in terms.values())
    assert all(value.ndim == 0 for value in terms.values())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adversary.parameters())
    assert adversary.real_average.grad_fn is None


def test_lecam_by_hand():
    """Value against the averages before the step; then each average moves by 1 % of the way."""
    real, fake = torch.ones(2, 3, 1, 1), torch.full((2, 3, 1, 1), -2.0)
    adversary = make_adversary(Linear(1 / 3), lecam_weight=1.0)
    _, terms = adversary(real, fake)
    assert terms["lecam"].item() == pytest.approx(1**2 + 2**2)
    averages = [1 - LECAM_DECAY, -2 * (1 - LECAM_DECAY)]
    assert [adversary.real_average.item(), adversary.fake_average.item()] == pytest.approx(averages, rel=1e-4)
    _, terms = adversary(real, fake)
    assert terms["lecam"].item() == pytest.approx((1 - averages[1]) ** 2 + (-2 - averages[0]) ** 2, rel=1e-4)
    assert adversary.real_average.item() == pytest.approx(1 - LECAM_DECAY**2, rel=1e-4)
    assert {"real_average", "fake_average"} <= adversary.state_dict().keys()


def test_lecam_averages_keep_no_trace_of_a_step_that_is_not_finite():
    adversary = make_adversary(Linear(1 / 3), lecam_weight=1.0)
    adversary(torch.ones(2, 3, 1, 1), -torch.ones(2, 3, 1, 1))
    before = adversary.real_average.item(), adversary.fake_average.item()
    real = torch.ones(2, 3, 1, 1)
    real[0, 0] = float("nan")
    loss, _ = adversary(real, torch.full((2, 3, 1, 1), float("inf")))
    assert not loss.isfinite()
    assert (adversary.real_average.item(), adversary.fake_average.item()) == before


def test_consistency_by_hand(monkeypatch):
    """The logits of each side against those of its own augmentation."""
    monkeypatch.setattr(adversarial, "diff_augment", lambda x: 0.5 * x)
    real, fake = torch.full((2, 3, 1, 1), 2.0), torch.full((2, 3, 1, 1), -3.0)
    _, terms = make_adversary(Linear(1 / 3), consistency_weight=1.0)(real, fake)
    assert terms["consistency"].item() == pytest.approx(1**2 + 1.5**2)


def test_consistency_is_0_for_a_constant_and_can_be_learned():
    real, fake = pictures(0, 8), pictures(1, 8)
    _, terms = make_adversary(Linear(0.0, 0.7), consistency_weight=1.0)(real, fake)
    assert terms["consistency"] == 0
    adversary = make_adversary(consistency_weight=1e4)
    values = []
    for _ in range(15):
        torch.manual_seed(1)  # the same augmentation each time
        loss, terms = adversary(real.tile(1, 1, 2, 2), fake.tile(1, 1, 2, 2))
        values.append(terms["consistency"].item())
        gradients = torch.autograd.grad(loss, list(adversary.parameters()))
        with torch.no_grad():
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
            for parameter, gradient in zip(adversary.parameters(), gradients, strict=True):
                parameter -= 0.02 * gradient / norm
    assert values[0] > 0
    assert values[-1] < 0.9 * values[0]


def test_start_and_ramp():
    adversary = make_adversary(weight=0.4, start_images=100, generator_start_images=200, ramp_images=50)
    assert [adversary.trains(n) for n in (0, 99, 100, 1_000)] == [False, False, True, True]
    weights = [adversary.weight(n) for n in (0, 100, 199, 200, 225, 250, 1_000)]
    assert weights == pytest.approx([0, 0, 0, 0, 0.2, 0.4, 0.4])
    at_once = make_adversary(weight=0.4, generator_start_images=200)
    assert [at_once.weight(n) for n in (199, 200)] == [0, 0.4]


def test_descent_on_the_generator_loss_raises_the_logits():
    for name in ADVERSARIAL_LOSSES:
        adversary = make_adversary(loss=name)
        fake = pictures(1).requires_grad_()
        (gradient,) = torch.autograd.grad(adversary.generator_loss(fake), fake)
        before, after = (adversary.discriminator(x).mean() for x in (fake, fake - 0.1 * gradient.sign()))
        assert after > before


@pytest.mark.parametrize("augment", [False, True])
def test_both_sides_see_augmented_pictures_only_if_asked(augment):
    adversary, seen = make_adversary(augment=augment), []
    adversary.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    fake = pictures(1)
    adversary.generator_loss(fake)
    adversary(pictures(0), fake)
    assert [torch.equal(each, fake) for each in seen] == [not augment] * len(seen)
    assert len(seen) == 2


@pytest.mark.parametrize(("dtype", "inside"), [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_autocast(dtype, inside):
    """bfloat16 runs through the discriminator; float16 does not, since its small gradients vanish there."""
    adversary, seen = make_adversary(r1_weight=1.0, lecam_weight=0.1), set()
    adversary.discriminator.layers[0].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    fake = pictures(1)
    exact = adversary.generator_loss(fake)
    seen.clear()
    with torch.autocast("cpu", dtype):
        low = fake.to(dtype).requires_grad_()
        value = adversary.generator_loss(low)
        loss, _ = adversary(pictures(0), fake.to(dtype), penalize=True)
    assert seen == {inside}
    assert value.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.05, atol=0.01)
    (gradient,) = torch.autograd.grad(value, low)
    assert gradient.abs().max() > 0
    loss.backward()
    assert all(p.grad.isfinite().all() for p in adversary.parameters())


def tiny_decoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=4), nn.Conv2d(6, 3, 3))


@pytest.mark.parametrize(
    ("scale", "most", "clamped"), [(1.0, 1e4, False), (1e-3, 1e4, False), (1e-3, 5.0, True), (1.0, None, None)]
)
def test_combined_gradient_is_that_of_the_written_out_loss(scale, most, clamped):
    """Esser et al. 2021, eq. 7: others + weight x |g others| / (|g adversarial| + 1e-4) x adversarial."""
    decoder, adversary, weight = tiny_decoder(), make_adversary(), 0.3
    codes, target = torch.randn(2, 4, 5, 5), pictures(2, 18, 2)
    layer = decoder[-1].weight

    def both(reconstruction):
        return F.mse_loss(reconstruction, target), scale * adversary.generator_loss(reconstruction)

    others, verdict = both(decoder(codes))
    norms = [torch.autograd.grad(x, layer, retain_graph=True)[0].norm() for x in (others, verdict)]
    written_out = norms[0] / (norms[1] + 1e-4)
    ratio = torch.ones(()) if most is None else written_out.clamp(max=most)
    assert clamped is None or (written_out > most) == clamped
    expected = torch.autograd.grad(others + weight * ratio * verdict, list(decoder.parameters()))

    reconstruction = decoder(codes)
    leaf = reconstruction.detach().requires_grad_()
    gradient, found = combined_gradient(reconstruction, *both(leaf), layer, leaf, weight, most)
    torch.testing.assert_close(found, ratio, rtol=1e-4, atol=0)
    ours = torch.autograd.grad(reconstruction, list(decoder.parameters()), gradient)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert not gradient.requires_grad
    assert all(p.grad is None for p in adversary.parameters())


def test_float16_keeps_small_gradients():
    """As with large batches of large pictures; the scaled loss must not meet a gradient that is 0 already."""
    torch.manual_seed(0)
    sizes = {"patch_size": 2, "base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1}
    config = WassersteinVQConfig(image_size=16, num_codes=16, code_dim=4, attention=False, **sizes)
    model, found = WassersteinVQModel(config), []
    for weight in (1.0, 1e-5):
        task = TokenizerTask(
            ReconstructionLoss(LossConfig(l2_weight=weight)), None, TokenizerTrainConfig(), make_adversary()
        )
        model.zero_grad()
        torch.manual_seed(1)  # the same directions of the alignment
        with torch.autocast("cpu", torch.float16):
            step = task.loss(model, {"pixel_values": pictures(0, 16, 8)}, 0, 0.0)
        (step.loss * 1024 / weight).backward()
        gradients = torch.cat([p.grad.flatten() for p in model.decoder.parameters()])
        found.append((step.terms["adversarial_weight"].item() / weight, gradients / 1024))
    (ratio, gradient), (small_ratio, small_gradient) = found
    assert small_ratio == pytest.approx(ratio, rel=0.02)
    assert F.cosine_similarity(small_gradient, gradient, dim=0) > 0.99


def adaptive_ratio(dtype: torch.dtype | None, size: int = 8) -> float:
    """The ratio at the last layer of a decoder whose verdict is the same at every pixel; in float64 if no ``dtype``."""
    torch.manual_seed(0)
    sizes = {"base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1, "attention": False}
    config = WassersteinVQConfig(image_size=2 * size, patch_size=1, num_codes=16, code_dim=4, **sizes)
    decoder = WassersteinVQModel(config).decoder
    features, target = torch.randn(16, config.encoder_dim, size, size), pictures(0, 2 * size, 16)
    nn.init.constant_(decoder[decoder.last - 2].bias, 30.0)  # what the last convolution sees is large everywhere
    if dtype is None:
        decoder, features, target = decoder.double(), features.double(), target.double()
    with torch.autocast("cpu", dtype or torch.float16, enabled=dtype is not None):
        reconstruction = decoder(features)
    reconstruction = reconstruction if dtype is None else reconstruction.float()
    leaf = reconstruction.detach().requires_grad_()
    others, verdict = F.l1_loss(leaf, target), -leaf.mean()
    layer = decoder[decoder.last].weight
    return combined_gradient(reconstruction, others, verdict, layer, leaf, 1.0, 1e4)[1].item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_adaptive_ratio_of_a_large_batch_is_that_of_float64(dtype):
    """4,096 pixels of one sign times activations of 30 sum up to more than float16 holds."""
    exact = adaptive_ratio(None)
    assert 0.1 < exact < 10
    assert adaptive_ratio(dtype) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("which", [0, 1])
def test_a_norm_that_is_not_finite_is_no_weight(which):
    """Half tensors throughout: the sum of 65,536 products is inf in one of the two gradients."""
    layer = torch.full((1,), 1.0, dtype=torch.float16, requires_grad=True)
    reconstruction = (torch.full((256, 256), 2.0, dtype=torch.float16) * layer).float()
    leaf = reconstruction.detach().requires_grad_()
    alternating = torch.tensor([1.0, -1.0]).repeat(256, 128)
    losses = [leaf.mean(), (leaf * alternating).mean() + 1e-6 * leaf.sum()]
    if which:
        losses.reverse()
    gradient, ratio = combined_gradient(reconstruction, *losses, layer, leaf, 1.0, 1e4)
    assert ratio.isnan()
    assert gradient.isnan().all()
