"""Two Python processes that run the same script, as two ranks would."""

import os
import subprocess
import sys
from pathlib import Path


def run_two_processes(script: str, folder: Path) -> None:
    """Run ``script`` twice at once with the arguments ``folder`` and its rank; both must end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", script, str(folder), str(rank)] for rank in range(2)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        assert process.wait(timeout=60) == 0, process.stderr.read()
        process.stderr.close()
