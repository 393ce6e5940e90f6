"""Builds nearest.cpp on first use and calls it; all of it is optional, and the caller has a version in plain torch.

The library is compiled for this very machine with the system's C++ compiler (about two seconds), and kept under a name
that holds the hash of source, flags, compiler and processor. As it is code that runs, it lies where only this user can
write; where there is no such folder, each process compiles its own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from wvq.files.ownership import private_folder, require_own_file
from wvq.files.user_folders import code_folders

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("nearest.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
LANES = 16  # as in nearest.cpp: the number of codes is padded to a multiple of it
MAX_CODES = 2**31 - LANES  # indices are 32-bit inside


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled search, or None where it is not available: no compiler, or WVQ_NATIVE=0 in the environment."""
    if os.environ.get("WVQ_NATIVE", "1") == "0":
        return None
    try:
        return _loaded()
    except (OSError, AttributeError, ValueError, subprocess.SubprocessError) as error:
        logger.info("the compiled nearest-code search is not available, using torch's products: %s", error)
        return None


def search(features: torch.Tensor, codebook: torch.Tensor, half_squares: torch.Tensor) -> torch.Tensor:
    """Index (N,) of the smallest ``half_squares - features @ codebook.T``; all float32 on the CPU.

    Args:
        features: (N, D).
        codebook: (K, D).
        half_squares: (K,).

    Raises:
        RuntimeError: :func:`library` returns None.
    """
    padding = -len(codebook) % LANES
    codes = torch.nn.functional.pad(codebook.T, (0, padding)).contiguous()  # D K
    halves = torch.nn.functional.pad(half_squares, (0, padding), value=torch.inf).contiguous()
    features = features.contiguous()
    out = torch.empty(len(features), dtype=torch.int64)
    loaded = library()
    if loaded is None:
        raise RuntimeError("the compiled search is not available; call library() first")
    loaded.wvq_nearest(
        *(tensor.data_ptr() for tensor in (features, codes, halves)),
        len(features),
        len(halves),
        features.shape[1],
        torch.get_num_threads(),
        out.data_ptr(),
    )
    return out


def _loaded() -> ctypes.CDLL:
    compiler = _compiler()
    name = _file_name(compiler)
    for folder in code_folders("native"):
        try:
            return _open(_built(private_folder(folder), name, compiler))
        except OSError as error:  # not private, not writable, mounted without execution, or a damaged file
            logger.info("compiled code is not kept in %s: %s", folder, error)
    with tempfile.TemporaryDirectory(prefix="wvq-native-") as temporary:  # a loaded library no longer needs its file
        return _open(_built(private_folder(Path(temporary)), name, compiler))


def _compiler() -> list[str]:
    """The command of the C++ compiler: ``CXX``, arguments included (``ccache g++``), or the system's."""
    named = os.environ.get("CXX", "").strip()
    command = [named] if shutil.which(named) else shlex.split(named)  # a path may hold blanks
    command = command or list(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))[:1]
    if not command:
        raise FileNotFoundError("no C++ compiler on the path")
    return command


def _file_name(compiler: list[str]) -> str:
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    # The processor is part of the name: a home folder may be shared by machines with other instruction sets.
    parts = (
        SOURCE.read_text(encoding="utf-8"),
        *FLAGS,
        *compiler,
        version.decode(errors="replace"),
        platform.machine(),
        _processor(),
    )
    return f"nearest-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"


def _built(folder: Path, name: str, compiler: list[str]) -> Path:
    path = folder / name
    if not path.is_symlink() and not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            built = Path(partial) / name
            command = [*compiler, *FLAGS, str(SOURCE), "-o", str(built)]
            subprocess.run(command, capture_output=True, check=True, timeout=300)
            built.chmod(0o700)  # whatever the umask allows others
            os.replace(built, path)  # complete or absent, whichever process comes first
    return path


def _open(path: Path) -> ctypes.CDLL:
    require_own_file(path)
    loaded = ctypes.CDLL(str(path))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    loaded.wvq_nearest.argtypes = [pointer, pointer, pointer, integer, integer, integer, integer, pointer]
    loaded.wvq_nearest.restype = None
    return loaded


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
