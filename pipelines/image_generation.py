"""ImageGenerationPipeline: tokenizer, generator and text encoder of one folder, for sampling only."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from typing_extensions import Unpack

from wvq.data.pixels import to_uint8
from wvq.errors import ConfigError, DownloadError, WVQError, first_line, near_match
from wvq.generator.conditioning import Condition
from wvq.generator.fixed_rows import run_in_fixed_rows
from wvq.generator.likelihood import code_log_probabilities
from wvq.generator.linear import packed_weights
from wvq.generator.modeling import ImageCodeTransformer
from wvq.generator.reduced import reduce_weights
from wvq.generator.sampling import check_fixed, sample_codes
from wvq.generator.sampling_settings import SamplingOptions, SamplingSettings
from wvq.generator.text.encoder import TextEncoder
from wvq.models.pretrained import model_hash, resolve_folder, weights_hash
from wvq.pipelines.conditions import ClassLabels, Prompts, Requested, check_call, condition_of, requested
from wvq.pipelines.folders import part_folder, read_sampling, write_pipeline
from wvq.pipelines.matching import require_sizes, require_text_encoder, require_tokenizer
from wvq.pipelines.memory import first_free, require_room, require_room_for_losses
from wvq.pipelines.model_card import CARD_NAME, model_card, rename, with_sampling
from wvq.pipelines.output import OUTPUT_TYPES, ImagePipelineOutput, Images, OutputType, as_type
from wvq.tokenizer.modeling import WassersteinVQModel


class CallOptions(SamplingOptions, total=False):
    """Keyword options of a call beside conditions and type of pictures, for the signatures of each type."""

    fixed_codes: torch.Tensor | None
    seed: int | None
    batch_size: int
    progress: bool


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
            former: :meth:`former_hashes`, where they are known: hashing takes about .6 seconds a GB.
        """
        former = former or self.former_hashes()
        parts = {"generator": self.generator, "tokenizer": self.tokenizer}
        hashes = {name: model_hash(part, weights=former[name]) for name, part in parts.items()}
        if self.text_encoder is not None:
            hashes["text_encoder"] = self.text_encoder.identity()
        return hashes

    def former_hashes(self) -> dict[str, str]:
        """What earlier versions wrote instead of :meth:`weights_hashes`: the hash of each part's weights alone."""
        hashes = {"generator": self.generator.full_hash or weights_hash(self.generator)}
        hashes["tokenizer"] = weights_hash(self.tokenizer)
        if self.text_encoder is not None:
            hashes["text_encoder"] = weights_hash(self.text_encoder.model)
        return hashes

    def numerics(self) -> dict[str, Any]:
        """All that figures depend on beside the weights' values: type, averaging and device."""
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
        **hub_options: Any,
    ) -> ImageGenerationPipeline:
        """Load a pipeline from a run folder or a Hub id.

        Args:
            path: folder with ``model_index.json``, or Hub id.
            device: where to put the parts.
            dtype: type of the generator's weights and the tokenizer's network; as saved if None.
            weights: ``bf16`` or ``int8`` (on the CPU) keeps the generator's linear layers so, for faster sampling; see
                :mod:`wvq.generator.reduced`.
            ignore_tokenizer_mismatch: load a tokenizer other than the one that the generator was trained with.
            ignore_text_encoder_mismatch: the same of the text encoder.
            hub_options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Raises:
            CheckpointError: a part is missing, damaged or does not fit the others.
            ConfigError: unknown ``weights``, or a kind that does not run here.
            DownloadError: a Hub id that cannot be reached.
        """
        folder = resolve_folder(path, "pipeline", **hub_options)
        sampling = read_sampling(folder)
        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
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

        A part that is there already with the same weights and config is not written again.

        Args:
            folder: new or existing folder.
            card: text of ``README.md``; if None, the one that the pipeline was loaded or last saved with, or else one
                made from the configs. Its line on the sampling defaults becomes that of ``sampling``.

        Raises:
            CheckpointError: the folder holds a part that is another one, or a README or index that is no pipeline's; or
                the parts are such that loading would refuse them.
            ConfigError: the generator's weights are reduced.
        """
        if self.generator.reduced:
            raise ConfigError(f"a pipeline cannot be saved with {self.generator.reduced} weights; load it without")
        if not self.ignore_tokenizer_mismatch:
            require_tokenizer(self.generator.config, self.tokenizer)
        if not self.ignore_text_encoder_mismatch:
            require_text_encoder(self.generator.config, self.text_encoder)
        card = with_sampling(card or self.card or model_card(self), self.sampling)
        write_pipeline(Path(folder), self.tokenizer, self.generator, self.text_encoder, self.sampling, card)
        self.card = card

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Upload the pipeline to the Hugging Face Hub; returns the address of the commit.

        Raises:
            DownloadError: the Hub cannot be reached.
        """
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

    @overload
    def __call__(
        self,
        class_labels: ClassLabels = None,
        prompt: Prompts = None,
        num_images: int | None = None,
        *,
        output_type: Literal["pil"] = "pil",
        **options: Unpack[CallOptions],
    ) -> ImagePipelineOutput[list[Image.Image]]: ...

    @overload
    def __call__(
        self,
        class_labels: ClassLabels = None,
        prompt: Prompts = None,
        num_images: int | None = None,
        *,
        output_type: Literal["np"],
        **options: Unpack[CallOptions],
    ) -> ImagePipelineOutput[np.ndarray]: ...

    @overload
    def __call__(
        self,
        class_labels: ClassLabels = None,
        prompt: Prompts = None,
        num_images: int | None = None,
        *,
        output_type: Literal["pt"],
        **options: Unpack[CallOptions],
    ) -> ImagePipelineOutput[torch.Tensor]: ...

    def __call__(
        self,
        class_labels: ClassLabels = None,
        prompt: Prompts = None,
        num_images: int | None = None,
        *,
        fixed_codes: torch.Tensor | None = None,
        seed: int | None = None,
        batch_size: int = 32,
        output_type: OutputType = "pil",
        progress: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> ImagePipelineOutput[Images]:
        """Draw pictures.

        Args:
            class_labels: names or ids of classes; none for the null class.
            prompt: texts; none for the null text. With classes too, both lists must be of one length or one long.
            num_images: pictures in all, a multiple of the number of conditions, which follow in order; one a
                condition if None.
            fixed_codes: (N, h, w) or (h, w) int64, codes to keep, -1 where they are to be drawn; see
                :func:`wvq.generator.sampling.sample_codes`.
            seed: picture i is drawn from seed + i; a random seed if None.
            batch_size: pictures drawn at once. A picture depends on it by rounding alone, and not at all under
                ``deterministic``, which runs groups of a fixed number of pictures.
            output_type: ``pil``, ``np`` (uint8, N H W 3) or ``pt`` (float32, N 3 H W in [-1, 1]).
            progress: show a progress bar.
            sampling: fields of :class:`wvq.generator.sampling_settings.SamplingSettings`, such as ``guidance_scale``
                and ``top_k``; the pipeline's own where None or left out.

        Raises:
            ConfigError: an unknown class or setting, a condition that the model does not have, a setting out of range,
                or a batch that does not fit into memory.
        """
        if output_type not in OUTPUT_TYPES:
            near = near_match(output_type, OUTPUT_TYPES)
            raise ConfigError(f'output_type "{output_type}" is unknown{near}; one of {", ".join(OUTPUT_TYPES)}')
        check_call(0 if seed is None else seed, batch_size)
        settings = self.sampling.updated(**sampling)
        request = requested(self.generator.config, class_labels, prompt, num_images)
        seed = secrets.randbelow(2**31) if seed is None else seed
        seeds = [seed + index for index in range(len(request))]
        if fixed_codes is not None:
            shape = (len(seeds), *self.generator.config.grid)
            fixed_codes = torch.as_tensor(fixed_codes)
            fixed_codes = fixed_codes.expand(shape) if fixed_codes.shape == shape[1:] else fixed_codes
            check_fixed(fixed_codes, shape, self.generator.config.num_codes)
        return self.draw(request, seeds, settings, batch_size, output_type, progress, fixed_codes)

    @torch.no_grad()  # inference_mode would make pictures that cannot be trained on
    def draw(
        self,
        request: Requested,
        seeds: list[int],
        settings: SamplingSettings,
        batch_size: int = 32,
        output_type: OutputType = "pil",
        progress: bool = False,
        fixed_codes: torch.Tensor | None = None,
    ) -> ImagePipelineOutput[Images]:
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
                condition = self._condition(request[part], settings.deterministic)
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
        class_labels: ClassLabels = None,
        prompt: Prompts = None,
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
        request = requested(self.generator.config, class_labels, prompt, len(codes))
        require_room_for_losses(self, min(batch_size, len(codes)))
        sums = []
        for start in range(0, len(codes), batch_size):
            part = slice(start, start + batch_size)
            condition = self._condition(request[part])
            sums.append(code_log_probabilities(self.generator, codes[part], condition).sum(1).cpu())
        return torch.cat(sums)

    def _condition(self, request: Requested, one_by_one: bool = False) -> Condition:
        return condition_of(request, self.generator.config, self.text_encoder, self.device, one_by_one)
