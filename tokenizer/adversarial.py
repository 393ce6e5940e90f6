"""Adversarial training of the tokenizer: the losses of both sides, the discriminator's regularisers, the weights.

Shapes: B pictures, M logits a picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from wvq.distributed import mean_over_processes
from wvq.precision import no_float16
from wvq.settings.size import Size, height_width
from wvq.tokenizer.augmentation import diff_augment
from wvq.tokenizer.discriminators import build_discriminator
from wvq.tokenizer.recipes import DiscriminatorConfig

LECAM_DECAY = 0.99


def hinge_discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Half of mean relu(1 - real) + mean relu(1 + fake); falls as real logits rise and fake ones fall."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def logistic_discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Half the cross entropy of real against fake (Goodfellow et al. 2014); falls as real rises and fake falls."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def linear_generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """-mean logit; falls as the logits of reconstructions rise."""
    return -fake.mean()


def non_saturating_generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """-mean log sigmoid(logit) (Goodfellow et al. 2014, section 3); falls as the logits of reconstructions rise."""
    return F.softplus(-fake).mean()


# Loss of the discriminator and of the generator. "vanilla" pairs them as Esser et al. 2021 do.
ADVERSARIAL_LOSSES: dict[str, tuple[Callable, Callable]] = {
    "hinge": (hinge_discriminator_loss, linear_generator_loss),
    "vanilla": (logistic_discriminator_loss, linear_generator_loss),
    "non_saturating": (logistic_discriminator_loss, non_saturating_generator_loss),
}


def gradient_penalty(logits: torch.Tensor, inputs: list[torch.Tensor]) -> torch.Tensor:
    """R1: mean over pictures of the squared norm of the logits' gradient (Mescheder et al. 2018, eq. 9); 0-d.

    Args:
        logits: (B, M) of real pictures.
        inputs: what they were computed from, each (B, ...), with ``requires_grad``.
    """
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return torch.stack([gradient.square().flatten(1).sum(1) for gradient in gradients]).sum(0).mean()


class Adversary(nn.Module):
    """A discriminator with its loss: ``forward`` is what it trains on, so that processes average its gradients.

    LeCam (Tseng et al. 2021, eq. 6) compares the logits of either side with the moving average of the other's.
    Consistency (Zhao et al. 2021) compares the logits of a picture with those of its augmentation. R1 is taken at the
    pixels of real pictures, or at the features of a frozen backbone.

    Raises:
        ConfigError, CheckpointError, DownloadError: a setting or the backbone is wrong.
    """

    real_average: torch.Tensor  # buffers of LeCam
    fake_average: torch.Tensor

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        config.check()
        self.config = config
        self.discriminator = build_discriminator(config)
        self.discriminator_loss, self._generator_loss = ADVERSARIAL_LOSSES[config.loss]
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))
        self._parts: int = 1  # batches that a training step is cut into
        self._means: list[torch.Tensor] = []  # of real and fake logits (2,), of the current step's batches

    def trains(self, images_seen: int) -> bool:
        """Whether the discriminator trains in the step that begins at ``images_seen``."""
        return images_seen >= self.config.start_images

    def weight(self, images_seen: int) -> float:
        """Weight of the adversarial term in that step, without the adaptive ratio; 0 until it reaches the tokenizer."""
        past = images_seen - self.config.generator_start_images
        if past < 0:
            return 0.0
        return self.config.weight * (min(1.0, past / self.config.ramp_images) if self.config.ramp_images else 1.0)

    def begin_step(self, parts: int) -> None:
        """Prepare for a step of ``parts`` batches: LeCam's averages move once, in the last."""
        self._parts, self._means = parts, []

    def generator_loss(self, reconstruction: torch.Tensor) -> torch.Tensor:
        """Adversarial loss (0-d) of reconstructions (B, 3, H, W)."""
        with no_float16(reconstruction):
            return self._generator_loss(self._logits(reconstruction.float()).float())

    def forward(
        self, real: torch.Tensor, fake: torch.Tensor, penalize: bool = False
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of the discriminator (0-d) and its detached terms.

        Args:
            real: pictures (B, 3, H, W) in [-1, 1].
            fake: their reconstructions, detached.
            penalize: add the R1 penalty, weighted for all steps since the last one.
        """
        config = self.config
        with no_float16(real):
            real_views, fake_views = self._views(real.float()), self._views(fake.float())
            features = self._real_features(real_views[0], penalize)
            real_logits = self.discriminator.judge(features).float()
            fake_logits = self.discriminator(fake_views[0]).float()
            loss = self.discriminator_loss(real_logits, fake_logits)
            terms = {"logits_real": real_logits.mean(), "logits_fake": fake_logits.mean()}
            if config.lecam_weight:
                terms["lecam"] = self._lecam(real_logits, fake_logits)
                loss = loss + config.lecam_weight * terms["lecam"]
            if config.consistency_weight:
                pairs = ((real_logits, real_views[1]), (fake_logits, fake_views[1]))
                changes = [(logits - self.discriminator(view).float()).square().mean() for logits, view in pairs]
                terms["consistency"] = sum(changes)
                loss = loss + config.consistency_weight * terms["consistency"]
            if penalize:
                terms["r1"] = gradient_penalty(real_logits, features)
                loss = loss + config.r1_interval * config.r1_weight / 2 * terms["r1"]
        return loss, {name: value.detach() for name, value in terms.items()}

    @property
    def _augments(self) -> bool:
        return self.config.augment or self.config.network == "dino"

    def _logits(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.discriminator(diff_augment(pictures) if self._augments else pictures)

    def _views(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        # The pictures to judge, and for consistency their augmentation.
        first = diff_augment(pictures) if self._augments else pictures
        return [first, diff_augment(pictures)] if self.config.consistency_weight else [first]

    def _real_features(self, pictures: torch.Tensor, penalize: bool) -> list[torch.Tensor]:
        features = self.discriminator.features(pictures)
        return [x.detach().requires_grad_() for x in features] if penalize else features

    def _lecam(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        value = (real - self.fake_average).square().mean() + (fake - self.real_average).square().mean()
        self._means.append(torch.stack([real.mean(), fake.mean()]).detach())
        if len(self._means) == self._parts:
            means = mean_over_processes(torch.stack(self._means).mean(0))
            self._means = []
            for average, mean in zip((self.real_average, self.fake_average), means, strict=True):
                mean = torch.where(mean.isfinite(), mean, average)  # such a step is skipped: it must change nothing
                average.lerp_(mean, 1 - LECAM_DECAY)
        return value


@torch.no_grad()
def build_adversary(config: DiscriminatorConfig, image_size: Size) -> Adversary | None:
    """The adversary of a recipe, tried on one picture; None if the recipe has none.

    Raises:
        ConfigError, CheckpointError, DownloadError: a setting or the backbone is wrong, or the pictures are too small.
    """
    if config.network == "none":
        return None
    adversary = Adversary(config)
    adversary.eval().discriminator(torch.zeros(1, 3, *height_width(image_size)))
    return adversary.train()


def combined_gradient(
    reconstruction: torch.Tensor,
    others: torch.Tensor,
    adversarial: torch.Tensor,
    layer: torch.Tensor,
    pictures: torch.Tensor,
    weight: float,
    max_ratio: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of ``others + weight x ratio x adversarial`` at the reconstruction, and the ratio (0-d).

    The ratio is |gradient of others| / |gradient of adversarial| at the decoder's last layer, at most ``max_ratio``
    (Esser et al. 2021, eq. 7); 1 if that is None. Each loss is taken back to the pixels once; the ratio then costs two
    gradients of one layer, where the usual form goes back through all loss networks twice. Norms are those of the
    gradients of all processes together, so every process has the ratio of the joined batch. It is NaN, and so is the
    gradient, if a norm is not finite. A gradient at a layer is a sum over all pixels of the batch: the layer must run
    in a type that holds it.

    Args:
        reconstruction: (B, 3, H, W) float32, attached to the decoder.
        others, adversarial: 0-d losses, functions of ``pictures``.
        layer: weight of the decoder's last layer.
        pictures: the reconstruction, detached, as a leaf.
        weight: weight of the adversarial loss.
        max_ratio: bound of the ratio; None for no ratio.
    """
    (pixel_gradient,) = torch.autograd.grad(others, pictures)
    (verdict_gradient,) = torch.autograd.grad(adversarial, pictures)
    ratio = torch.ones((), device=pictures.device)
    if max_ratio is not None:
        norms = []
        for gradient in (pixel_gradient, verdict_gradient):
            # In units of its largest element, so that small gradients are not lost in a type of narrow range.
            unit = gradient.abs().amax().clamp_min(torch.finfo(gradient.dtype).tiny)
            (at_layer,) = torch.autograd.grad(reconstruction, layer, gradient / unit, retain_graph=True)
            norms.append(mean_over_processes(at_layer.float() * unit).norm())
        ratio = (norms[0] / (norms[1] + 1e-4)).clamp(0, max_ratio)
        # An overflow must stay one, so that the step is skipped: clamped, it would look like a weight.
        ratio = torch.where(torch.stack(norms).isfinite().all(), ratio, torch.nan)
    return pixel_gradient + weight * ratio * verdict_gradient, ratio
