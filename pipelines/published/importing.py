"""Brings models of other projects into a folder that ``from_pretrained`` loads: a pipeline, or a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wvq.data.imagenet import IMAGENET_CLASSES, imagenet_classes
from wvq.errors import ConfigError
from wvq.files.atomic import whole_folder, write_text
from wvq.files.checkpoint_files import Checkpoint, read_checkpoint
from wvq.files.locks import sole_writer
from wvq.files.names import ORIGIN_NAME
from wvq.files.origin import Origin, OriginFile
from wvq.files.plain_text import text_lines
from wvq.files.stage_folder import refuse_occupied
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.published.registry import read_generator
from wvq.generator.text.encoder import TextEncoder
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.model_card import CARD_NAME, model_card, tokenizer_card
from wvq.pipelines.published.catalogue import FAMILIES, PublishedFile
from wvq.pipelines.published.download import fetch
from wvq.pipelines.published.families import require_family
from wvq.pipelines.published.recipes import ImportRecipe
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.processing import ImageProcessor
from wvq.tokenizer.published.registry import read_tokenizer


def import_published(recipe: ImportRecipe, **hub_options: Any) -> Origin:
    """Write ``recipe.out``: a pipeline, or a tokenizer where there is no generator. It is complete or absent.

    Args:
        recipe: what to import, and where to.
        hub_options: for the Hub client.

    Returns:
        Where the model comes from.

    Raises:
        ConfigError: an option out of range or that means nothing here, a folder that holds something, or a part that
            is missing or does not fit the others.
        CheckpointError: a file that cannot be read, or is of another model.
        DownloadError: a file that cannot be fetched.
    """
    recipe.check()
    with sole_writer(recipe.out):
        return _written(recipe, hub_options)


def import_once(recipe: ImportRecipe, **hub_options: Any) -> None:
    """The same for a folder that several processes may need: it is left as it is where it is there already."""
    recipe.check()
    with sole_writer(recipe.out, wait=True):
        if not (Path(recipe.out) / ORIGIN_NAME).exists():
            _written(recipe, hub_options)


def _written(recipe: ImportRecipe, hub_options: dict[str, Any]) -> Origin:
    refuse_occupied(recipe.out, "files")
    parts = _Parts(recipe, hub_options)
    tokenizer = parts.tokenizer()
    generator = parts.generator(tokenizer)
    pipeline = None if generator is None else parts.pipeline(tokenizer, generator)
    origin = parts.origin()
    title, text = f"{origin.project}: {origin.name or Path(recipe.out).name}", origin.card_text()
    with whole_folder(recipe.out) as folder:
        if pipeline is None:
            tokenizer.save_pretrained(folder)
            ImageProcessor.of_tokenizer(tokenizer.config).save_pretrained(folder)
            write_text(folder / CARD_NAME, tokenizer_card(tokenizer.config, recipe.out, title, text, origin.licence))
            origin.save(folder)
        else:
            card, pipeline.origin = model_card(pipeline, recipe.out, title, licence=origin.licence, origin=text), origin
            pipeline.save_pretrained(folder, card)
    return origin


class _Parts:
    """The parts of a model that is imported; arguments as of :func:`import_published`, checked.

    Attributes:
        files: those that parts were made of so far.
    """

    def __init__(self, recipe: ImportRecipe, hub_options: dict[str, Any]):
        self.recipe, self.hub_options = recipe, hub_options
        self.files: list[OriginFile] = []

    def tokenizer(self) -> WassersteinVQModel:
        """The tokenizer."""
        published = None if self.recipe.model is None else self.recipe.model.tokenizer
        source, checkpoint = self._read("tokenizer", self.recipe.tokenizer, published)
        return read_tokenizer(self.recipe.family, checkpoint.weights, source, self.recipe.options)

    def generator(self, tokenizer: WassersteinVQModel) -> CodeGenerator | None:
        """The generator over a tokenizer's codes; None where the tokenizer alone is imported."""
        published = None if self.recipe.model is None else self.recipe.model.generator
        if self.recipe.generator is None and published is None:
            return None
        source, checkpoint = self._read("generator", self.recipe.generator, published)
        options = self.recipe.options
        generator = read_generator(self.recipe.family, checkpoint.weights, source, options, tokenizer)
        generator.config.class_names = self._class_names(generator.config.num_classes)
        return generator

    def pipeline(self, tokenizer: WassersteinVQModel, generator: CodeGenerator) -> ImageGenerationPipeline:
        """Both with the text encoder, if there is one, and the settings of the project's own demonstration."""
        model, config, encoder = self.recipe.model, generator.config, None
        path = self.recipe.text_encoder or (None if model is None else model.text_encoder)
        if config.text_dim:
            if path is None:
                raise ConfigError("text_encoder: this generator takes texts; give the folder or Hub id of its encoder")
            padding, cleaning = config.text_padding, config.text_cleaning
            encoder = TextEncoder(path, config.text_length, "cpu", padding, cleaning, **self.hub_options)
            config.text_encoder_hash = encoder.identity()
        elif self.recipe.text_encoder:
            raise ConfigError("text_encoder: this generator takes no texts; leave it out")
        sampling = SamplingSettings(**(model.sampling if model else {}))
        try:
            return ImageGenerationPipeline(tokenizer, generator, encoder, sampling)
        except ConfigError as error:
            names = " and ".join(file.name for file in self.files)
            raise ConfigError(f"{names} do not fit each other: {error}") from error

    def origin(self) -> Origin:
        """Where the parts come from."""
        model, family = self.recipe.model, FAMILIES[self.recipe.family]
        if model is None or not self.recipe.has_published_options:
            return Origin(family.project, family.page, tuple(self.files))
        facts = (self.recipe.published, family.licence, model.figure, model.preset)
        return Origin(family.project, family.page, tuple(self.files), *facts)

    def _read(self, part: str, given: str | None, published: PublishedFile | None) -> tuple[str, Checkpoint]:
        """A file that is given, or else the published one, and the weights in it."""
        if given is None:
            assert published is not None  # checked by the recipe
            given = str(fetch(published, part, **self.hub_options))
        checkpoint = read_checkpoint(given, self.recipe.ema)
        require_family(checkpoint.weights, self.recipe.family, part, given)
        self.files += OriginFile.of(part, checkpoint)
        return given, checkpoint

    def _class_names(self, count: int) -> list[str]:
        if self.recipe.class_names is None:
            return imagenet_classes() if count == IMAGENET_CLASSES else []
        names = text_lines(self.recipe.class_names, "class_names", "class names")
        if len(names) != count:
            raise ConfigError(f"class_names: {self.recipe.class_names} holds {len(names)} names for {count} classes")
        return names
