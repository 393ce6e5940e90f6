"""ImageGenerationPipeline: tokenizer, generator and text encoder of one folder, for sampling only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from typing_extensions import Unpack

from wvq.checks import integer, require
from wvq.data.layout import codes_shape
from wvq.data.pixels import to_uint8
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.draws import check_fixed
from wvq.generator.base.fixed_rows import run_in_fixed_rows
from wvq.generator.base.linear import packed_weights
from wvq.generator.base.sampling_settings import SamplingOptions, SamplingSettings
from wvq.generator.likelihood import code_log_probabilities
from wvq.generator.sampling import sample_codes
from wvq.pipelines.call_options import repeated, require_size, seeds_of, updated_settings
from wvq.pipelines.conditions import ClassLabels, Prompts, Requested, check_call, condition_of, requested
from wvq.pipelines.memory import read_ahead, require_room, require_room_for_losses
from wvq.pipelines.output import ImagePipelineOutput
from wvq.pipelines.parts import PipelineParts
from wvq.settings.size import height_width
from wvq.tokenizer.picture_formats import Images, OutputType, as_type, require_output_type


class CallOptions(SamplingOptions, total=False):
    """Keyword options of a call beside conditions and type of pictures, for the signatures of each type."""

    num_images_per_prompt: int | None
    height: int | None
    width: int | None
    fixed_codes: torch.Tensor | None
    seed: int | None
    generator: torch.Generator | Sequence[torch.Generator] | None
    batch_size: int
    progress: bool


class ImageGenerationPipeline(PipelineParts):
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
        num_images_per_prompt: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fixed_codes: torch.Tensor | None = None,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
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
            num_images_per_prompt: pictures a condition, in place of ``num_images``.
            height, width: of the pictures, which a model has one of; for callers that give it.
            fixed_codes: (N, h, w) or (h, w) int64, codes to keep, -1 where they are to be drawn. A drawn code sees
                those before it row by row, and with ``passes`` all of them; see
                :func:`wvq.generator.sampling.sample_codes`.
            seed: picture i is drawn from seed + i; a random seed if None.
            generator: in place of a seed, as diffusers has it: its ``initial_seed()`` is the seed, and its state is
                neither used nor changed; or a list of one a picture.
            batch_size: pictures drawn at once. A picture depends on it by rounding alone, and not at all under
                ``deterministic``, which runs groups of a fixed number of pictures.
            output_type: ``pil``, ``np`` (uint8, N H W 3) or ``pt`` (float32, N 3 H W in [-1, 1]).
            progress: show a progress bar.
            sampling: fields of :class:`wvq.generator.base.sampling_settings.SamplingSettings`, such as
                ``guidance_scale`` and ``top_k``; the pipeline's own where None or left out.

        Raises:
            ConfigError: an unknown class or setting, a condition that the model does not have, a setting out of range,
                or a batch that does not fit into memory.
        """
        require_output_type(output_type)
        first, batch_size = check_call(0 if seed is None else seed, batch_size)
        require_size(height, width, height_width(self.tokenizer.config.image_size))
        known = ("class_labels", "prompt", "num_images", "output_type", *CallOptions.__annotations__)
        settings = updated_settings(self.sampling, sampling, known)
        request = requested(self.generator.config, class_labels, prompt, num_images)
        request = repeated(request, num_images, num_images_per_prompt)
        seeds = seeds_of(None if seed is None else first, generator, len(request))
        if fixed_codes is not None:
            shape = (len(seeds), *codes_shape(self.generator.config.code_layout))
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
        needed = require_room(self, min(batch_size, len(seeds)), settings, read_ahead(fixed_codes, settings))
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
        batch_size = require("batch_size", batch_size, integer())
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
