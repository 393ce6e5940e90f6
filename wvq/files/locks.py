"""One writer a folder: a second run that is started on it is refused at once."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from wvq.errors import ConfigError

_HOLDER = re.compile(r"process (\d+) on (.+)")  # what a lock file holds
PATIENCE = 20.0  # seconds; loader processes of a killed run hold its lock until they notice

# Windows has none, and nothing is locked there.
fcntl = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None


@contextlib.contextmanager
def sole_writer(folder: str | Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder, which need not exist yet, for as long as the block runs; the hold ends with the process.

    The lock is a file beside the folder, ``.<name>.lock``, which goes at the end. File systems without locks, as some
    network ones are, lock nothing.

    Args:
        folder: the output folder.
        wait: wait for another run's end instead of an error.

    Raises:
        ConfigError: another run holds it, it cannot be written, it is the root of the file system, or a file that is
            no lock lies in the lock's place.
    """
    resolved = Path(folder).resolve()  # "." has no name
    if not resolved.name:
        raise ConfigError(f"{folder} cannot be an output folder")
    file = resolved.with_name(f".{resolved.name}.lock")
    made = [parent for parent in file.parents if not parent.exists()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = _locked(file, folder, wait)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{folder} cannot be written ({reason}); choose another place for the output") from error
    try:
        yield
    finally:
        if stream is not None:
            file.unlink(missing_ok=True)
            stream.close()
        for parent in made:  # those that are still empty: a start that fails leaves no folder behind
            with contextlib.suppress(OSError):
                parent.rmdir()


@contextlib.contextmanager
def sole_run(folder: str | Path, wait: bool = False) -> Iterator[None]:
    """:func:`sole_writer` for all processes of a run: the first one holds the folder, and all learn if it cannot.

    Args:
        folder: the output folder.
        wait: wait for another run's end instead of an error.

    Raises:
        ConfigError: see :func:`sole_writer`.
    """
    from wvq.distributed import decided_by_first_process

    with contextlib.ExitStack() as stack:
        decided_by_first_process(lambda: stack.enter_context(sole_writer(folder, wait=wait)))
        yield


def _locked(file: Path, folder: str | Path, wait: bool) -> TextIO | None:
    """The open lock file, or None where the system has no locks."""
    if fcntl is None:
        return None
    deadline = time.monotonic() + PATIENCE
    while True:
        stream = file.open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            stream.close()
            if _gone(holder) and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise ConfigError(
                f"{folder} is being written by another run ({holder}); wait for its end or choose another folder"
            ) from None
        except OSError:
            stream.close()
            return None
        try:
            same = os.path.samestat(os.fstat(stream.fileno()), file.stat())
        except FileNotFoundError:
            same = False
        if same:
            break
        stream.close()  # the one who held it has just removed the file
    stream.seek(0)
    if not re.fullmatch(rf"({_HOLDER.pattern})?", stream.read(500)):
        stream.close()
        raise ConfigError(f"{file} is in the way of the lock of {folder}; move it, or choose another folder")
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {socket.gethostname()}")
    stream.flush()
    return stream


def _gone(holder: str) -> bool:
    """Whether the process that a lock file names was one of this machine and is no more."""
    named = _HOLDER.fullmatch(holder)
    return named is not None and named[2] == socket.gethostname() and process_is_gone(int(named[1]))


def process_is_gone(number: int) -> bool:
    """Whether this machine has no process of this number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is another user's, or no process can have it
        return False
    return False


def host_digest() -> str:
    """A short hash of this machine's name, for the names of files on a disk that machines share."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
