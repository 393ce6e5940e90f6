"""Models of other projects by name: fetched and brought into this form once, and loaded from there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from wvq.errors import ConfigError
from wvq.files.user_folders import cache_folder, expand_user
from wvq.models.loading_options import Device
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.published.catalogue import find_published
from wvq.pipelines.published.importing import import_once
from wvq.pipelines.published.recipes import ImportRecipe
from wvq.tokenizer.modeling import WassersteinVQModel

_FORM = 1  # of what an import makes: raise it where that changes, and models are converted again


def load_published(
    name: str,
    *,
    device: Device | None = None,
    dtype: torch.dtype | str | None = None,
    weights: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> ImageGenerationPipeline:
    """The pipeline of a model that another project has published.

    Its files are downloaded from the Hub and converted when it is loaded for the first time; ``wvq import`` writes the
    same pipeline into a folder of the user's own.

    Args:
        name: such as ``llamagen-b-256``; ``wvq import --list`` shows all.
        device, dtype, weights: as of :meth:`ImageGenerationPipeline.from_pretrained`.
        cache_dir: where downloads and the pipeline are kept; the Hub's own folder and ``WVQ_CACHE`` if None.
        token: for the Hub; True takes the one that is stored on this machine.
        local_files_only: take what was downloaded before.

    Raises:
        ConfigError: an unknown name, a tokenizer's, or one whose files must be downloaded by hand.
        DownloadError: a file that cannot be fetched.
        CheckpointError: a file that is damaged.

    Example::

        pipe = wvq.load_published("llamagen-b-256", device="cuda")
        pipe(class_labels=["golden retriever", 387], num_images=8, seed=0).images
    """
    if find_published(name).generator is None:
        raise ConfigError(f'"{name}" is a tokenizer; load it by load_published_tokenizer')
    folder = _folder(name, cache_dir, token, local_files_only)
    return ImageGenerationPipeline.from_pretrained(folder, device=device, dtype=dtype, weights=weights)


def load_published_tokenizer(
    name: str,
    *,
    device: Device | None = None,
    dtype: torch.dtype | str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> WassersteinVQModel:
    """A tokenizer that another project has published, such as ``llamagen-vq-ds16-c2i``.

    Arguments are those of :func:`load_published`.

    Raises:
        ConfigError: an unknown name, a pipeline's, or one whose files must be downloaded by hand.
        DownloadError: a file that cannot be fetched.
        CheckpointError: a file that is damaged.
    """
    if find_published(name).generator is not None:
        raise ConfigError(f'"{name}" is a pipeline; load it by load_published, and take its tokenizer')
    folder = _folder(name, cache_dir, token, local_files_only)
    return WassersteinVQModel.from_pretrained(folder, device=device, dtype=dtype)


def _folder(
    name: str, cache_dir: str | os.PathLike[str] | None, token: str | bool | None, local_files_only: bool
) -> Path:
    """The folder of a published model in the cache, made if need be."""
    hub_options: dict[str, Any] = {"token": token, "local_files_only": local_files_only}
    if cache_dir is not None:
        root = hub_options["cache_dir"] = expand_user(cache_dir, "cache_dir")
    else:
        try:
            root = cache_folder()
        except FileNotFoundError as error:
            raise ConfigError(f"cache_dir: {error.strerror}; give one, or set WVQ_CACHE") from error
    folder = root / "published" / f"form_{_FORM}" / name
    import_once(ImportRecipe(name, str(folder)), **hub_options)
    return folder
