"""ImageProcessor: Pillow pictures to the tokenizer's tensors and back."""

from __future__ import annotations

import os
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_base import ImageProcessingMixin

from wvq.checks import PATH, integer, require
from wvq.data.pixels import center_crop, to_pil, to_pixels
from wvq.errors import CheckpointError, ConfigError, first_line
from wvq.files.atomic import read_json
from wvq.files.user_folders import expand_user
from wvq.models.pretrained import DAMAGES, resolve_folder


class ImageProcessor(ImageProcessingMixin):
    """Centre-crops pictures to the tokenizer's size (as ADM does), scales them to [-1, 1], and turns tensors back.

    Args:
        size: side of the square pictures, in pixels.

    Example::

        processor = ImageProcessor.from_pretrained("runs/openmoji/tokenizer")
        pixel_values = processor(pictures).pixel_values
        pictures = processor.postprocess(tokenizer.decode_codes(codes))
    """

    model_input_names = ["pixel_values"]

    def __init__(self, size: int = 256, **kwargs: Any):
        super().__init__(**kwargs)
        self.size = require("ImageProcessor.size", size, integer())

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

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:  # type: ignore[override]
        """Write ``preprocessor_config.json`` into a folder; arguments as in transformers."""
        return super().save_pretrained(expand_user(save_directory, "save_directory", PATH), **kwargs)

    def __call__(self, images: Image.Image | list[Image.Image], return_tensors: str = "pt") -> BatchFeature:
        """``pixel_values`` (B, 3, size, size) in [-1, 1] of one picture or a list of them, of any size and mode."""
        pictures = images if isinstance(images, list | tuple) else [images]
        pixels = torch.stack([to_pixels(center_crop(picture, self.size)) for picture in pictures])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    @staticmethod
    def postprocess(pixels: torch.Tensor) -> list[Image.Image]:
        """Pillow pictures of tensors (B, 3, H, W) in [-1, 1]."""
        return to_pil(pixels)
