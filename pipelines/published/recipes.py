"""The recipe of an import. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from wvq.checks import FLAG, PATH, SOURCE, Checker, or_null
from wvq.errors import ConfigError
from wvq.models.published import PublishedOptions
from wvq.pipelines.published.catalogue import CATALOGUE, FAMILIES, PublishedModel, find_published, published_with_files


@dataclass
class ImportRecipe:
    """A model of another project, as a pipeline or, without a generator, as a tokenizer.

    Args:
        name: a published model, which is downloaded where no files are given; or a family, of which files are.
        out: new folder for it.
        tokenizer: file with the weights of its tokenizer: of torch, of safetensors, or their index.
        generator: file with the weights of its generator.
        image_size: side of the pictures in pixels; the published one if None.
        num_heads: attention heads of each layer of the generator; the published ones if None.
        scales: sides of the maps of multi-scale codes, the coarsest first; the published ones if None.
        text_encoder: folder or Hub id of the encoder of its prompts; the published one if None.
        class_names: text file with a class name a line, in the order of the ids; ImageNet's for 1,000 classes if None.
        ema: take the averaged weights of files that hold both.
    """

    name: str = ""
    out: str = ""
    tokenizer: str | None = None
    generator: str | None = None
    image_size: int | None = None
    num_heads: int | None = None
    scales: list[int] | None = None
    text_encoder: str | None = None
    class_names: str | None = None
    ema: bool = False

    def check(self) -> None:
        """Raise ConfigError if a value is out of range, or an option means nothing to what is imported."""
        if not self.name:
            raise ConfigError("name: give a published model, or the family of the files; see wvq import --list")
        if not self.out:
            raise ConfigError("out: give a new folder for the model")
        check = Checker(self)
        check.each(PATH, "out")
        check.each(or_null(PATH), "tokenizer", "generator", "class_names")
        check.each(or_null(SOURCE), "text_encoder")
        check.each(FLAG, "ema")
        self.options.check()
        family, model = FAMILIES[self.family], self.model
        for option in ("image_size", "num_heads", "scales", "text_encoder"):
            if getattr(self, option) is not None and option not in family.options:
                raise ConfigError(f"{option} means nothing to {family.project}; leave it out")
        if model is None and not self.tokenizer:
            if self.generator:
                raise ConfigError("tokenizer: a generator is imported with its tokenizer; give its file, too")
            raise ConfigError(
                f'tokenizer: give the file of a tokenizer of {family.project} ("{self.name}" is a family)'
            )
        if self.generator and not (family.has_generators if model is None else model.generator):
            raise ConfigError(f"generator: of {self.name} the tokenizer alone can be imported; leave it out")
        if not (self.generator or (model is not None and model.generator)):
            for option in ("num_heads", "text_encoder", "class_names"):
                if getattr(self, option) is not None:
                    raise ConfigError(f"{option} is of a generator, and none is imported; leave it out")

    @property
    def published(self) -> str | None:
        """Name of the published model: the one given, or the one whose files are given, as far as nothing else is."""
        if self.name not in FAMILIES:
            return self.name
        if self.num_heads is not None or self.scales is not None:
            return None
        name = published_with_files(self.name, self.tokenizer, self.generator)
        other_size = name and self.image_size not in (None, CATALOGUE[name].options.image_size)
        return None if other_size else name

    @property
    def model(self) -> PublishedModel | None:
        """The published model; None for files of any other model of a family."""
        return None if self.published is None else find_published(self.published)

    @property
    def has_published_options(self) -> bool:
        """Whether no option is given that the published model does not have: else its figure is of another model."""
        known = PublishedOptions() if self.model is None else self.model.options
        return all(
            getattr(self, option) in (None, getattr(known, option)) for option in ("image_size", "num_heads", "scales")
        )

    @property
    def family(self) -> str:
        """The family whose layout the files have."""
        return self.name if self.name in FAMILIES else find_published(self.name).family

    @property
    def options(self) -> PublishedOptions:
        """What shapes do not say: what is given, and else that of the published model."""
        known = PublishedOptions() if self.model is None else self.model.options
        return PublishedOptions(
            known.image_size if self.image_size is None else self.image_size,
            known.num_heads if self.num_heads is None else self.num_heads,
            known.scales if self.scales is None else self.scales,
        )
