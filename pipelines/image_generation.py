"""ImageGenerationPipeline: tokenizer, generator and text encoder of one folder, for sampling only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from typing_extensions import Unpack

from wvq.checks import integer, require
from wvq.data.pixels import to_pil, to_uint8
from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.fixed_rows import run_in_fixed_rows
from wvq.generator.base.linear import packed_weights
from wvq.generator.base.previews import Preview
from wvq.generator.base.sampling_settings import SamplingOptions, SamplingSettings
from wvq.generator.likelihood import code_log_probabilities
from wvq.generator.sampling import check_sampling, sample_codes
from wvq.pipelines.call_options import repeated, require_size, seeds_of, updated_settings
from wvq.pipelines.conditions import ClassLabels, Prompts, Requested, check_call, condition_of, requested
from wvq.pipelines.given import codes_for_each, given_pictures
from wvq.pipelines.memory import read_ahead, require_room, require_room_for_losses
from wvq.pipelines.output import ImagePipelineOutput
from wvq.pipelines.parts import PipelineParts
from wvq.settings.size import height_width
from wvq.tokenizer.picture_formats import Images, OutputType, PictureInput, as_type, require_output_type

# Called after each scale of a batch with its number, from 0, and the batch's pictures as the scales so far give them.
PreviewCallback: TypeAlias = Callable[[int, list[Image.Image]], None]


class CallOptions(SamplingOptions, total=False):
    """Keyword options of a call beside conditions and type of pictures, for the signatures of each type."""

    num_images_per_prompt: int | None
    height: int | None
    width: int | None
    fixed_codes: torch.Tensor | None
    image: PictureInput | None
    mask_image: PictureInput | None
    keep_scales: int | None
    callback: PreviewCallback | None
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
        image: PictureInput | None = None,
        mask_image: PictureInput | None = None,
        keep_scales: int | None = None,
        callback: PreviewCallback | None = None,
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
            fixed_codes: codes to keep, int64, -1 where they are to be drawn: of each of the N pictures or of one for
                all, in the shape of the tokenizer's codes: (N, h, w), (N, h, w, G) of several codebooks, (N, T) of
                several scales. A drawn code sees those before it, and with ``passes`` all of them; see
                :func:`wvq.generator.sampling.sample_codes`.
            image: pictures to keep in part, one for all or one a picture: Pillow, arrays, tensors or files
                (:func:`wvq.tokenizer.picture_formats.as_pictures`). Their codes are kept, not their pixels: what is
                returned is decoded as a whole.
            mask_image: white where the picture is drawn anew, of its size; one for all or one a picture. A code is
                drawn where more than half of its pixels are white, on every scale. With another class it edits
                pictures.
            keep_scales: scales of ``image`` that are kept, the coarsest first, whatever the mask: variations of a
                picture that agree with it at low resolution. Of generators that draw scale by scale.
            callback: called as ``callback(scale, images)`` after each scale of each batch, with the batch's pictures
                (Pillow) as the scales so far give them. Of generators that draw scale by scale.
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
            ConfigError: an unknown class or setting, a condition that the model does not have, a setting out of range
                or one that its generator cannot follow, codes or pictures to keep that do not fit, or a batch that does
                not fit into memory.
            DataError: an image or a mask that is no picture.
        """
        require_output_type(output_type)
        first, batch_size = check_call(0 if seed is None else seed, batch_size)
        require_size(height, width, height_width(self.tokenizer.config.image_size))
        known = ("class_labels", "prompt", "num_images", "output_type", *CallOptions.__annotations__)
        settings = updated_settings(self.sampling, sampling, known)
        request = requested(self.generator.config, class_labels, prompt, num_images)
        request = repeated(request, num_images, num_images_per_prompt)
        seeds = seeds_of(None if seed is None else first, generator, len(request))
        check_sampling(self.generator.config, settings, callback is not None)
        if fixed_codes is not None:
            if image is not None:
                raise ConfigError("fixed_codes and image are given; give one of them")
            config = self.generator.config
            fixed_codes = codes_for_each(fixed_codes, len(seeds), config.code_layout, config.num_codes)
        if given := given_pictures(self.tokenizer, len(seeds), image, mask_image, keep_scales):
            fixed_codes = given.codes
        return self.draw(request, seeds, settings, batch_size, output_type, progress, fixed_codes, callback)

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
        callback: PreviewCallback | None = None,
    ) -> ImagePipelineOutput[Images]:
        """Draw N pictures from a condition and a seed each; arguments as in a call, checked.

        Raises:
            ConfigError: a batch that does not fit into memory.
        """
        batch_size = settings.whole_batch(batch_size)
        shown = callback is not None
        needed = require_room(self, min(batch_size, len(seeds)), settings, read_ahead(fixed_codes, settings), shown)
        preview = None if callback is None else self._preview(callback)
        codes, pictures = [], []
        batches = range(0, len(seeds), batch_size)
        with packed_weights(self.generator, settings.deterministic, beside=needed):  # once for all batches
            for start in tqdm(batches, desc="sampling", unit="batch", disable=not progress):
                part = slice(start, start + batch_size)
                condition = self._condition(request[part], settings.deterministic)
                fixed = None if fixed_codes is None else fixed_codes[part]
                alone = progress and len(batches) == 1
                drawn = sample_codes(self.generator, condition, seeds[part], settings, alone, fixed, preview)
                codes.append(drawn.cpu())
                decoded = self._decoded(drawn, seeds[part], settings).float().cpu()
                pictures.append(decoded if output_type == "pt" else to_uint8(decoded))  # a quarter of the memory
        return ImagePipelineOutput(as_type(torch.cat(pictures), output_type), torch.cat(codes), seeds)

    def _preview(self, callback: PreviewCallback) -> Preview:
        """What shows a sampler's codes of the scales so far as pictures."""
        return lambda scale, codes: callback(scale, to_pil(self.tokenizer.decode_first_scales(codes)))

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
            codes: int64 of N pictures in the shape of the tokenizer's codes, of :meth:`WassersteinVQModel.encode` or of
                a call.
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
