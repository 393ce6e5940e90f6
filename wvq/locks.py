"""One writer a folder: a second run that is started on it is refused at once."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from wvq.errors import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None


@contextlib.contextmanager
def sole_writer(folder: str | Path, needed: bool = True) -> Iterator[None]:
    """Hold a folder, which need not exist yet, for as long as the block runs; the hold ends with the process.

    The lock is a file beside the folder, ``.<name>.lock``, which goes at the end. File systems without locks, as some
    network ones are, lock nothing.

    Args:
        folder: the output folder.
        needed: hold nothing if False, as in all processes of a run but the first.

    Raises:
        ConfigError: another run holds it.
    """
    if not needed or fcntl is None:
        yield
        return
    folder = Path(folder)
    file = folder.with_name(f".{folder.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    stream = _locked(file, folder)
    try:
        yield
    finally:
        if stream is not None:
            file.unlink(missing_ok=True)
            stream.close()


def _locked(file: Path, folder: Path):
    """The open lock file, or None where the file system has no locks."""
    while True:
        stream = file.open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            stream.close()
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
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {socket.gethostname()}")
    stream.flush()
    return stream
