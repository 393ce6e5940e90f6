"""Feature networks for the distribution metrics: Inception-v3 (FID, KID, IS) and EfficientNet-Lite0 (works offline)."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wvq.checks import PATH
from wvq.errors import CheckpointError, ConfigError, DataError, DownloadError, near_match
from wvq.eval.features.names import EFFICIENTNET_LITE0, FEATURE_NETWORKS, INCEPTION
from wvq.files.user_folders import expand_user
from wvq.models.networks import efficientnet_lite0, read_state_dict
from wvq.settings.size import Size, height_width

# The name of torch-fidelity's weight file ends in the start of its sha256.
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_HASH = "6726825d"
SPATIAL_CHANNELS = 7  # Nash et al. 2021 (arXiv 2103.03841), in ADM's evaluation (Dhariwal & Nichol 2021)


class FeatureOutput(NamedTuple):
    """Features (B, D) float32 and, for networks that have them, class logits (B, classes) and features that keep the
    place in the picture, (B, D'); all float32.
    """

    features: Tensor
    logits: Tensor | None
    spatial: Tensor | None = None


class FeatureNetwork(nn.Module):
    """A frozen network that turns uint8 pictures into feature vectors; subclasses define `_compute`.

    Attributes:
        name: the name that the metrics carry (``fd_<name>``).
        dim: length of a feature vector.
        weights_sha256: hash of the weight file.
        warnings: what a reader of the metrics must know about these weights.
    """

    name: str
    dim: int

    def __init__(self, weights_sha256: str, warnings: tuple[str, ...] = ()):
        super().__init__()
        self.weights_sha256 = weights_sha256
        self.warnings = warnings

    def recipe(self, image_size: Size) -> str:
        """How a picture of this size (in pixels) reaches the network, as one line for the results.

        The networks take squares: a picture that is not square is squeezed to one, real and drawn ones alike.
        """
        raise NotImplementedError

    def _compute(self, images: Tensor) -> FeatureOutput:
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.parameters()).device

    @torch.inference_mode()
    def forward(self, images: Tensor) -> FeatureOutput:
        """Features and logits of uint8 pictures (B, 3, H, W), in one pass; both on the network's device.

        Raises:
            DataError: the pictures are not uint8 or not (B, 3, H, W).
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise DataError(
                f"feature networks take uint8 pictures (B, 3, H, W), not {images.dtype} {tuple(images.shape)}"
            )
        # Autocast would round the features to half precision without a warning.
        with torch.autocast(self.device.type, enabled=False):
            return self._compute(images.to(self.device))


class InceptionNetwork(FeatureNetwork):
    """The Inception-v3 of the published FID figures, TensorFlow-compatible resize included (torch-fidelity)."""

    name = INCEPTION
    dim = 2048

    def __init__(self, weights: Path):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        content = weights.read_bytes()
        read_state_dict(content, weights)
        sha256 = hashlib.sha256(content).hexdigest()
        warnings: tuple[str, ...] = ()
        if not sha256.startswith(_INCEPTION_HASH):
            warnings = (
                f"{weights.name} is not the reference file {_INCEPTION_FILE}: FID, KID and IS are not comparable",
            )
        super().__init__(sha256, warnings)
        try:
            # torch-fidelity unpickles without restrictions: it gets only the bytes that passed the restricted reader.
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=io.BytesIO(content)
            )
        except RuntimeError as error:
            raise CheckpointError(f"{weights} does not hold torch-fidelity's Inception-v3 weights") from error
        # What sFID is measured on: 7 channels of the layer that the published graph calls mixed_6/conv, 17 x 17 each,
        # in the order of the published statistics: row, column, channel.
        self._spatial: list[Tensor] = []
        self.network.Mixed_6d.branch1x1.register_forward_hook(
            lambda *call: self._spatial.append(call[-1][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float())
        )

    def recipe(self, image_size: Size) -> str:
        return f"TensorFlow-compatible bilinear resize to {_square(299, image_size)}"

    def _compute(self, images: Tensor) -> FeatureOutput:
        self._spatial.clear()
        features, logits = self.network(images)
        return FeatureOutput(features, logits, self._spatial.pop())


class EfficientNetLite0(FeatureNetwork):
    """EfficientNet-Lite0 (ImageNet), whose weights come as a Python package: mean-pooled last feature map.

    Pictures up to 128 px are resized to 128 px (about 300 pictures/s on two CPU cores), larger ones to the 224 px that
    the network was trained at. Smaller inputs are faster but rank damage wrongly: in the kernel distance over emoji of
    32 px, hardly visible noise (standard deviation 5) counts for more than a fourfold blur at 64 px, and for less than
    a twofold one at 128 px.
    """

    name = EFFICIENTNET_LITE0
    dim = 1280

    def __init__(self, weights: Path | None = None):
        network, sha256 = efficientnet_lite0(weights)
        super().__init__(sha256)
        # Depthwise convolutions run several times faster in this layout on a CPU.
        self.network = network.to(memory_format=torch.channels_last)

    def _side(self, longer_side: int) -> int:
        return 128 if longer_side <= 128 else 224

    def recipe(self, image_size: Size) -> str:
        side = self._side(max(height_width(image_size)))
        return f"bicubic antialiased resize to {_square(side, image_size)}, (x - 127) / 128"

    def _compute(self, images: Tensor) -> FeatureOutput:
        # On a CPU small parts stay in its cache: 1.3 times faster than 32 at once.
        parts = images.split(8 if images.device.type == "cpu" else len(images))
        return FeatureOutput(torch.cat([self._extract_part(part) for part in parts]), None)

    def _extract_part(self, images: Tensor) -> Tensor:
        pixels = images.float()
        side = self._side(max(images.shape[-2:]))
        if tuple(images.shape[-2:]) != (side, side):
            pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False)
            pixels = pixels.clamp(0, 255)
        pixels = ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)
        maps = self.network.extract_features(pixels)
        return maps.mean((2, 3))


def _square(side: int, image_size: Size) -> str:
    return f"{side} px" if isinstance(image_size, int) else f"{side} x {side} px, squeezed"


def load_feature_network(
    name: str, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> FeatureNetwork:
    """Load a feature network, frozen and in eval mode.

    Args:
        name: ``inception`` or ``efficientnet_lite0``.
        weights: weight file; without one, Inception's is taken from (or downloaded to) torch's hub cache, and
            EfficientNet-Lite0's from its package.
        device: where the network runs.

    Raises:
        ConfigError: unknown name, or a package is missing.
        CheckpointError: the weight file is missing, damaged or of another network.
        DownloadError: the Inception weights are not there and cannot be downloaded.
    """
    if name not in FEATURE_NETWORKS:
        known = ", ".join(FEATURE_NETWORKS)
        raise ConfigError(f'feature_network "{name}" is unknown{near_match(name, FEATURE_NETWORKS)}; one of {known}')
    file = None if weights is None else expand_user(weights, "weights", PATH)
    if file is not None and not file.is_file():
        raise CheckpointError(f"feature network {name!r}: weight file {str(file)!r} does not exist")
    network = InceptionNetwork(file or _download_inception()) if name == INCEPTION else EfficientNetLite0(file)
    return network.requires_grad_(False).eval().to(device)


def default_feature_network(
    inception_weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> FeatureNetwork:
    """Inception if its weight file is given, else EfficientNet-Lite0: what is cached never changes the choice."""
    if inception_weights is not None:
        return load_feature_network(INCEPTION, inception_weights, device)
    return load_feature_network(EFFICIENTNET_LITE0, device=device)


def _download_inception() -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=_INCEPTION_HASH)
    except (OSError, RuntimeError) as error:
        raise DownloadError(
            f"Inception weights could not be downloaded ({error}): give {_INCEPTION_FILE} by --inception-weights FILE "
            f"or use --feature-network {EFFICIENTNET_LITE0}"
        ) from error
    return path


def network_settings(network: FeatureNetwork, image_size: Size) -> dict[str, str]:
    """What is needed to repeat the features, for a result's settings: network, weight hash and resize recipe."""
    return {
        "feature_network": network.name,
        "feature_network_sha256": network.weights_sha256,
        "feature_network_input": network.recipe(image_size),
    }
