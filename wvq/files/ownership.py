"""Whether other users of the machine could have put or changed a file: asked before compiled code is loaded.

The rule is that of OpenSSH's StrictModes: a file, its folder and every folder above belong to this user or to root, and
nobody else may write there. A folder with the sticky bit (as ``/tmp``) may lie above: what we own in it stays ours.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def user_cache() -> Path | None:
    """The user's cache folder, ``XDG_CACHE_HOME`` or ``~/.cache``; None for a user without a home.

    It is made if need be, with mode 0700 as the XDG specification has it: many systems let a user's group write folders
    that are made in passing, and compiled code is not kept in such a one.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a number without an entry among the users, as containers have
        return None
    with contextlib.suppress(OSError):  # said by whoever writes there
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


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
    """
    Raises:
        PermissionError: no regular file of this user, or others can write it.
        OSError: it is not there.
    """
    if not _has_owners():
        return
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
        raise PermissionError(f"{file} is no file of this user alone")


def keep_torch_code_private() -> None:
    """Give torch.compile a folder of this user's own, unless TORCHINDUCTOR_CACHE_DIR names one.

    By default it runs what it finds in the system's temporary folder under the user's name, whoever made it.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    cache = user_cache()
    try:
        folder = private_folder(cache / "wvq-torch") if cache else None
    except OSError:
        folder = None
    if folder is None:
        folder = tempfile.mkdtemp(prefix="wvq-torch-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _has_owners() -> bool:
    """Windows keeps a user's folders apart by access lists, which modes do not show."""
    return hasattr(os, "geteuid")
