"""Two Python processes that run the same script, as two ranks would, without a launcher between them and the test."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_two_processes(script: str, folder: Path) -> None:
    """Run ``script`` twice at once with the arguments ``folder`` and its rank; both must end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", script, str(folder), str(rank)] for rank in range(2)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        assert process.wait(timeout=60) == 0, process.stderr.read()
        process.stderr.close()


def run_ranks(command: Sequence[str], world: int = 2, timeout: float = 240) -> list[tuple[int, str]]:
    """Exit code and standard error of each rank of ``command``, run as the launcher would on CPUs.

    Unlike the launcher, nothing ends one rank because another has ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(world),
    }
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(world)}
    ranks = []
    for rank in range(world):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return [(process.returncode, error) for process, error in zip(ranks, errors, strict=True)]
