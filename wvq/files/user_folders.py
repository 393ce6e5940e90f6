"""The user's own folders: the home in a path, and the caches of features and of compiled code."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wvq.checks import PATH, SOURCE, Rule, require
from wvq.files.ownership import private_folder


def expand_user(path: str | os.PathLike[str], name: str = "path", rule: Rule = SOURCE) -> Path:
    """A path as a caller writes it, in its one form (:data:`wvq.checks.PATH`): with the user's home in place of ``~``.

    Args:
        path: the path.
        name: what messages call it.
        rule: PATH where something is written or must lie on this machine.

    Raises:
        ConfigError: it is empty, a URL where none can be, or names the home of a user that is not here.
    """
    return Path(require(name, path, rule))


def cache_folder() -> Path:
    """Where features are kept for later runs: ``WVQ_CACHE``, or ``wvq`` in the user's cache; it need not exist.

    Raises:
        FileNotFoundError: the former is not set, and the user has no home.
    """
    if own := _own_cache():
        return own
    if cache := _user_cache():
        return cache / "wvq"
    raise FileNotFoundError(errno.ENOENT, "this user has no home folder")


def code_folders(kind: str) -> Iterator[Path]:
    """Where compiled code may be kept, best first; :func:`private_folder` makes one, or raises.

    Args:
        kind: ``native`` or ``torch``.
    """
    if own := _own_cache():
        yield own / kind  # not in the folder itself, which users may share
    if cache := _user_cache():
        yield cache / f"wvq-{kind}"  # not in `wvq`, which others may be allowed to write


def keep_torch_code_private() -> None:
    """Give torch.compile a folder of this user's own, unless TORCHINDUCTOR_CACHE_DIR names one.

    By default it runs what is in the system's temporary folder under the user's name, even if another user made it.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    for folder in code_folders("torch"):
        with contextlib.suppress(OSError):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(private_folder(folder))
            return
    temporary = tempfile.mkdtemp(prefix="wvq-torch-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = temporary


# Folders of caches by the variable that moves them, the narrowest first, with their place in the user's cache.
_CACHES = {
    "HF_DATASETS_CACHE": "huggingface/datasets",
    "HF_HUB_CACHE": "huggingface/hub",
    "HF_HOME": "huggingface",
    "TORCH_HOME": "torch",
    "WVQ_CACHE": "wvq",
}


def unwritable_cache(error: BaseException) -> str | None:
    """A line that names the variable and folder of the cache that an error, or one that led to it, is about.

    Libraries report such a folder as if the data in it could not be read. None for any other error.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and "No usable temporary directory" in str(cause):
            return "TMPDIR: no folder for temporary files can be written; set it to a folder of yours"
        if isinstance(cause, OSError) and isinstance(cause.filename, str):
            for name, folder in _cache_folders():
                is_there = cause.errno == errno.ENOENT and folder.exists()  # then it is a file that is missed in it
                if Path(cause.filename).is_relative_to(folder) and not is_there:
                    return f"{name}: {folder} cannot be written ({cause.strerror}); set it to a folder of yours"
        cause = cause.__cause__ or cause.__context__
    return None


def _cache_folders() -> Iterator[tuple[str, Path]]:
    for name in _CACHES:
        if folder := os.environ.get(name):
            yield name, Path(os.path.expanduser(folder))
    for name, place in _CACHES.items():
        if name not in os.environ and (cache := _user_cache()):
            yield name, cache / place


def _own_cache() -> Path | None:
    """The folder that ``WVQ_CACHE`` names; a shell does not replace ``~`` within quotes."""
    own = os.environ.get("WVQ_CACHE")
    return expand_user(own, "WVQ_CACHE", PATH) if own else None


def _user_cache() -> Path | None:
    """``XDG_CACHE_HOME`` or ``~/.cache``; None for a user without a home.

    It is made if need be, with mode 0700 as the XDG specification requires: on many systems the user's group may write
    to a folder made with the default mode, and compiled code is not kept in such a folder.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a number without an entry among the users, as containers have
        return None
    with contextlib.suppress(OSError):  # reported by the code that writes there
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder
