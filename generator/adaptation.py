"""A trained generator to go on from: its body is kept, and of its conditions what the new run has too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wvq.data.imagenet import folders_by_name
from wvq.data.layout import layout_name
from wvq.errors import CheckpointError, ConfigError, DownloadError
from wvq.files.names import INDEX_NAME
from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.kinds import read_generator_config
from wvq.generator.models import load_generator
from wvq.generator.text.encoder import TEXT_FIELDS
from wvq.models.reading import resolve_folder

# Fields that come from the codes and the conditions of a run, whatever generator it starts from.
_OF_THE_RUN = ("num_classes", "class_names", "tokenizer_hash", *TEXT_FIELDS)
_OF_TEXT = ("text_projection", "null_text")  # fields that follow those of the start as long as its projections hold
_CLASSES, _NULL_TEXT = "condition.class_embedding.weight", "condition.null_text"


@dataclass(frozen=True)
class Start:
    """The generator that a run starts from.

    Attributes:
        name: its folder or Hub id, or that of its pipeline, as the recipe has it.
        folder: its local folder.
        config: its config.
    """

    name: str
    folder: Path
    config: GeneratorConfig

    @classmethod
    def find(cls, name: str) -> Start:
        """The start of a recipe.

        Args:
            name: folder or Hub id of a generator or of a pipeline.

        Raises:
            CheckpointError, ConfigError: there is no generator, or its config is damaged.
            DownloadError: a Hub id that cannot be reached.
        """
        try:
            folder = resolve_folder(name, "generator", (INDEX_NAME, "config.json"))
            inside = "generator" if (folder / INDEX_NAME).exists() else None
            folder = resolve_folder(name, "generator", subfolder=inside)
            return cls(name, folder, read_generator_config(folder))
        except (CheckpointError, ConfigError, DownloadError) as error:
            raise type(error)(f"start: {error}") from error

    def fields(self, changes: dict[str, Any], text: bool) -> dict[str, Any]:
        """Fields of the new config that are the start's, as far as ``changes`` leaves them.

        Args:
            changes: fields of the recipe.
            text: whether the run has text.
        """
        others = _OF_THE_RUN if text else (*_OF_THE_RUN, *_OF_TEXT)
        fields = {name: getattr(self.config, name) for name in self.config.fields() if name not in others}
        if "dropout" in changes and self.config.feed_forward_dropout == self.config.dropout:
            del fields["feed_forward_dropout"]  # it follows the other one, as in a new model
        del fields["size"]  # the sizes themselves are there; a name would go before those of the recipe
        return fields | changes

    def require_layout(self, layout: dict[str, Any], num_codes: int, codes: str) -> None:
        """Check that the codes of a run are those that this generator draws.

        Raises:
            ConfigError: they have another layout or number.
        """
        own = self.config
        if own.code_layout != layout or own.num_codes != num_codes:
            raise ConfigError(
                f"start: {self.name} draws {layout_name(own.code_layout)} of K = {own.num_codes:,}, and {codes} holds "
                f"{layout_name(layout)} of K = {num_codes:,}; start from a generator of such codes"
            )

    def require_network(self, config: GeneratorConfig) -> None:
        """Check that a config differs from this generator's in its conditions and its training alone.

        Raises:
            ConfigError: another field of the network differs, or captions are prepared in another way.
        """
        if config.text_dim == self.config.text_dim > 0 and config.text_cleaning != self.config.text_cleaning:
            raise ConfigError(
                f"start: {self.name} was trained with text_cleaning {self.config.text_cleaning}; set "
                "condition.text_cleaning to that"
            )
        free = {*config.fields_outside_identity(), *_OF_THE_RUN, *(() if self.reads(config) else _OF_TEXT)}
        for name in config.fields():
            trained, asked = getattr(self.config, name), getattr(config, name)
            if name not in free and asked != trained:
                raise ConfigError(
                    f"start: {self.name} was trained with {name} {trained}, which cannot change, and here it is "
                    f"{asked}; leave it out of model, or start anew"
                )

    def reads(self, config: GeneratorConfig) -> bool:
        """Whether it was trained with the text encoder of a config, as far as is known: its projections then hold."""
        same = self.config.text_encoder_hash in (None, config.text_encoder_hash)
        return same and config.text_dim == self.config.text_dim > 0

    @torch.no_grad()
    def pass_on(self, model: CodeGenerator) -> str:
        """Give its weights to a new model, as far as their conditions agree.

        Rows of classes pass to the classes of the same names. A new class starts as the null condition, so that it is
        drawn as any picture at first.

        Args:
            model: whose config has passed :meth:`require_network`.

        Returns:
            What was kept and what is new, in one line.

        Raises:
            CheckpointError: its weights are damaged.
            ConfigError: a part of its network is another one.
        """
        trained, current = load_generator(self.folder).state_dict(), model.state_dict()
        for name in sorted({*trained, *current}):
            shapes = [state[name].shape if name in state else None for state in (trained, current)]
            if not name.startswith("condition.") and shapes[0] != shapes[1]:
                raise ConfigError(f"start: the network in {self.name} is another one ({name}); leave it out of model")
        null, rows = self._null(trained), self._rows_of_classes(model.config)
        lost = set() if self.reads(model.config) else {name for name in current if name.startswith("condition.text_")}
        if lost and model.config.null_text == "features":
            lost.add(_NULL_TEXT)
        kept: dict[str, torch.Tensor] = {}
        for name, value in current.items():
            theirs = trained.get(name)
            if name.startswith("condition.class_") and theirs is not None:
                kept[name] = theirs[-1].repeat(len(value), 1)
                kept[name][list(rows)] = theirs[list(rows.values())]
            elif name in (_CLASSES, _NULL_TEXT) and theirs is None:
                if null is not None and null.shape == value.shape[-1:]:
                    kept[name] = null.expand_as(value)
            elif theirs is not None and theirs.shape == value.shape and name not in lost:
                kept[name] = theirs
        model.load_state_dict(kept, strict=False)
        return self._summary(model.config, len(rows), current.keys() - kept.keys())

    def _rows_of_classes(self, config: GeneratorConfig) -> dict[int, int]:
        """The row of the start for each class of a config that it knows, by id; of equal names in their order."""
        ids: dict[str, list[int]] = {}
        numbers = [str(number) for number in range(self.config.num_classes)]  # of classes without names
        for number, name in enumerate(folders_by_name(self.config.class_names or numbers)):
            ids.setdefault(name, []).append(number)
        names = folders_by_name(config.class_names)
        return {number: ids[name].pop(0) for number, name in enumerate(names) if ids.get(name)}

    def _null(self, trained: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """The vector (D,) that stands for no condition at all; None where it is made of two."""
        if self.config.text_dim and self.config.has_class_token:
            return None
        if self.config.text_dim:
            return trained[_NULL_TEXT]
        return trained[_CLASSES][-1]

    def _summary(self, config: GeneratorConfig, kept_classes: int, fresh: set[str]) -> str:
        new, gone = [], []
        if (count := config.num_classes - kept_classes) > 0:
            new.append(f"{count:,} of {config.num_classes:,} classes")
        if (count := self.config.num_classes - kept_classes) > 0:
            gone.append(f"{count:,} of {self.config.num_classes:,} classes")
        if config.text_dim and not self.reads(config):
            new.append("the projections of text")
        if _NULL_TEXT in fresh:
            new.append("the null text")
        if self.config.text_dim and not self.reads(config):
            gone.append("its projections of text")
        parts = [f"new: {' and '.join(new)}"] * bool(new) + [f"left out: {' and '.join(gone)}"] * bool(gone)
        return "; ".join([f"start: the weights of {self.name}", *parts])
