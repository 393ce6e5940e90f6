"""Trains a generator and joins it with its tokenizer and text encoder into a pipeline folder."""

from __future__ import annotations

from pathlib import Path

from wvq.data.codes import CodeHeader
from wvq.distributed import is_main_process, processes, wait_for_all
from wvq.files.origin import Origin
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.models import load_generator
from wvq.generator.recipes import GeneratorRecipe
from wvq.generator.text.encoder import TextEncoder
from wvq.generator.train import train_generator
from wvq.pipelines.folders import already_holds, refuse_foreign_files
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.model_card import model_card, read_results
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

    Args:
        recipe: recipe of the generator.
        resume: go on with the run in ``recipe.out``.
        sampling: settings that a call of the pipeline uses where it gives none.
        title, data, licence: parts of the model card, see :func:`wvq.pipelines.model_card.model_card`.

    Returns:
        Figures of the run, and the pipeline.

    Raises:
        CheckpointError: ``recipe.out`` holds another tokenizer or text encoder, or a README or index that is no
            pipeline's.
        ConfigError, CacheError, DataError: see :func:`train_generator`.
    """
    recipe.check()
    header = CodeHeader.read(recipe.codes)
    tokenizer = WassersteinVQModel.from_pretrained(recipe.tokenizer)
    # Other parts there would stop the saving after the training.
    already_holds(recipe.out, "tokenizer", tokenizer)
    if recipe.condition.text and (Path(recipe.out) / "text_encoder").exists():
        condition = recipe.condition
        encoder = TextEncoder(condition.text_encoder, condition.text_length, cleaning=condition.text_cleaning)
        already_holds(recipe.out, "text_encoder", encoder)
    refuse_foreign_files(recipe.out)
    result = train_generator(recipe, tokenizer, resume)
    state = processes()
    generator = load_generator(f"{recipe.out}/generator").to(state.device)
    text_encoder = None
    if generator.config.text_dim:
        text = generator.config
        encoding = (text.text_padding, text.text_cleaning)
        text_encoder = TextEncoder(recipe.condition.text_encoder, text.text_length, state.device, *encoding)
    pipeline = ImageGenerationPipeline(tokenizer.to(state.device), generator, text_encoder, sampling)
    if is_main_process():
        data = data or f"{header.source}: {header.num_images['train']:,} training pictures."
        card = model_card(
            pipeline,
            recipe.out,
            title,
            f"{data}{_sources(recipe)}",
            licence,
            read_results(recipe.out),
        )
        pipeline.save_pretrained(recipe.out, card)
    wait_for_all()
    return result, pipeline


def _sources(recipe: GeneratorRecipe) -> str:
    """Sentences on the weights that a run takes, for its card: what it starts from, and those of other projects."""
    sentences = [] if recipe.start is None else [f"The generator was trained on from `{recipe.start}`."]
    for text, path in (("The tokenizer has", recipe.tokenizer), ("The generator started from", recipe.start)):
        if path and (origin := Origin.of_start(path)):
            sentences.append(f"{text} weights of {origin.summary()}, licence {origin.licence or 'not known'}.")
    return "".join(f" {sentence}" for sentence in sentences)
