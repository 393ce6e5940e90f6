"""Codebooks aligned with the distribution of the features. Shapes: N features, K codes, D dims."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from transformers import initialization as init

from wvq.checks import integer
from wvq.distributed import gather_rows
from wvq.models.config import option
from wvq.tokenizer.quantizers.alignment import (
    MomentWindow,
    affine_map,
    gaussian_wasserstein,
    mmd,
    random_directions,
    random_sample,
    sliced_wasserstein,
)
from wvq.tokenizer.quantizers.interface import QuantizerConfig
from wvq.tokenizer.quantizers.vanilla import VectorQuantizer


class AlignedQuantizer(VectorQuantizer):
    """Vanilla codebook whose codes also follow the features' distribution, used or not."""

    defaults = {"codebook_weight": 1.0, "commitment_weight": 0.1}
    aligned = True

    def __init__(self, config: QuantizerConfig):
        super().__init__(config)
        self.target_scale = config.target_scale

    def draw_codebook(self) -> None:
        init.normal_(self.codebook, 0.0, 0.01)


class DistanceQuantizer(AlignedQuantizer):
    """Aligned by the gradient of a distance between codes and features, which subclasses give.

    loss = vanilla + gamma alignment; the gradient of the alignment reaches all codes, used or not, and no feature.
    """

    defaults = {**AlignedQuantizer.defaults, "alignment_weight": 0.5}

    def __init__(self, config: QuantizerConfig):
        super().__init__(config)
        self._full_weight = self.weights["alignment_weight"]
        self.normalize = config.alignment_units == "relative"

    def scale_alignment(self, factor: float) -> None:
        self.weights["alignment_weight"] = self._full_weight * factor

    @abstractmethod
    def alignment(self, features: torch.Tensor, joined: bool) -> torch.Tensor:
        """Distance (0-d) between codebook and features (N, D).

        Args:
            features: detached.
            joined: measure it over the features of all processes and count them in running statistics; else over this
                batch alone, without changing statistics and without waiting for others.
        """

    def step_losses(self, features: torch.Tensor, joined: bool) -> dict[str, torch.Tensor]:
        return {"alignment": self.alignment(features, joined)} if self.weights["alignment_weight"] else {}


class WindowConfig(QuantizerConfig):
    """Fields of a window over recent features.

    Args:
        window_size: number of recent features whose moments "wasserstein" and "affine" match.
    """

    window_size: int = option(65_536, integer(), identity=False)


class WindowedQuantizer(AlignedQuantizer):
    """Aligned to the Gaussian moments of the last ``window_size`` features."""

    def __init__(self, config: WindowConfig):
        super().__init__(config)
        self.window = MomentWindow(config.window_size)

    def moments(self, features: torch.Tensor, joined: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (D,) and covariance (D, D) of recent features and these (N, D); these alone unless ``joined``."""
        window = self.window if joined else MomentWindow(self.window.size)
        window.update(features, joined)
        return window.moments()

    def training_state(self) -> dict[str, Any]:
        return {"window": self.window.state_dict()}

    def load_training_state(self, state: dict[str, Any], device: torch.device) -> None:
        self.window.load_state_dict(state["window"], device)


class WassersteinQuantizer(WindowedQuantizer, DistanceQuantizer):
    """The paper's quantizer: codes follow the features' Gaussian moments (arXiv 2506.15078)."""

    name = "wasserstein"
    has_units = True

    def alignment(self, features: torch.Tensor, joined: bool) -> torch.Tensor:
        moments = self.moments(features, joined)
        return gaussian_wasserstein(*moments, self.code_vectors(), self.normalize, self.target_scale)


class SlicedConfig(QuantizerConfig):
    """Fields of the sliced alignment.

    Args:
        num_projections: random directions per step of the "sliced" alignment.
    """

    num_projections: int = option(8, integer(), identity=False)


class SlicedWassersteinQuantizer(DistanceQuantizer):
    """Codes follow the features' whole distribution by the sliced Wasserstein distance, with no Gaussian assumption."""

    name = "sliced"
    has_units = True
    robust = 0.25  # where the cost of a difference goes from squared to linear, in standard deviations of the features

    def __init__(self, config: SlicedConfig):
        super().__init__(config)
        self.num_projections = config.num_projections

    def alignment(self, features: torch.Tensor, joined: bool) -> torch.Tensor:
        directions = random_directions(self.num_projections, self.dim, features.device, joined)
        features = gather_rows(features) if joined else features
        codes = self.code_vectors()
        return sliced_wasserstein(features, codes, directions, self.normalize, self.target_scale, self.robust)


class MMDConfig(QuantizerConfig):
    """Fields of the maximum mean discrepancy.

    Args:
        num_samples: features, and codes, per step that the "mmd" alignment compares.
    """

    num_samples: int = option(1_024, integer(), identity=False)


class MMDQuantizer(DistanceQuantizer):
    """Codes follow the features' distribution by the maximum mean discrepancy, over a random sample of either side."""

    name = "mmd"

    def __init__(self, config: MMDConfig):
        super().__init__(config)
        self.num_samples = config.num_samples

    def alignment(self, features: torch.Tensor, joined: bool) -> torch.Tensor:
        features = gather_rows(features) if joined else features
        if self.target_scale != 1:
            mean = features.mean(0)
            features = mean + self.target_scale * (features - mean)
        chosen = (random_sample(points, self.num_samples, joined) for points in (features, self.code_vectors()))
        return mmd(*chosen)


class AffineConfig(WindowConfig):
    """Fields of the affine map.

    Args:
        affine_interval: steps from one affine map of the "affine" codebook to the next.
    """

    affine_interval: int = option(100, integer(), identity=False)


class AffineQuantizer(WindowedQuantizer):
    """Control: every ``affine_interval`` steps the optimal map between the Gaussian fits carries the codes.

    The Gaussian distance is 0 after each, with no training at all; between them the codebook trains as in "vanilla".
    """

    name = "affine"
    by_gradient = False

    def __init__(self, config: AffineConfig):
        super().__init__(config)
        self.interval = config.affine_interval
        self._steps = 0

    @torch.no_grad()
    def update(self, features: torch.Tensor, codes: torch.Tensor) -> None:
        moments = self.moments(features, joined=True)
        if self._steps % self.interval == 0:
            carried = affine_map(*moments, self.codebook, self.target_scale)
            self.codebook.copy_(torch.where(self.window.last_counted(), carried, self.codebook))
        self._steps += 1

    def training_state(self) -> dict[str, Any]:
        return super().training_state() | {"steps": self._steps}

    def load_training_state(self, state: dict[str, Any], device: torch.device) -> None:
        super().load_training_state(state, device)
        self._steps = state["steps"]
