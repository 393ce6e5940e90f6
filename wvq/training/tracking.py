"""Where a run's figures go: a JSONL file that any tool reads, and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from wvq.files.atomic import write_text
from wvq.files.reading import parse_json

LOG_NAME = "log.jsonl"


class RunLog:
    """Writes rows of figures, and pictures, of one run; used on the main process only."""

    def __init__(self, folder: Path, images: int = 0):
        """Open the log; ``images`` is where a resumed run goes on: what TensorBoard holds after it is dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=images + 1 if images else None)

    def row(self, kind: str, images: int, figures: dict) -> None:
        """Append one row; ``images`` counts the training pictures so far."""
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind, "images": images, **figures}) + "\n")
        for name, value in figures.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, images)

    def picture(self, name: str, images: int, picture: Image.Image) -> None:
        """Save a picture as PNG and show it in TensorBoard."""
        target = self.folder / "pictures" / f"{images:09d}.png"
        target.parent.mkdir(exist_ok=True)
        picture.save(target)
        self._writer.add_image(name, np.asarray(picture), images, dataformats="HWC")

    def close(self) -> None:
        """Close TensorBoard's file."""
        self._writer.close()


def read_log(folder: str | Path) -> list[dict]:
    """Rows of a run's ``log.jsonl`` up to the first invalid one, such as a last line cut short by a crash."""
    file = Path(folder) / LOG_NAME
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            row = parse_json(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("images"), int):
            break
        rows.append(row)
    return rows


def truncate_log(folder: str | Path, images: int) -> None:
    """Drop the rows after ``images``: a resumed run writes them again."""
    rows = [row for row in read_log(folder) if row["images"] <= images]
    file = Path(folder) / LOG_NAME
    if file.exists():
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
