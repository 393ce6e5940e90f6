"""The output of a pipeline: pictures of the requested type, their codes and their seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from wvq.tokenizer.picture_formats import Images

ImagesOfType = TypeVar("ImagesOfType", bound=Images, covariant=True)


@dataclass
class ImagePipelineOutput(Generic[ImagesOfType]):
    """The pictures of a call, their codes and their seeds.

    Attributes:
        images: Pillow pictures; or uint8 array (N, H, W, 3); or float32 tensor (N, 3, H, W) in [-1, 1].
        codes: int64 in the shape of the tokenizer's codes: (N, h, w), (N, h, w, G) of several codebooks, (N, T) of
            several scales.
        seeds: the seed of each picture.
    """

    images: ImagesOfType
    codes: torch.Tensor
    seeds: list[int]
