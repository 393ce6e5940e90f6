"""Where an imported model comes from: beside its weights as a file, and in its card."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import Self

from wvq.errors import CheckpointError, first_line
from wvq.files.atomic import file_sha256, read_json, write_json
from wvq.files.names import ORIGIN_NAME

if TYPE_CHECKING:  # it brings torch
    from wvq.files.checkpoint_files import Checkpoint


@dataclass(frozen=True)
class OriginFile:
    """A file that weights were read from.

    Attributes:
        part: ``tokenizer`` or ``generator``.
        name: of the file.
        sha256: of its content.
        level: the name under which it held the weights; None where it held nothing else.
        other_levels: further names under which it held weights.
    """

    part: str
    name: str
    sha256: str
    level: str | None
    other_levels: tuple[str, ...]

    @classmethod
    def of(cls, part: str, checkpoint: Checkpoint) -> list[Self]:
        """The files of a checkpoint."""
        levels = (checkpoint.level, checkpoint.other_levels)
        return [cls(part, file.name, file_sha256(file), *levels) for file in checkpoint.files]

    def __str__(self) -> str:
        held = f', weights under "{self.level}"' if self.level else ""
        others = f" (not those under {' or '.join(self.other_levels)})" if self.other_levels else ""
        return f"{self.part}: {self.name}{held}{others}, SHA-256 {self.sha256[:12]}..."


@dataclass(frozen=True)
class Origin:
    """Where an imported model comes from.

    Attributes:
        project: who trained it.
        page: their address.
        files: what the weights were read from.
        name: that of the model in the catalogue; None for any other model.
        licence: of the weights, as the Hub calls it; None where it is not known.
        published: the figure that the project published, in words; empty if none.
        preset: protocol under which that can be measured; None if there is none.
    """

    project: str
    page: str
    files: tuple[OriginFile, ...]
    name: str | None = None
    licence: str | None = None
    published: str = ""
    preset: str | None = None

    def save(self, folder: str | Path) -> None:
        """Write it into a folder."""
        write_json(Path(folder) / ORIGIN_NAME, asdict(self))

    @classmethod
    def read(cls, folder: str | Path) -> Self | None:
        """The origin of the model in a folder; None where the model was trained by wvq.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = Path(folder) / ORIGIN_NAME
        if not file.exists():
            return None
        values = read_json(file, CheckpointError, f"{file} is missing")
        try:
            files = tuple(
                OriginFile(**{**one, "other_levels": tuple(one["other_levels"])}) for one in values.pop("files")
            )
            return cls(**values, files=files)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{file} is damaged ({first_line(error)}); import the model again") from error

    @classmethod
    def of_start(cls, path: str | Path) -> Self | None:
        """The origin of the model that a run starts from: its folder, or that of the pipeline that it is in.

        Raises:
            CheckpointError: the file is damaged.
        """
        return cls.read(path) or cls.read(Path(path).parent)

    def summary(self) -> str:
        """Project, name and files in a line."""
        named = f", {self.name}" if self.name else ""
        return f"{self.project}{named} ({', '.join(file.name for file in self.files)})"

    def card_text(self) -> str:
        """What a model card says of it."""
        named = f" as `{self.name}`" if self.name else ""
        unknown = "the project states no licence for them" if self.name else "their licence is not known here"
        licence = f"licence `{self.licence}`" if self.licence else unknown
        made = "Weights of" if self.name else "Weights in the layout of"
        lines = [f"{made} [{self.project}]({self.page}){named}, brought into this form by wvq; {licence}.", ""]
        lines += ["| part | file | SHA-256 |", "|---|---|---|"]
        lines += [f"| {file.part} | `{file.name}` | `{file.sha256}` |" for file in self.files]
        if self.published:
            preset = f"; `wvq evaluate generation ... --preset {self.preset}` has its protocol" if self.preset else ""
            lines += ["", f"Published by the project: {self.published}{preset}. It was not measured here."]
        return "\n".join(lines)
