"""Builds nearest.cpp on first use and calls it; everything here is optional, and the caller has a form in plain torch.

The library is compiled for this very machine with the system's C++ compiler (about two seconds), and kept in a cache
folder under a name that holds the hash of source, flags, compiler and processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("nearest.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
LANES = 16  # as in nearest.cpp: the number of codes is padded to a multiple of it
MAX_CODES = 2**31 - LANES  # indices are 32-bit inside


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled search, or None where it cannot be had: no compiler, or WVQ_NATIVE=0 in the environment."""
    if os.environ.get("WVQ_NATIVE", "1") == "0":
        return None
    try:
        loaded = ctypes.CDLL(str(_built()))
        function = loaded.wvq_nearest
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        logger.info("the compiled nearest-code search is not available, using torch's products: %s", error)
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, pointer, pointer, integer, integer, integer, integer, pointer]
    function.restype = None
    return loaded


def search(features: torch.Tensor, codebook: torch.Tensor, half_squares: torch.Tensor) -> torch.Tensor:
    """Index (N,) of the smallest ``half_squares - features @ codebook.T``; all float32 on the CPU.

    Args:
        features: (N, D).
        codebook: (K, D).
        half_squares: (K,).
    """
    padding = -len(codebook) % LANES
    codes = torch.nn.functional.pad(codebook.T, (0, padding)).contiguous()  # D K
    halves = torch.nn.functional.pad(half_squares, (0, padding), value=torch.inf).contiguous()
    features = features.contiguous()
    out = torch.empty(len(features), dtype=torch.int64)
    library().wvq_nearest(
        *(tensor.data_ptr() for tensor in (features, codes, halves)),
        len(features),
        len(halves),
        features.shape[1],
        torch.get_num_threads(),
        out.data_ptr(),
    )
    return out


def _built() -> Path:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise FileNotFoundError("no C++ compiler on the path")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    # The processor is part of the name: a home folder may be shared by machines with other instruction sets.
    parts = (SOURCE.read_text(), *FLAGS, compiler, version, platform.machine(), _processor())
    name = f"nearest-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    path = cache_folder() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / name
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(built)]
            subprocess.run(command, capture_output=True, check=True, timeout=300)
            os.replace(built, path)  # whole or not at all, whichever process comes first
    return path


def cache_folder() -> Path:
    """Where compiled code is kept: WVQ_CACHE, or else ``wvq`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WVQ_CACHE") or Path(base) / "wvq")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
