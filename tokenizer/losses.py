"""Reconstruction losses of the tokenizer: L1, L2 and an optional frozen perceptual network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from wvq.errors import CheckpointError, ConfigError, DownloadError, first_line
from wvq.tokenizer.recipes import LossConfig


class ReconstructionLoss(nn.Module):
    """Weighted sum of L1, L2 and perceptual distance; each term is also returned under its own name.

    Raises:
        ConfigError: a weight or name is out of range, or the package behind the perceptual network is missing.
        DownloadError: the perceptual network's weights could not be fetched.
    """

    def __init__(self, config: LossConfig):
        super().__init__()
        config.check()
        self.config = config
        self.perceptual = build_perceptual(config) if config.perceptual_weight else None

    def forward(
        self, reconstruction: torch.Tensor, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of the terms, and each term.

        Args:
            reconstruction, pixel_values: (B, 3, H, W), in or near [-1, 1].

        Returns:
            The weighted sum (0-d), and each unweighted term, detached.
        """
        config, reconstruction = self.config, reconstruction.float()
        terms = {}
        if config.l1_weight:
            terms["l1"] = F.l1_loss(reconstruction, pixel_values)
        if config.l2_weight:
            terms["l2"] = F.mse_loss(reconstruction, pixel_values)
        if self.perceptual is not None:
            with torch.autocast(pixel_values.device.type, enabled=False):
                terms["perceptual"] = self.perceptual(reconstruction, pixel_values)
        total = sum(getattr(config, f"{name}_weight") * value for name, value in terms.items())
        return total, {name: value.detach() for name, value in terms.items()}


Layers = Callable[[nn.Module, torch.Tensor], list[torch.Tensor]]  # of a network, from pictures to feature maps


def _output(network: nn.Module, pictures: torch.Tensor) -> list[torch.Tensor]:
    return network(pictures)


class FeatureDistance(nn.Module):
    """Mean squared difference of unit-length features of a frozen network, at several depths.

    Args:
        network: frozen and kept in eval mode.
        layers: maps the network and pictures (B, 3, H, W) in [-1, 1] to a list of feature maps, by default what the
            network itself gives. It must not hold the network: a copy of this module would run the original.
    """

    def __init__(self, network: nn.Module, layers: Layers = _output):
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.layers = layers

    def train(self, mode: bool = True):
        """Stay in eval mode, whatever the mode of the model around it."""
        return super().train(False)

    def forward(self, pictures: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Mean distance (0-d) of pictures and references (B, 3, H, W) in [-1, 1]; the references get no gradient."""
        with torch.no_grad():
            targets = [F.normalize(x, dim=1) for x in self.layers(self.network, references)]
        values = [F.normalize(x, dim=1) for x in self.layers(self.network, pictures)]
        return torch.stack([(x - y).square().sum(1).mean() for x, y in zip(values, targets, strict=True)]).mean()


def build_perceptual(config: LossConfig) -> nn.Module:
    """The distance that ``config.perceptual_network`` names: of (pictures, references), both (B, 3, H, W), to 0-d.

    Raises:
        ConfigError: the package of LPIPS is missing.
        CheckpointError: a weight file is missing, damaged or of another network.
        DownloadError: weights could not be fetched.
    """
    if config.perceptual_network == "lpips":
        try:
            return LPIPS(config.perceptual_weights)
        except DownloadError as error:
            raise DownloadError(f"{error}, or set loss.perceptual_network to efficientnet_lite0") from error
    if config.perceptual_network == "efficientnet_lite0":
        from wvq.models.networks import efficientnet_lite0, perceptual_layers

        network, _ = efficientnet_lite0()
        return FeatureDistance(network, perceptual_layers)
    from wvq.models.networks import VisionBackbone

    return FeatureDistance(VisionBackbone(config.perceptual_network))


class LPIPS(nn.Module):
    """LPIPS (Zhang et al. 2018) with the VGG backbone, of the package of the same name; frozen, in eval mode.

    Args:
        weights: file with torchvision's VGG-16 weights; torchvision downloads them if None.
        option: what messages call the option that names the file.

    Raises:
        ConfigError: the package is missing.
        CheckpointError: the file is missing, damaged or of another network.
        DownloadError: the weights could not be fetched.
    """

    def __init__(self, weights: str | Path | None = None, option: str = "loss.perceptual_weights"):
        super().__init__()
        try:
            import lpips
        except ImportError:
            raise ConfigError('loss.perceptual_network "lpips" needs its package: pip install "wvq[lpips]"') from None
        try:
            # The linear heads come with the package; only the backbone is a download.
            with warnings.catch_warnings():  # the package calls torchvision in a deprecated way
                warnings.filterwarnings("ignore", message=".*pretrained|.*weight enum", category=UserWarning)
                network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=weights is not None, verbose=False)
        except (OSError, RuntimeError) as error:  # the latter: a download with a wrong hash
            raise DownloadError(
                f"the VGG backbone of LPIPS could not be fetched ({first_line(error)}); give a file with torchvision's "
                f"VGG-16 weights by {option}"
            ) from error
        _load_heads(network, Path(lpips.__file__).parent / "weights" / f"v{network.version}" / "vgg.pth")
        if weights is not None:
            _load_vgg(network.net, Path(weights), option)
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        """Stay in eval mode, whatever the mode of the model around it."""
        return super().train(False)

    def forward(self, pictures: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Mean distance (0-d) of pictures and references (B, 3, H, W) in [-1, 1]."""
        return self.network(pictures, references).mean()


def _load_heads(network: nn.Module, file: Path) -> None:
    # The package itself would leave heads that the file lacks at random.
    from wvq.models.networks import read_state_dict

    try:
        saved = read_state_dict(file.read_bytes(), file)
        for index, head in enumerate(network.get_submodule("lins").children()):
            head.load_state_dict({name: saved[f"lin{index}.{name}"] for name in head.state_dict()})
    except (OSError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file} does not hold the heads of LPIPS; install the package lpips again") from error


def _load_vgg(backbone: nn.Module, file: Path, option: str) -> None:
    # The package splits the layers over slices, and keeps their numbers.
    from wvq.models.networks import read_state_dict

    if not file.is_file():
        raise CheckpointError(f"{option}: {file} does not exist")
    try:
        saved = read_state_dict(file.read_bytes(), file)
    except CheckpointError as error:
        raise CheckpointError(f"{option}: {error}") from error
    try:
        own = {name: saved[f"features.{name.partition('.')[2]}"] for name in backbone.state_dict()}
        backbone.load_state_dict(own)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{option}: {file} does not hold torchvision's VGG-16 weights") from error
