"""Pictures in the forms that users have them in: Pillow, numpy, torch, files; taken in, and given back."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image

from wvq.data.pictures import read_picture
from wvq.data.pixels import to_uint8, uint8_to_pil
from wvq.errors import ConfigError, DataError, first_line, near_match
from wvq.files.user_folders import expand_user

Picture: TypeAlias = Image.Image | np.ndarray | torch.Tensor | str | os.PathLike[str]
PictureInput: TypeAlias = "Picture | Sequence[PictureInput]"
OutputType: TypeAlias = Literal["pil", "np", "pt"]
OUTPUT_TYPES = get_args(OutputType)
Images: TypeAlias = list[Image.Image] | np.ndarray | torch.Tensor

_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with alpha
_SECONDS = 60.0  # that a server may be silent


def as_pictures(images: PictureInput) -> list[Image.Image]:
    """Pictures of any form as a list of Pillow's.

    Args:
        images: a Pillow picture; a file or an address on the web; an array or tensor (H, W), (H, W, C) or (C, H, W)
            with 1, 3 or 4 channels, or a batch of them of 4 dims, uint8 or floats in [0, 1], which are rounded to
            8 bits; or a list of any of these.

    Raises:
        DataError: anything else, values out of range, or a shape of which either side may be the channels.
    """
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, str | os.PathLike):
        text = os.fspath(images)
        return [_fetched(text) if text.startswith(("http://", "https://")) else read_picture(expand_user(text))]
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.is_floating_point() else images).numpy()
    if isinstance(images, np.ndarray):
        return [_from_array(array) for array in (images if images.ndim == 4 else [images])]
    if not isinstance(images, list | tuple) or not images:
        what = "an empty list" if isinstance(images, list | tuple) else f"a {type(images).__name__}"
        raise DataError(f"images must be Pillow pictures, arrays, tensors, files or a list of them, got {what}")
    return [picture for several in images for picture in as_pictures(several)]


def _fetched(address: str) -> Image.Image:
    try:
        with urlopen(Request(address, headers={"User-Agent": "wvq"}), timeout=_SECONDS) as response:
            image = Image.open(io.BytesIO(response.read()))
        image.load()
    except Exception as error:  # Pillow's decoders and the network raise many kinds
        raise DataError(f"images: {address} cannot be read as a picture ({first_line(error)})") from error
    return image


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3:
        first, last = (array.shape[axis] in _CHANNELS for axis in (0, -1))
        if first == last:
            problem = "may have its channels first or last" if first else "has neither 1, 3 nor 4 channels"
            raise DataError(
                f"images: an array of shape {array.shape} {problem}; give one as (H, W, C), several as (N, H, W, C)"
            )
        array = array.transpose(1, 2, 0) if first else array
    elif array.ndim != 2:
        raise DataError(f"images: an array must have 2, 3 or 4 dims, got shape {array.shape}")
    if not array.size:
        raise DataError(f"images: an array of shape {array.shape} is empty")
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise DataError(
                f"images: floats must be in [0, 1], got {low:g} to {high:g}; divide those up to 255 by 255, and take "
                "(x + 1) / 2 of those in [-1, 1]"
            )
        array = to_uint8(torch.from_numpy(array.astype(np.float32)) * 2 - 1).numpy()
    elif array.dtype != np.uint8:
        raise DataError(f"images: an array must be uint8 or floats in [0, 1], got {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 and array.ndim == 3 else array))


def require_output_type(output_type: str) -> None:
    """Check that pictures can be given as this.

    Raises:
        ConfigError: it is none of :data:`OUTPUT_TYPES`.
    """
    if output_type not in OUTPUT_TYPES:
        near = near_match(output_type, OUTPUT_TYPES)
        raise ConfigError(f'output_type "{output_type}" is unknown{near}; one of {", ".join(OUTPUT_TYPES)}')


def as_type(pictures: torch.Tensor, output_type: OutputType) -> Images:
    """Pictures (N, 3, H, W), float for ``pt`` and else uint8, as a pipeline gives them.

    That is: a list of Pillow pictures, a uint8 array (N, H, W, 3), or the tensor.
    """
    if output_type == "pt":
        return pictures
    if output_type == "np":
        return pictures.permute(0, 2, 3, 1).cpu().numpy()
    return uint8_to_pil(pictures)
