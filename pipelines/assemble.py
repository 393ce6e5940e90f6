"""Trains a generator and joins it with its tokenizer and text encoder into a pipeline folder."""

from __future__ import annotations

from wvq.generator.conditioning import TextEncoder
from wvq.generator.modeling import ImageCodeTransformer
from wvq.generator.sampling import SamplingSettings
from wvq.generator.train import train_generator
from wvq.pipelines.folders import already_holds
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.model_card import model_card, read_results
from wvq.recipes import GeneratorRecipe
from wvq.tokenizer.modeling import WassersteinVQModel


def train_pipeline(
    recipe: GeneratorRecipe,
    resume: bool = False,
    sampling: SamplingSettings | None = None,
    title: str = "wvq image generation pipeline",
    data: str | None = None,
    licence: str | None = None,
) -> tuple[dict, ImageGenerationPipeline]:
    """Train the generator of a recipe and write ``recipe.out`` as a pipeline.

    Returns:
        Figures of the run, and the pipeline.

    Raises:
        CheckpointError: ``recipe.out`` holds another tokenizer.
        ConfigError, CacheError, DataError: see :func:`train_generator`.
    """
    from wvq.codes import CodeHeader
    from wvq.distributed import processes, wait_for_all

    header = CodeHeader.read(recipe.codes)
    tokenizer = WassersteinVQModel.from_pretrained(recipe.tokenizer)
    already_holds(recipe.out, "tokenizer", tokenizer)  # another one would be in the way after the training
    result = train_generator(recipe, tokenizer, resume)
    state = processes()
    generator = ImageCodeTransformer.from_pretrained(f"{recipe.out}/generator").to(state.device)
    text_encoder = None
    if generator.config.text_dim:
        text_encoder = TextEncoder(recipe.condition.text_encoder, generator.config.text_length, state.device)
    pipeline = ImageGenerationPipeline(tokenizer.to(state.device), generator, text_encoder, sampling)
    if state.is_main_process:
        card = model_card(
            pipeline,
            recipe.out,
            title,
            data or f"{header.source}: {header.num_images['train']:,} training pictures.",
            licence,
            read_results(recipe.out),
        )
        pipeline.save_pretrained(recipe.out, card)
    wait_for_all()
    return result, pipeline
