"""PipelineParts: the tokenizer, generator and text encoder of a pipeline: loaded, moved, cast, identified and saved."""

from __future__ import annotations

import os
import tempfile
import warnings
from typing import Any

import torch
from typing_extensions import Self, Unpack

from wvq.checks import PATH
from wvq.errors import ConfigError, WVQError
from wvq.files.origin import Origin
from wvq.files.user_folders import expand_user
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.models import load_generator
from wvq.generator.next_code.captured import release_captures
from wvq.generator.reduced import reduce_weights
from wvq.generator.text.encoder import TextEncoder
from wvq.models.loading_options import (
    FLOATING_TYPES,
    Device,
    LoadingOptions,
    refuse_others,
    take_device,
    take_dtype,
    take_hub_options,
)
from wvq.models.pretrained import model_hash, weights_hash
from wvq.models.reading import resolve_folder
from wvq.models.saving_options import (
    CommitOptions,
    PushOptions,
    SavingOptions,
    require_push_options,
    take_saving_options,
    upload_folder,
)
from wvq.pipelines.folders import Part, part_folder, read_sampling, write_pipeline
from wvq.pipelines.matching import require_sizes, require_text_encoder, require_tokenizer
from wvq.pipelines.model_card import CARD_NAME, model_card, rename, with_sampling
from wvq.tokenizer.modeling import WassersteinVQModel


class PipelineParts:
    """The parts of a pipeline that belong together, without what draws pictures with them.

    Args and errors are those of :class:`wvq.pipelines.image_generation.ImageGenerationPipeline`.
    """

    def __init__(
        self,
        tokenizer: WassersteinVQModel,
        generator: CodeGenerator,
        text_encoder: TextEncoder | None = None,
        sampling: SamplingSettings | None = None,
        ignore_tokenizer_mismatch: bool = False,
        ignore_text_encoder_mismatch: bool = False,
    ):
        require_sizes(generator.config, tokenizer.config, text_encoder)
        if not ignore_text_encoder_mismatch:
            require_text_encoder(generator.config, text_encoder)
        self.tokenizer, self.generator = tokenizer.eval(), generator.eval()
        self.text_encoder = text_encoder
        self.sampling = sampling or SamplingSettings()
        self.ignore_tokenizer_mismatch = ignore_tokenizer_mismatch
        self.ignore_text_encoder_mismatch = ignore_text_encoder_mismatch
        self.card: str | None = None
        self.origin: Origin | None = None  # of weights that another project has published

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in order of their ids; empty if the model has none."""
        return self.generator.config.class_names

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return self.generator.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the generator's weights."""
        return self.generator.dtype

    @property
    def components(self) -> dict[str, Part | None]:
        """The parts by name: ``ImageGenerationPipeline(**pipe.components)`` shares them, with sampling of its own."""
        return {"tokenizer": self.tokenizer, "generator": self.generator, "text_encoder": self.text_encoder}

    def to(
        self, *device_and_dtype: Device | torch.dtype, device: Device | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move all parts to a device; cast the generator's weights and the tokenizer's network; or both.

        Args:
            device_and_dtype: either or both, in any order: ``pipe.to("cuda", torch.float16)``.
            device: the device by its name.
            dtype: a floating type. The quantizer keeps float32 at least, and the text encoder in the type of its files.

        Raises:
            ConfigError: what cannot be used here, or what the generator's weights cannot be.
        """
        given: dict[str, Any] = {"device": device, "dtype": dtype}
        for value in device_and_dtype:
            name = "dtype" if isinstance(value, torch.dtype) or value in FLOATING_TYPES else "device"
            if given[name] is not None:
                raise ConfigError(f"to() takes one {name}, got {given[name]!r} and {value!r}")
            given[name] = value
        target, kind = take_device(given), take_dtype(given)
        reduced = self.generator.reduced
        if reduced and kind is not None:
            raise ConfigError(f"{reduced} weights cannot be cast; load the pipeline without weights, and with dtype")
        if reduced == "int8" and target is not None and target.type != "cpu":
            raise ConfigError(f"weights int8 run on the CPU alone, not on {target}; load the pipeline with bf16")
        release_captures(self.generator)
        for part in self.components.values():
            if part is not None and target is not None:
                part.to(target)
        if kind is not None:
            self.tokenizer.to(kind)
            self.generator.to(kind)
        return self

    def weights_hashes(self, former: dict[str, str] | None = None) -> dict[str, str]:
        """Hash of all that pictures depend on in each part: its weights, and what its config makes of them.

        Args:
            former: :meth:`former_hashes`, where they are known: hashing takes some .6 seconds a GB.
        """
        former = former or self.former_hashes()
        parts = {"generator": self.generator, "tokenizer": self.tokenizer}
        hashes = {name: model_hash(part, weights=former[name]) for name, part in parts.items()}
        if self.text_encoder is not None:
            hashes["text_encoder"] = self.text_encoder.identity()
        return hashes

    def former_hashes(self) -> dict[str, str]:
        """What earlier versions wrote in the place of :meth:`weights_hashes`: the hash of each part's weights alone."""
        hashes = {"generator": self.generator.full_hash or weights_hash(self.generator)}
        hashes["tokenizer"] = weights_hash(self.tokenizer)
        if self.text_encoder is not None:
            hashes["text_encoder"] = weights_hash(self.text_encoder.model)
        return hashes

    def numerics(self) -> dict[str, Any]:
        """What figures depend on beside the weights' values: how they are held, averaged and computed with."""
        parts = {"generator": self.generator, "tokenizer": self.tokenizer}
        dtypes = {name: str(part.dtype).removeprefix("torch.") for name, part in parts.items()}
        if self.generator.reduced:
            dtypes["generator"] = f"{self.generator.reduced} linear layers, else {dtypes['generator']}"
        return {
            "dtype": dtypes,
            "averaging_decay": {name: part.config.averaging_decay for name, part in parts.items()},
            "device": self.device.type,
        }

    # ---- folders

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: Device | None = None,
        dtype: torch.dtype | str | None = None,
        weights: str | None = None,
        ignore_tokenizer_mismatch: bool = False,
        ignore_text_encoder_mismatch: bool = False,
        **options: Unpack[LoadingOptions],
    ) -> Self:
        """Load a pipeline from a run folder or a Hub id.

        Args:
            path: folder with ``model_index.json``, or Hub id.
            device: where to put the parts, such as ``"cuda"``, or ``"auto"`` for the best there is; the CPU if None.
            dtype: floating type of the generator's weights and the tokenizer's network, or its name (``"bfloat16"``);
                as saved if None or ``"auto"``.
            weights: ``bf16`` or ``int8`` (on the CPU) keeps the generator's linear layers so, for faster sampling; see
                :mod:`wvq.generator.reduced`.
            ignore_tokenizer_mismatch: load a tokenizer other than the one that the generator was trained with.
            ignore_text_encoder_mismatch: the same of the text encoder.
            options: those of :class:`wvq.models.loading_options.LoadingOptions`.

        Raises:
            CheckpointError: a part is missing, damaged or does not fit the others.
            ConfigError: an unknown option, or one that asks for what cannot be had here.
            DownloadError: a Hub id that cannot be reached.
        """
        given: dict[str, Any] = {**options, "device": device, "dtype": dtype}
        hub_options, target, kind = take_hub_options(given), take_device(given), take_dtype(given)
        own = ("device", "dtype", "weights", "ignore_tokenizer_mismatch", "ignore_text_encoder_mismatch")
        refuse_others(given, cls, (*LoadingOptions.__annotations__, *own))
        folder = resolve_folder(path, "pipeline", **hub_options)
        sampling = read_sampling(folder)
        tokenizer = WassersteinVQModel.from_pretrained(part_folder(folder, "tokenizer"), dtype=kind)
        generator = load_generator(part_folder(folder, "generator"), dtype=kind)
        config, text_encoder = generator.config, None
        if config.text_dim:
            source = part_folder(folder, "text_encoder")
            text_encoder = TextEncoder(
                source, config.text_length, padding=config.text_padding, cleaning=config.text_cleaning
            )
        try:
            ignored = (ignore_tokenizer_mismatch, ignore_text_encoder_mismatch)
            pipeline = cls(tokenizer, generator, text_encoder, sampling, *ignored)
            pipeline.require_matching_parts()
        except WVQError as error:
            raise type(error)(f"{folder}: {error}") from error
        if target is not None:
            pipeline.to(target)
        if weights is not None:
            reduce_weights(pipeline.generator, weights)
        card = folder / CARD_NAME
        pipeline.card = card.read_text(encoding="utf-8") if card.is_file() else None
        pipeline.origin = Origin.read(folder)
        return pipeline

    def require_matching_parts(self) -> None:
        """Check that the parts belong together, as far as no mismatch is to be ignored; loading and saving do so.

        Raises:
            ConfigError: their sizes do not fit.
            CheckpointError: the generator was trained with another tokenizer or text encoder.
        """
        require_sizes(self.generator.config, self.tokenizer.config, self.text_encoder)
        if not self.ignore_tokenizer_mismatch:
            require_tokenizer(self.generator.config, self.tokenizer)
        if not self.ignore_text_encoder_mismatch:
            require_text_encoder(self.generator.config, self.text_encoder)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        card: str | None = None,
        push_to_hub: bool = False,
        **options: Unpack[SavingOptions],
    ) -> None:
        """Write the pipeline: a folder for each part, the model card, and last ``model_index.json``.

        A part that is there already with the same weights and config stays as it is. Weights are saved in the type that
        they have; a tokenizer that was cast since its training may give a picture other codes in places.

        Args:
            folder: new or existing folder.
            card: text of ``README.md``; if None, the one that the pipeline was loaded or last saved with, or else one
                made from the configs. Its line on the sampling defaults becomes that of ``sampling``.
            push_to_hub: upload the pipeline too, by :meth:`push_to_hub`.
            options: size of a weight file, and the options of the upload.

        Raises:
            CheckpointError: the folder holds a part that is another one, or a README or index that is no pipeline's; or
                the parts are such that loading would refuse them.
            ConfigError: the generator's weights are reduced; or an option that is unknown or asks for what is not done
                here.
            DownloadError: the Hub cannot be reached.
        """
        shards, upload = take_saving_options(options, f"{type(self).__name__}.save_pretrained", push_to_hub)
        if self.generator.reduced:
            raise ConfigError(f"a pipeline cannot be saved with {self.generator.reduced} weights; load it without")
        self.require_matching_parts()
        card = with_sampling(card or self.card or model_card(self), self.sampling)
        target = expand_user(folder, "folder", PATH)
        write_pipeline(target, self.components, self.sampling, card, **shards)
        if self.origin is not None:
            self.origin.save(target)
        self.card = card
        if self.tokenizer.config.cast_hashes:
            warnings.warn(
                f"the tokenizer is saved in {str(self.tokenizer.dtype).removeprefix('torch.')}: it may give a picture "
                "other codes in places than the one that the generator was trained with",
                stacklevel=2,
            )
        if push_to_hub:
            self.push_to_hub(upload.pop("repo_id", target.name), **upload, **shards)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        max_shard_size: int | str | None = None,
        **commit: Unpack[CommitOptions],
    ) -> str:
        """Upload the pipeline to the Hugging Face Hub; returns the address of the commit.

        Args:
            repo_id: owner/name; the repository is made if it is not there.
            private, token, revision, max_shard_size: see :class:`wvq.models.saving_options.PushOptions`.
            commit: those of :class:`wvq.models.saving_options.CommitOptions`.

        Raises:
            ConfigError: an unknown option, or one out of range.
            DownloadError: the Hub cannot be reached.
        """
        require_push_options(commit, f"{type(self).__name__}.push_to_hub", PushOptions.__annotations__)
        with tempfile.TemporaryDirectory() as folder:
            card = rename(self.card or model_card(self), repo_id)
            self.save_pretrained(folder, card, max_shard_size=max_shard_size)
            return upload_folder(folder, repo_id, private, token, revision, **commit)
