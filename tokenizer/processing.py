"""ImageProcessor: pictures of any form to the tokenizer's tensors, and back."""

from __future__ import annotations

import os
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin
from typing_extensions import Unpack

from wvq.checks import PATH, one_of, or_null, require
from wvq.data.padding import center_pad
from wvq.data.pixels import center_crop, to_pixels, to_uint8
from wvq.errors import CheckpointError, DataError, first_line
from wvq.files.atomic import read_json
from wvq.files.user_folders import expand_user
from wvq.models.loading_options import HubOptions, refuse_others, take_hub_options
from wvq.models.options import EITHER, Foreign, refuse_options
from wvq.models.reading import DAMAGES, resolve_folder
from wvq.settings.data import FITS, PAD_COLORS
from wvq.settings.size import SIZE, Size
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.picture_formats import Images, OutputType, PictureInput, as_pictures, as_type, require_output_type

_FIELDS = ("size", "fit", "pad_color")
# Keys that transformers itself writes into preprocessor_config.json.
_LIBRARY_KEYS = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map")
_ALWAYS = "pictures are resized and cropped to the size, in RGB, and scaled to [-1, 1], always; leave it out"
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
_FOREIGN_FIELDS = {
    **dict.fromkeys(_STEPS, Foreign(_ALWAYS, (True,))),
    **dict.fromkeys(("resample", "crop_size", "rescale_factor", "image_mean", "image_std"), Foreign(_ALWAYS)),
    "use_fast": Foreign("there is one processor; leave it out", EITHER),
}


class ProcessorOptions(HubOptions, total=False):
    """What ``from_pretrained`` of a processor takes: where its file comes from, and fields to change.

    Attributes:
        size, fit, pad_color: of :class:`ImageProcessor`.
    """

    size: Size | tuple[int, int]
    fit: str
    pad_color: str


class ImageProcessor(ImageProcessingMixin):
    """Brings pictures to the tokenizer's size, scales them to [-1, 1], and turns tensors back.

    Args:
        size: in pixels: the side of a square, or [height, width].
        fit: how pictures of another shape get that size: ``crop``, to their centre (as ADM does), or ``pad``.
        pad_color: what ``pad`` fills the rest with (:class:`wvq.settings.data.DataConfig`).

    Raises:
        ConfigError: a size out of range, or another field.

    Example::

        processor = ImageProcessor.from_pretrained("runs/openmoji/tokenizer")
        pixel_values = processor(pictures).pixel_values
        pictures = processor.postprocess(tokenizer.decode_codes(codes))
    """

    model_input_names = ["pixel_values"]

    def __init__(self, size: Size | tuple[int, int] = 256, fit: str = "crop", pad_color: str = "auto", **kwargs: Any):
        super().__init__()
        others = {name: value for name, value in kwargs.items() if name not in _LIBRARY_KEYS}
        refuse_options(others, "ImageProcessor", _FIELDS, _FOREIGN_FIELDS)
        self.size: Size = require("ImageProcessor.size", size, SIZE)
        self.fit: str = require("ImageProcessor.fit", fit, one_of(FITS))
        self.pad_color: str = require("ImageProcessor.pad_color", pad_color, one_of(PAD_COLORS))

    @classmethod
    def of_tokenizer(cls, config: WassersteinVQConfig) -> ImageProcessor:
        """The processor of a tokenizer: pictures get the size that it takes in the way of those it was trained on."""
        return cls(config.image_size, config.fit, config.pad_color)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the options of the Hub client go by name
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Unpack[ProcessorOptions]
    ) -> ImageProcessor:
        """Load from the folder or Hub id of a tokenizer.

        Args:
            pretrained_model_name_or_path: the folder or Hub id.
            options: those of :class:`ProcessorOptions`.

        Raises:
            CheckpointError: the file is missing or damaged.
            ConfigError: an unknown option, or a value out of range.
            DownloadError: a Hub id that cannot be reached.
        """
        given: dict[str, Any] = {**options}
        hub_options = take_hub_options(given)
        changes = {name: given.pop(name) for name in _FIELDS if name in given}
        refuse_others(given, cls, ProcessorOptions.__annotations__, _FOREIGN_FIELDS)
        name = "preprocessor_config.json"
        file = resolve_folder(pretrained_model_name_or_path, "tokenizer", (name,), **hub_options) / name
        values = read_json(file, CheckpointError, f"{file} is missing: the folder holds no image processor")
        try:
            processor = cls(**values)
        except DAMAGES as error:
            raise CheckpointError(f"{file} holds an impossible value ({first_line(error)})") from error
        return cls(**{**values, **changes}) if changes else processor

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:  # type: ignore[override]
        """Write ``preprocessor_config.json`` into a folder; arguments as in transformers."""
        return super().save_pretrained(expand_user(save_directory, "save_directory", PATH), **kwargs)

    def __call__(self, images: PictureInput, return_tensors: str | None = "pt") -> BatchFeature:
        """Pixels of pictures of any size and mode.

        Args:
            images: pictures as :func:`wvq.tokenizer.picture_formats.as_pictures` takes them.
            return_tensors: ``pt`` or ``np``.

        Returns:
            ``pixel_values`` (B, 3, H, W) float32 in [-1, 1].

        Raises:
            DataError: ``images`` are of another kind, shape or range, or cannot be read.
            ConfigError: another ``return_tensors``.
        """
        require("return_tensors", return_tensors, or_null(one_of(("pt", "np"))))
        pixels = [to_pixels(self._fitted(picture)) for picture in as_pictures(images)]
        return BatchFeature({"pixel_values": torch.stack(pixels)}, tensor_type=return_tensors)

    def _fitted(self, picture: Image.Image) -> Image.Image:
        return center_pad(picture, self.size, self.pad_color) if self.fit == "pad" else center_crop(picture, self.size)

    @overload
    @staticmethod
    def postprocess(pixels: torch.Tensor, output_type: Literal["pil"] = "pil") -> list[Image.Image]: ...

    @overload
    @staticmethod
    def postprocess(pixels: torch.Tensor, output_type: Literal["np"]) -> np.ndarray: ...

    @overload
    @staticmethod
    def postprocess(pixels: torch.Tensor, output_type: Literal["pt"]) -> torch.Tensor: ...

    @staticmethod
    def postprocess(pixels: torch.Tensor, output_type: OutputType = "pil") -> Images:
        """Pictures of what a tokenizer has decoded, in the forms that a pipeline gives them in.

        Args:
            pixels: (B, 3, H, W) or (3, H, W), floats in [-1, 1]; clamped.
            output_type: ``pil``, ``np`` (uint8, B H W 3) or ``pt`` (float32, B 3 H W in [-1, 1]).

        Raises:
            ConfigError: another ``output_type``.
            DataError: pixels of another shape, integers, or NaN.
        """
        require_output_type(output_type)
        if pixels.ndim not in (3, 4) or pixels.shape[-3] != 3:
            raise DataError(f"pixels must have shape (3, H, W) or (B, 3, H, W), not {tuple(pixels.shape)}")
        batch = pixels if pixels.ndim == 4 else pixels[None]
        rounded = to_uint8(batch)
        return as_type(batch.detach().float().clamp(-1, 1) if output_type == "pt" else rounded, output_type)
