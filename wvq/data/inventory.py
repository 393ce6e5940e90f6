"""What was read of a data set, what was held out and what was passed over: one text for people to check."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wvq.distributed import is_main_process
from wvq.plain_output import one_line

if TYPE_CHECKING:
    from wvq.data.tables import PictureTable

NAMED = 3  # names that a message shows of a list
_CLASSES_NAMED = 12


@dataclass
class Inventory:
    """What a data set was read as; those who read it fill this in as they go.

    Attributes:
        num_images: how many there are by what they are for: ``training`` and ``held out``.
        unit: what is counted there: pictures, or the shards of a stream, whose pictures nobody has counted.
        held_out_as: how the held-out ones were chosen.
        class_names: by label id; empty without classes.
        num_captioned: pictures with a caption; None if the data has no captions.
        num_examined: how many pictures were examined for that; None for all.
        remarks: how the source was understood, such as which folder is which split.
        passed_over: names of the files that were not read, by kind: their ending, or what they are.
    """

    num_images: dict[str, int] = field(default_factory=dict)
    unit: str = "pictures"
    held_out_as: str = ""
    class_names: tuple[str, ...] = ()
    num_captioned: int | None = None
    num_examined: int | None = None
    remarks: list[str] = field(default_factory=list)
    passed_over: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def remark(self, text: str) -> None:
        """Add how a part of the source was understood."""
        if text not in self.remarks:
            self.remarks.append(text)

    def pass_over(self, path: str, kind: str | None = None) -> None:
        """Add a file that is not read; its kind is its ending if none is given."""
        self.passed_over[kind or os.path.splitext(path)[1].lower() or "no ending"].append(path)

    def count(
        self, train: PictureTable, validation: PictureTable, class_names: tuple[str, ...], held_out_as: str
    ) -> None:
        """Enter the pictures, classes and captions of both parts."""
        self.num_images = {"training": len(train), "held out": len(validation)}
        self.held_out_as, self.class_names = held_out_as, class_names
        texts = [texts for table in (train, validation) for texts in table.texts or ()]
        if train.texts is not None or validation.texts is not None:
            self.num_captioned = sum(any(text.strip() for text in captions) for captions in texts)

    def __str__(self) -> str:
        counts = [f"{count:,} {part}" for part, count in self.num_images.items()]
        parts = [f"{self.unit}: {', '.join(counts)} ({self.held_out_as})", self._classes(), self._captions()]
        parts += self.remarks
        total = sum(map(len, self.passed_over.values()))
        if total:
            kinds = ", ".join(
                f"{f'{len(names):,} ' if len(self.passed_over) > 1 else ''}{kind}: {first_names(names)}"
                for kind, names in sorted(self.passed_over.items())
            )
            parts.append(f"passed over: {total:,} file{'s' if total > 1 else ''} ({kinds})")
        return one_line("; ".join(parts))

    def _classes(self) -> str:
        names = self.class_names
        listed = ", ".join(names[:_CLASSES_NAMED]) + (", ..." if len(names) > _CLASSES_NAMED else "")
        return f"{len(names):,} class{'es' if len(names) > 1 else ''} ({listed})" if names else "no classes"

    def _captions(self) -> str:
        if self.num_captioned is None:
            return "no captions"
        if self.num_examined is not None:
            return f"captions for {self.num_captioned:,} of the first {self.num_examined:,} pictures"
        total = sum(self.num_images.values())
        return f"captions for {'all' if self.num_captioned == total else f'{self.num_captioned:,} of {total:,}'}"

    def show(self) -> None:
        """Print the text; the main process does."""
        if is_main_process():
            print(self)


def first_names(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(shown, names[:NAMED])) + more


def shown(name: str) -> str:
    r"""A name for a message: bytes that are no UTF-8 as their code, such as ``caf\xe9.png``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
