"""Files and folders that are complete or absent, and what is in them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wvq.files.locks import host_digest, process_is_gone
from wvq.files.names import CHECKSUMS_NAME
from wvq.files.reading import MAX_JSON_BYTES, parse_json, read_text


@contextlib.contextmanager
def whole_file(file: str | Path) -> Iterator[Path]:
    """A temporary file that takes the name ``file`` when the block ends well, and is removed when it does not."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")  # several processes may write the same file
    try:
        yield partial
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(file: str | Path, text: str) -> None:
    """Write a text file; it is complete or absent."""
    with whole_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(file: str | Path, value: object) -> None:
    """Write a value as a JSON file; it is complete or absent."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(file: str | Path, error: type[Exception], missing: str, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        file: the file.
        error: what to raise.
        missing: message when there is no such file.
        limit: most bytes that the file may have.

    Raises:
        error: the file is missing, unreadable, too large or no JSON object.
    """
    try:
        value = parse_json(read_text(file, limit))
    except (FileNotFoundError, NotADirectoryError):
        raise error(missing) from None
    except (OSError, ValueError) as problem:
        raise error(f"{file} cannot be read as JSON ({problem})") from problem
    if not isinstance(value, dict):
        raise error(f"{file} must hold a JSON object")
    return value


def file_sha256(file: str | Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with Path(file).open("rb") as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def whole_folder(target: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the name ``target`` when the block ends well, and is removed when it does not.

    Its name holds the number of its process: the next call removes what a killed process has left, and never touches
    a folder of another name.
    """
    target = Path(target)
    _remove_abandoned(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}-{host_digest()}-{secrets.token_hex(4)}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary folders of ``target`` whose processes, on this machine, have ended."""
    own_name = re.compile(rf"\.{re.escape(target.name)}\.(\d+)-{host_digest()}-[0-9a-f]{{8}}\.partial")
    for folder in target.parent.iterdir() if target.parent.is_dir() else ():
        named = own_name.fullmatch(folder.name)
        if named and process_is_gone(int(named[1])):
            shutil.rmtree(folder, ignore_errors=True)


def remove_files(folder: str | Path, names: re.Pattern[str]) -> None:
    """Remove the files and folders of ``folder`` whose whole names fit, and ``folder`` itself if nothing else is in it.

    For what may lie beside a user's own files; a folder that is not there is no error.
    """
    folder = Path(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not names.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty, or not there
        folder.rmdir()


@contextlib.contextmanager
def files_into(folder: str | Path) -> Iterator[Path]:
    """A temporary folder whose files replace those of ``folder`` one by one when the block ends well.

    For a folder that holds other things too. Weights come last, so that their config is always there. Their checksums
    are removed first and written after them: a folder that is cut short has none, and no wrong ones.
    """
    folder = Path(folder)

    def rank(file: Path) -> tuple[bool, bool, str]:
        return file.name == CHECKSUMS_NAME, file.suffix == ".safetensors", file.name

    with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=folder) as partial:
        yield Path(partial)
        (folder / CHECKSUMS_NAME).unlink(missing_ok=True)
        for file in sorted(Path(partial).iterdir(), key=rank):
            os.replace(file, folder / file.name)
