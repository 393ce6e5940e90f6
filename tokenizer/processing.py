"""ImageProcessor: Pillow pictures to the tokenizer's tensors and back."""

from __future__ import annotations

import os
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin

from wvq.checks import one_of, require
from wvq.data.padding import center_pad
from wvq.data.pixels import center_crop, to_pil, to_pixels
from wvq.errors import CheckpointError, ConfigError, first_line
from wvq.files.atomic import read_json
from wvq.models.pretrained import DAMAGES, resolve_folder
from wvq.settings.data import FITS, PAD_COLORS
from wvq.settings.size import Size, as_size
from wvq.tokenizer.configuration import WassersteinVQConfig


class ImageProcessor(ImageProcessingMixin):
    """Brings pictures to the tokenizer's size, scales them to [-1, 1], and turns tensors back.

    Args:
        size: in pixels: the side of a square, or [height, width].
        fit: how pictures of another shape get that size: ``crop``, to their centre (as ADM does), or ``pad``.
        pad_color: what ``pad`` fills the rest with (:class:`wvq.settings.data.DataConfig`).

    Example::

        processor = ImageProcessor.from_pretrained("runs/openmoji/tokenizer")
        pixel_values = processor(pictures).pixel_values
        pictures = processor.postprocess(tokenizer.decode_codes(codes))
    """

    model_input_names = ["pixel_values"]

    def __init__(self, size: Size | tuple[int, int] = 256, fit: str = "crop", pad_color: str = "auto", **kwargs: Any):
        super().__init__(**kwargs)
        require("ImageProcessor.fit", fit, one_of(FITS))
        require("ImageProcessor.pad_color", pad_color, one_of(PAD_COLORS))
        self.size, self.fit, self.pad_color = as_size("ImageProcessor.size", size), fit, pad_color

    @classmethod
    def of_tokenizer(cls, config: WassersteinVQConfig) -> ImageProcessor:
        """The processor of a tokenizer: pictures get the size that it takes in the way of those it was trained on."""
        return cls(config.image_size, config.fit, config.pad_color)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        **kwargs: Any,
    ) -> ImageProcessor:
        """Load from the folder or Hub id of a tokenizer.

        Args:
            pretrained_model_name_or_path: the folder or Hub id.
            cache_dir, force_download, local_files_only, token, revision: options of the Hub client.
            kwargs: fields to change.

        Raises:
            CheckpointError: the file is missing or damaged.
            ConfigError: a size out of range.
            DownloadError: a Hub id that cannot be reached.
        """
        hub_options = {"cache_dir": cache_dir, "force_download": force_download, "token": token, "revision": revision}
        hub_options["local_files_only"] = local_files_only
        folder = resolve_folder(pretrained_model_name_or_path, "tokenizer", **hub_options)
        file = folder / "preprocessor_config.json"
        values = read_json(file, CheckpointError, f"{file} is missing: the folder holds no image processor")
        try:
            return cls.from_dict(values, **kwargs)
        except ConfigError:
            raise
        except DAMAGES as error:
            raise CheckpointError(f"{file} holds an impossible value ({first_line(error)})") from error

    def __call__(self, images: Image.Image | list[Image.Image], return_tensors: str = "pt") -> BatchFeature:
        """``pixel_values`` (B, 3, H, W) in [-1, 1] of one picture or a list of them, of any size and mode."""
        pictures = images if isinstance(images, list | tuple) else [images]
        pixels = torch.stack([to_pixels(self._fitted(picture)) for picture in pictures])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def _fitted(self, picture: Image.Image) -> Image.Image:
        return center_pad(picture, self.size, self.pad_color) if self.fit == "pad" else center_crop(picture, self.size)

    @staticmethod
    def postprocess(pixels: torch.Tensor) -> list[Image.Image]:
        """Pillow pictures of tensors (B, 3, H, W) in [-1, 1]."""
        return to_pil(pixels)
