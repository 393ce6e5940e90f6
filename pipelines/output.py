"""The output of a pipeline: pictures of the requested type, their codes and their seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import torch
from PIL import Image

from wvq.data.pixels import uint8_to_pil

OutputType: TypeAlias = Literal["pil", "np", "pt"]
OUTPUT_TYPES = get_args(OutputType)
Images: TypeAlias = list[Image.Image] | np.ndarray | torch.Tensor
ImagesOfType = TypeVar("ImagesOfType", bound=Images, covariant=True)


@dataclass
class ImagePipelineOutput(Generic[ImagesOfType]):
    """The pictures of a call, their codes and their seeds.

    Attributes:
        images: Pillow pictures; or uint8 array (N, H, W, 3); or float32 tensor (N, 3, H, W) in [-1, 1].
        codes: (N, h, w) int64.
        seeds: the seed of each picture.
    """

    images: ImagesOfType
    codes: torch.Tensor
    seeds: list[int]


def as_type(pictures: torch.Tensor, output_type: OutputType) -> Images:
    """Pictures (N, 3, H, W), float for ``pt`` and else uint8, as :class:`ImagePipelineOutput` has them."""
    if output_type == "pt":
        return pictures
    if output_type == "np":
        return pictures.permute(0, 2, 3, 1).numpy()
    return uint8_to_pil(pictures)
