"""Folders of a run packed into a few files of bounded size, with which it goes on elsewhere."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

PIECE = 15 * 2**20  # bytes of a file
PATTERN = "state.*"
LEVEL = 1  # of gzip: weights shrink by 7%, at higher levels hardly more


def pack(root: Path, folders: Sequence[str], target: Path, limit: int) -> list[str]:
    """Replace what an earlier call has packed.

    Args:
        root: holds the folders.
        folders: their names; those that are not there are passed over. Where they do not fit into the limit, the last
            ones are left out.
        target: where the files go.
        limit: bytes of all files together.

    Returns:
        Names of the folders that are packed.
    """
    there = [name for name in folders if (root / name).is_dir()]
    content = archive(root, there)
    while len(content) > limit and there:
        content = archive(root, there := there[:-1])
    target.mkdir(parents=True, exist_ok=True)
    for file in target.glob(PATTERN):
        file.unlink()
    for number, start in enumerate(range(0, len(content) if there else 0, PIECE)):
        (target / f"state.{number:02d}").write_bytes(content[start : start + PIECE])
    return there


def archive(root: Path, folders: Sequence[str]) -> bytes:
    """A compressed tar of folders."""
    opened = io.BytesIO()
    with tarfile.open(fileobj=opened, mode="w:gz", compresslevel=LEVEL) as tar:
        for name in folders:
            tar.add(root / name, name)
    return opened.getvalue()


def unpack(source: Path, root: Path) -> None:
    """Write the folders that were packed into ``source``, if any, into ``root``."""
    files = sorted(source.glob(PATTERN))
    if files:
        with tarfile.open(fileobj=io.BytesIO(b"".join(file.read_bytes() for file in files)), mode="r:gz") as tar:
            tar.extractall(root, filter="data")
