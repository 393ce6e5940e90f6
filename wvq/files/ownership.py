"""Whether other users of the machine could have written a file: checked before compiled code is loaded.

The rule is that of OpenSSH's StrictModes: a file, its folder and every folder above belong to this user or to root, and
no other user may write there. A folder with the sticky bit (as ``/tmp``) may lie above: in it others cannot replace
this user's files.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder(folder: Path) -> Path:
    """A folder that only this user can write, made if need be with mode 0700; returned without symbolic links.

    Raises:
        PermissionError: others own it, or can write it or a folder above it.
        OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder = folder.resolve(strict=True)
    if not _has_owners():
        return folder
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{folder} is no folder")
    if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
        raise PermissionError(f"{folder} is not this user's alone (its mode must be 0700)")
    for above in folder.parents:
        status = above.stat()
        if status.st_uid not in (0, os.geteuid()) or (
            status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX
        ):
            raise PermissionError(f"{folder} lies in {above}, which other users can change")
    return folder


def require_own_file(file: Path) -> None:
    """Refuse a file that others could have written.

    Raises:
        PermissionError: no regular file of this user, or others can write it.
        OSError: it is not there.
    """
    if not _has_owners():
        return
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
        raise PermissionError(f"{file} is no file of this user alone")


def _has_owners() -> bool:
    """Windows keeps a user's folders apart by access lists, which modes do not show."""
    return hasattr(os, "geteuid")
