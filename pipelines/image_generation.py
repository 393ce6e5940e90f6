"""ImageGenerationPipeline: tokenizer, generator and text encoder of one folder, for sampling only."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

import wvq
from wvq.data.pixels import to_uint8
from wvq.errors import ConfigError, DownloadError, WVQError, first_line, near_match
from wvq.files.atomic import whole_folder, write_json, write_text
from wvq.files.names import INDEX_NAME
from wvq.generator.conditioning import NULL_CLASS, Condition
from wvq.generator.fixed_rows import run_in_fixed_rows
from wvq.generator.likelihood import code_log_probabilities
from wvq.generator.linear import packed_weights
from wvq.generator.modeling import ImageCodeTransformer
from wvq.generator.reduced import reduce_weights
from wvq.generator.sampling import check_fixed, sample_codes
from wvq.generator.sampling_settings import SamplingSettings
from wvq.generator.text.encoder import TextEncoder
from wvq.models.pretrained import model_hash, resolve_folder, weights_hash
from wvq.pipelines.conditions import Requested, check_call, requested
from wvq.pipelines.folders import (
    PARTS,
    PIPELINE_CLASS,
    already_holds,
    part_folder,
    read_sampling,
    refuse_foreign_files,
)
from wvq.pipelines.matching import require_sizes, require_text_encoder, require_tokenizer
from wvq.pipelines.memory import first_free, require_room, require_room_for_losses
from wvq.pipelines.model_card import CARD_NAME, model_card, rename
from wvq.pipelines.output import OUTPUT_TYPES, ImagePipelineOutput, as_type
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.processing import ImageProcessor


class ImageGenerationPipeline:
    """Draws pictures from class names, prompts, both or nothing.

    Args:
        tokenizer: turns codes into pictures.
        generator: draws codes.
        text_encoder: needed by a text-conditional generator.
        sampling: settings that a call uses where it gives none.
        ignore_tokenizer_mismatch: save a tokenizer other than the one that the generator was trained with.
        ignore_text_encoder_mismatch: take a text encoder other than the one that the generator was trained with.

    Raises:
        ConfigError: sizes of the parts that do not fit.
        CheckpointError: another text encoder than the one that the generator was trained with.

    Example::

        pipe = ImageGenerationPipeline.from_pretrained("runs/openmoji")
        pipe(class_labels=["flags", 3], num_images=8, guidance_scale=3.0, seed=0).images
        pipe(prompt="red apple", num_images=4).images
    """

    def __init__(
        self,
        tokenizer: WassersteinVQModel,
        generator: ImageCodeTransformer,
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

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in order of their ids; empty if the model has none."""
        return self.generator.config.class_names

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return self.generator.device

    def to(self, device: torch.device | str) -> ImageGenerationPipeline:
        """Move all parts to a device.

        Raises:
            ConfigError: a device that the generator's weights cannot be on.
        """
        if self.generator.reduced == "int8" and torch.device(device).type != "cpu":
            raise ConfigError(f"weights int8 run on the CPU alone, not on {device}; load the pipeline with bf16")
        for part in (self.tokenizer, self.generator, self.text_encoder):
            if part is not None:
                part.to(device)
        return self

    def weights_hashes(self, former: dict[str, str] | None = None) -> dict[str, str]:
        """Hash of all that pictures depend on in each part: its weights, and what its config makes of them.

        Args:
            former: :meth:`former_hashes`, where they are known: hashing takes some .6 seconds a GB.
        """
        former = former or self.former_hashes()
        parts = {"generator": self.generator, "tokenizer": self.tokenizer}
        found = {name: model_hash(part, weights=former[name]) for name, part in parts.items()}
        if self.text_encoder is not None:
            found["text_encoder"] = self.text_encoder.identity()
        return found

    def former_hashes(self) -> dict[str, str]:
        """What earlier versions wrote in the place of :meth:`weights_hashes`: the hash of each part's weights alone."""
        found = {"generator": self.generator.full_hash or weights_hash(self.generator)}
        found["tokenizer"] = weights_hash(self.tokenizer)
        if self.text_encoder is not None:
            found["text_encoder"] = weights_hash(self.text_encoder.model)
        return found

    def numerics(self) -> dict:
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
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        weights: str | None = None,
        ignore_tokenizer_mismatch: bool = False,
        ignore_text_encoder_mismatch: bool = False,
        **hub_options,
    ) -> ImageGenerationPipeline:
        """Load a pipeline from a run folder or a Hub id.

        Args:
            path: folder with ``model_index.json``, or Hub id.
            device: where to put the parts.
            dtype: of the generator's weights and the tokenizer's network; as saved if None.
            weights: ``bf16`` or ``int8`` (on the CPU) keeps the generator's linear layers so, for faster sampling; see
                :mod:`wvq.generator.reduced`.
            ignore_tokenizer_mismatch: load a tokenizer other than the one that the generator was trained with.
            ignore_text_encoder_mismatch: the same of the text encoder.
            hub_options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Raises:
            CheckpointError: a part is missing, damaged or does not fit the others.
            ConfigError: unknown ``weights``, or some that cannot be had here.
            DownloadError: a Hub id that cannot be reached.
        """
        folder = resolve_folder(path, "pipeline", **hub_options)
        sampling = read_sampling(folder)
        options = {} if dtype is None else {"dtype": dtype}
        tokenizer = WassersteinVQModel.from_pretrained(part_folder(folder, "tokenizer"))
        generator = ImageCodeTransformer.from_pretrained(part_folder(folder, "generator"), **options)
        config, text_encoder = generator.config, None
        if config.text_dim:
            source = part_folder(folder, "text_encoder")
            text_encoder = TextEncoder(source, config.text_length, padding=config.text_padding)
        try:
            if not ignore_tokenizer_mismatch:
                require_tokenizer(config, tokenizer)
            if dtype is not None:  # the hash is that of the weights as saved
                tokenizer = WassersteinVQModel.from_pretrained(folder / "tokenizer", **options)
            ignored = (ignore_tokenizer_mismatch, ignore_text_encoder_mismatch)
            pipeline = cls(tokenizer, generator, text_encoder, sampling, *ignored).to(device)
        except WVQError as error:
            raise type(error)(f"{folder}: {error}") from error
        if weights is not None:
            reduce_weights(pipeline.generator, weights)
        card = folder / CARD_NAME
        pipeline.card = card.read_text(encoding="utf-8") if card.is_file() else None
        return pipeline

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> None:
        """Write the pipeline: a folder for each part, the model card, and last ``model_index.json``.

        A part that is there already with the same weights and config stays as it is.

        Args:
            folder: new or existing folder.
            card: text of ``README.md``; if None, the one that the pipeline was loaded or last saved with, or else one
                made from the configs.

        Raises:
            CheckpointError: the folder holds a part that is another one, or a README or index that is no pipeline's; or
                the parts are such that loading would refuse them.
            ConfigError: the generator's weights are reduced.
        """
        folder = Path(folder)
        if self.generator.reduced:
            raise ConfigError(f"a pipeline cannot be saved with {self.generator.reduced} weights; load it without")
        if not self.ignore_tokenizer_mismatch:
            require_tokenizer(self.generator.config, self.tokenizer)
        if not self.ignore_text_encoder_mismatch:
            require_text_encoder(self.generator.config, self.text_encoder)
        card = card or self.card or model_card(self)
        refuse_foreign_files(folder, card)
        parts = {"tokenizer": self.tokenizer, "generator": self.generator, "text_encoder": self.text_encoder}
        missing = {  # all looked at before any is written
            name: part for name, part in parts.items() if part is not None and not already_holds(folder, name, part)
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in missing.items():
            with whole_folder(folder / name) as partial:
                part.save_pretrained(partial)
                if name == "tokenizer":
                    ImageProcessor(size=part.config.image_size).save_pretrained(partial)
        self.card = card
        write_text(folder / CARD_NAME, card)
        write_json(
            folder / INDEX_NAME,
            {
                "_class_name": PIPELINE_CLASS,
                "wvq_version": wvq.__version__,
                **PARTS,
                "text_encoder": PARTS["text_encoder"] if self.text_encoder is not None else None,
                "sampling": asdict(self.sampling),
            },
        )

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Upload the pipeline to the Hugging Face Hub; returns the address of the commit.

        Raises:
            DownloadError: the Hub cannot be reached.
        """
        import tempfile

        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, rename(self.card or model_card(self), repo_id))
            try:
                api = HfApi(token=token)
                api.create_repo(repo_id, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repo_id, folder_path=folder))
            except Exception as error:  # the hub client raises many families: HTTP, offline, validation
                raise DownloadError(f'"{repo_id}" could not be pushed to the Hub ({first_line(error)})') from error

    # ---- sampling

    def __call__(
        self,
        class_labels: str | int | Sequence[str | int] | None = None,
        prompt: str | Sequence[str] | None = None,
        num_images: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        guidance_schedule: str | None = None,
        guidance_power: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        window: int | None = None,
        deterministic: bool | None = None,
        fixed_codes: torch.Tensor | None = None,
        seed: int | None = None,
        batch_size: int = 32,
        output_type: str = "pil",
        progress: bool = False,
    ) -> ImagePipelineOutput:
        """Draw pictures.

        Args:
            class_labels: names or ids of classes; none for the null class.
            prompt: texts; none for the null text. With classes too, both lists must be of one length or one long.
            num_images: pictures in all, a multiple of the number of conditions, which are served in order; one a
                condition if None.
            guidance_scale, temperature, top_k, top_p, min_p, guidance_schedule, guidance_power, guidance_interval,
                window, deterministic: see :class:`SamplingSettings`; the pipeline's own if None.
            fixed_codes: (N, h, w) or (h, w) int64, codes to keep, -1 where they are to be drawn; see
                :func:`wvq.generator.sampling.sample_codes`.
            seed: picture i is drawn from seed + i; a random seed if None.
            batch_size: pictures drawn at once. A picture depends on it by rounding alone, and not at all under
                ``deterministic``, which runs groups of a fixed number of pictures.
            output_type: ``pil``, ``np`` (uint8, N H W 3) or ``pt`` (float32, N 3 H W in [-1, 1]).
            progress: show a progress bar.

        Raises:
            ConfigError: an unknown class, a condition that the model does not have, a setting out of range, or a batch
                that does not fit into memory.
        """
        if output_type not in OUTPUT_TYPES:
            near = near_match(output_type, OUTPUT_TYPES)
            raise ConfigError(f'output_type "{output_type}" is unknown{near}; one of {", ".join(OUTPUT_TYPES)}')
        check_call(0 if seed is None else seed, batch_size)
        settings = self.sampling.updated(
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            guidance_schedule=guidance_schedule,
            guidance_power=guidance_power,
            guidance_interval=guidance_interval,
            window=window,
            deterministic=deterministic,
        )
        wanted = requested(self.generator.config, class_labels, prompt, num_images)
        seed = secrets.randbelow(2**31) if seed is None else seed
        seeds = [seed + index for index in range(len(wanted))]
        if fixed_codes is not None:
            shape = (len(seeds), *self.generator.config.grid)
            fixed_codes = torch.as_tensor(fixed_codes)
            fixed_codes = fixed_codes.expand(shape) if fixed_codes.shape == shape[1:] else fixed_codes
            check_fixed(fixed_codes, shape, self.generator.config.num_codes)
        return self.draw(wanted, seeds, settings, batch_size, output_type, progress, fixed_codes)

    @torch.no_grad()  # inference_mode would make pictures that cannot be trained on
    def draw(
        self,
        wanted: Requested,
        seeds: list[int],
        settings: SamplingSettings,
        batch_size: int = 32,
        output_type: str = "pil",
        progress: bool = False,
        fixed_codes: torch.Tensor | None = None,
    ) -> ImagePipelineOutput:
        """Draw N pictures from a condition and a seed each; arguments as in a call, checked.

        Raises:
            ConfigError: a batch that does not fit into memory.
        """
        batch_size = settings.whole_batch(batch_size)
        needed = require_room(self, min(batch_size, len(seeds)), settings, first_free(fixed_codes))
        codes, pictures = [], []
        batches = range(0, len(seeds), batch_size)
        with packed_weights(self.generator, settings.deterministic, beside=needed):  # once for all batches
            for start in tqdm(batches, desc="sampling", unit="batch", disable=not progress):
                part = slice(start, start + batch_size)
                condition = self._condition(wanted[part], settings.deterministic)
                fixed = None if fixed_codes is None else fixed_codes[part]
                drawn = sample_codes(
                    self.generator, condition, seeds[part], settings, progress and len(batches) == 1, fixed
                )
                codes.append(drawn.cpu())
                decoded = self._decoded(drawn, seeds[part], settings).float().cpu()
                pictures.append(decoded if output_type == "pt" else to_uint8(decoded))  # a quarter of the memory
        return ImagePipelineOutput(as_type(torch.cat(pictures), output_type), torch.cat(codes), seeds)

    def _decoded(self, codes: torch.Tensor, seeds: list[int], settings: SamplingSettings) -> torch.Tensor:
        """Pictures (B, 3, H, W) of drawn codes."""
        if settings.fixed_rows is None:
            return self.tokenizer.decode_codes(codes)
        return run_in_fixed_rows(
            seeds, settings.fixed_rows, lambda numbers: self.tokenizer.decode_codes(codes[numbers])
        )

    def log_likelihood(
        self,
        codes: torch.Tensor,
        class_labels: str | int | Sequence[str | int] | None = None,
        prompt: str | Sequence[str] | None = None,
        batch_size: int = 32,
    ) -> torch.Tensor:
        """Exact ln p of pictures' codes under their conditions, without guidance.

        Args:
            codes: (N, h, w) int64, of :meth:`WassersteinVQModel.encode` or of a call.
            class_labels, prompt: as in a call; one for all, or one a picture.
            batch_size: pictures at once.

        Returns:
            (N,) float32, in nats; divided by ln 2 and the number of pixels it is bits per pixel of the codes.

        Raises:
            ConfigError: codes or conditions that do not fit the model, or a batch that does not fit into memory.
        """
        wanted = requested(self.generator.config, class_labels, prompt, len(codes))
        require_room_for_losses(self, min(batch_size, len(codes)))
        parts = [slice(start, start + batch_size) for start in range(0, len(codes), batch_size)]
        conditions = (self._condition(wanted[part]) for part in parts)
        found = [
            code_log_probabilities(self.generator, codes[part], condition).sum(1).cpu()
            for part, condition in zip(parts, conditions, strict=True)
        ]
        return torch.cat(found)

    def _condition(self, wanted: Requested, deterministic: bool = False) -> Condition:
        config, condition = self.generator.config, Condition()
        if config.num_classes:
            ids = [NULL_CLASS if label is None else label for label in wanted.labels]
            condition.class_labels = torch.tensor(ids, device=self.device)
        if config.text_dim:
            prompts = [prompt or "" for prompt in wanted.prompts]
            if deterministic:  # each text by itself, once
                unique = list(dict.fromkeys(prompts))
                rows = [unique.index(prompt) for prompt in prompts]
                features, mask = (x[rows] for x in self.text_encoder.encode(unique, batch_size=1))
            else:
                features, mask = self.text_encoder.encode(prompts)
            condition.text_features, condition.text_mask = features.to(self.device), mask.to(self.device)
        return condition
