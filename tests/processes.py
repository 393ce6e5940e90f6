"""Programs in processes of their own, forked from one that has imported the package, as users or a launcher run them.

What must be a fresh interpreter, such as a test of what an import loads, is started by `subprocess` instead.
"""

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")


ADDRESS = "WVQ_TEST_FORK_SERVER"  # variable with the path of the server's socket, for the processes that share it


def start_server() -> str:
    """The address of a server that lives as long as this process, or of the one that a parent of it has started."""
    if ADDRESS in os.environ:
        return os.environ[ADDRESS]
    folder = tempfile.mkdtemp()  # closed to other users
    address = os.path.join(folder, "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)  # who comes while it still imports, waits
        command = [sys.executable, str(SERVER), str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], stdin=subprocess.PIPE)

    def stop():
        process.stdin.close()
        process.wait()
        shutil.rmtree(folder)

    atexit.register(stop)
    os.environ[ADDRESS] = address
    return address


class Program:
    """A program that runs in a process of its own, in this folder and environment.

    Args:
        arguments: those of `python`: ``-c code``, ``-m module`` or a file, then the program's own.
        variables: environment variables in addition to those of this process.

    Attributes:
        pid: id of the process, which leads a process group of its own.
    """

    def __init__(self, arguments: Sequence[str | Path], variables: Mapping[str, str] | None = None):
        self.arguments = [str(argument) for argument in arguments]
        self._output, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._connection, theirs = Pipe()
        files = [file.fileno() for file in (theirs, self._output, self._errors)]
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(start_server())
            socket.send_fds(server, [b"!"], files)
        theirs.close()
        self._connection.send((self.arguments, {**os.environ, **(variables or {})}, os.getcwd()))
        self.pid = self._connection.recv()

    @property
    def stdout(self) -> str:
        """What it has written to its output until now."""
        return _text(self._output)

    @property
    def stderr(self) -> str:
        """What it has written to its standard error until now."""
        return _text(self._errors)

    @property
    def ended(self) -> bool:
        """Whether it is at its end."""
        return self._connection.poll()

    def wait(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait for its end; after ``timeout`` seconds it and its children are killed.

        Raises:
            subprocess.TimeoutExpired: it had not ended in time.
        """
        if not self._connection.poll(timeout):
            self.kill()
            raise subprocess.TimeoutExpired(self.arguments, timeout, self.stdout, self.stderr)
        code = self._connection.recv()
        return subprocess.CompletedProcess(self.arguments, code, self.stdout, self.stderr)

    def kill(self) -> None:
        """End what is left of it and of the processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _text(file) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


def run(
    arguments: Sequence[str | Path], timeout: float = 120, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; see `Program`."""
    return Program(arguments, variables).wait(timeout)


def run_ranks(
    arguments: Sequence[str | Path], world: int = 2, timeout: float = 240, variables: Mapping[str, str] | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run a program as each rank of ``world`` processes, as a launcher would on CPUs; one process needs no launcher.

    Unlike the launcher, nothing ends one rank because another has ended.

    Raises:
        AssertionError: a rank had not ended in time; shows what each has written to its standard error.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", **(variables or {})}
    if world == 1:
        return [run(arguments, timeout, shared)]
    shared |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [Program(arguments, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world)]
    try:
        return [rank.wait(timeout) for rank in ranks]
    except subprocess.TimeoutExpired as stalled:  # most often since another has failed, which says why
        raise AssertionError("\n".join([str(stalled), *(rank.stderr[-4000:] for rank in ranks)])) from None
    finally:
        for rank in ranks:
            rank.kill()
