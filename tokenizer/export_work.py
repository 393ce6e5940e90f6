"""The working folder of an export: complete files of codes, from which a command that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from wvq.data.code_tables import finish_table, row_features, write_shard
from wvq.data.codes import CodeHeader
from wvq.errors import DataError
from wvq.files.atomic import read_json, remove_files, write_json
from wvq.files.names import IDENTITY_NAME
from wvq.files.work_folder import claim_work_folder

FEWEST, MOST = 64, 1024  # pictures of a file
_FILES = 64  # that a set is cut into, as far as these bounds allow
_OWN = re.compile(
    r"\..*\.partial|(train|validation)-\d+\.json|data-\d+-of-\d+\.arrow|"
    r"(state|dataset_info|header|data_fingerprint)\.json"
)
_PARTIAL = re.compile(r"\..*\.partial")
_IDENTITY = re.compile(rf"(\.{re.escape(IDENTITY_NAME)}\.\d+\.partial|{re.escape(IDENTITY_NAME)})")


def picture_ranges(count: int) -> list[range]:
    """The pictures of each file, for a set of ``count``: the same for any number of processes and batch size."""
    size = min(MOST, max(FEWEST, count // _FILES // FEWEST * FEWEST))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


class ExportWork:
    """Files of codes on their way to a cache, in the export's own folder beside it.

    Each file holds the rows of consecutive pictures, and a mark is written when it is complete. The finished files
    become the cache when their folder is renamed; nothing is copied.

    Args:
        out: folder of the cache to come; the work lies in ``.<name>.export`` beside it.
        header: header of the cache.
        identity: what the rows depend on.
        files: how many files each split has.
    """

    def __init__(self, out: str | Path, header: CodeHeader, identity: dict, files: dict[str, int]):
        self.out = Path(out).resolve()  # "." has no name
        self.folder = self.out.with_name(f".{self.out.name}.export")
        self.cache, self._marks = self.folder / "cache", self.folder / "marks"
        self.features = row_features(header.num_codes, header.sequence_length)
        self.files = files
        self._identity = identity | {"files": files}

    def claim(self) -> None:
        """Make the folder, or go on with what is in it. One process calls it.

        Raises:
            ConfigError: the folder holds something else, or what an export with other settings has left.
        """
        claim_work_folder(self.folder, self._identity, task="an export", output="output folder")

    def done(self) -> dict[str, dict[int, dict[int, str]]]:
        """By split and number of each complete file, the file name and reason of pictures left out, by index."""
        done: dict[str, dict[int, dict[int, str]]] = {split: {} for split in self.files}
        for split, count in self.files.items():
            for number in range(count):
                if self._mark(split, number).exists() and self._file(split, number).exists():
                    mark = self._read_mark(split, number)
                    done[split][number] = {int(index): why for index, why in mark["left_out"].items()}
        return done

    def rows(self, split: str) -> list[int]:
        """The rows of each file of a split, all complete by now."""
        return [self._read_mark(split, number)["rows"] for number in range(self.files[split])]

    def progress(self) -> str:
        """How far the export is, for the message of one that was stopped."""
        total, done = sum(self.files.values()), sum(1 for _ in self._marks.glob("*.json"))
        return f"{done:,} of {total:,} files of codes are complete; an export with the same settings goes on from there"

    def write(self, split: str, number: int, batches: Iterable[dict], left_out: dict[int, str]) -> None:
        """Write one file.

        Args:
            split: split of its pictures.
            number: number of the file.
            batches: as :func:`wvq.data.code_tables.write_shard` takes them.
            left_out: pictures that cannot be read, complete when the batches have been read.

        Raises:
            DataError: the disk is full or cannot be written.
        """
        file = self._file(split, number)
        try:
            rows = write_shard(file, batches, self.features)
            write_json(self._mark(split, number), {"rows": rows, "left_out": left_out})
        except OSError as error:
            raise DataError(
                f"{file} could not be written ({error.strerror or error}); make room, and the same command goes on "
                "from there"
            ) from error

    def join(self) -> Path:
        """Make a table of the files of each split, all complete by now; returns the folder of the cache."""
        for folder in (self.cache, *(self.cache / split for split in self.files)):
            remove_files(folder, _PARTIAL)  # of a process that was killed while it wrote
        for split, count in self.files.items():
            folder = self.cache / split
            files = [self._file(split, number).name for number in range(count)]
            content = [self._identity, [(folder / name).stat().st_size for name in files]]
            digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
            finish_table(folder, files, self.features, digest[:32])
        return self.cache

    def publish(self) -> None:
        """Give the cache its name, and remove the rest."""
        if self.out.is_dir() and not any(self.out.iterdir()):
            self.out.rmdir()
        self.cache.rename(self.out)
        self.remove()

    def remove(self) -> None:
        """Remove what the export has made; the identity file goes last, so that a removal cut short can be resumed."""
        for folder in (self._marks, *(self.cache / split for split in self.files), self.cache):
            remove_files(folder, _OWN)
        remove_files(self.folder, _IDENTITY)

    def _file(self, split: str, number: int) -> Path:
        return self.cache / split / f"data-{number:05d}-of-{self.files[split]:05d}.arrow"

    def _read_mark(self, split: str, number: int) -> dict:
        return read_json(self._mark(split, number), DataError, f"{self.folder} is being removed")

    def _mark(self, split: str, number: int) -> Path:
        return self._marks / f"{split}-{number:05d}.json"
