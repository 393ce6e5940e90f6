"""Imports the package once, then forks: a program that a test starts need not import it all again.

    python fork_server.py 5

The number is the descriptor of a listening socket. Each connection to it brings three more: of a connection over which
the program is described and reported, and of the files for its output and errors. The program is a process like any
other, run as `python` would run it, and ends as an interpreter ends. The server ends when its input does.
"""

import contextlib
import gc
import importlib
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

PACKAGES = ("wvq", "wvq.tokenizer", "wvq.generator", "wvq.pipelines", "wvq.eval")


def import_everything() -> None:
    """Import all modules of the package, and what torch and accelerate import when they are first used."""
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if not module.name.endswith("__main__"):
                try:
                    importlib.import_module(module.name)
                except ModuleNotFoundError as error:
                    if error.name != "triton":  # which is not everywhere
                        raise
    for name in ("torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard", "accelerate.utils.fsdp_utils"):
        importlib.import_module(name)
    assert threading.active_count() == 1, "a thread would be missing in every fork"


def serve(listener: socket.socket) -> None:
    """Start a program for each connection, until the process that has started the server is at its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who watch a program
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        client, _ = listener.accept()
        _, files, *_ = socket.recv_fds(client, 1, 3)
        client.close()
        if files and os.fork() == 0:
            listener.close()
            watch(Connection(files[0]), *files[1:])
        for file in files:
            os.close(file)


def watch(connection: Connection, output: int, errors: int) -> None:
    """Fork the program; report its process id, and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    arguments, environment, folder = connection.recv()
    program = os.fork()
    if program == 0:
        connection.close()
        become(arguments, environment, folder, output, errors)
    connection.send(program)
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
        connection.send(code)
    os._exit(0)


def become(arguments: list[str], environment: dict[str, str], folder: str, output: int, errors: int) -> None:
    """Be the program: ``-c code``, ``-m module`` or a file, with its arguments."""
    os.setsid()  # a group of its own, with the processes that it starts
    with open(os.devnull) as nothing:
        for file, number in ((nothing.fileno(), 0), (output, 1), (errors, 2)):
            os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    main = sys.modules["__main__"] = ModuleType("__main__")
    is_file = arguments[0] not in ("-c", "-m")
    sys.path.insert(0, str(Path(arguments[0]).parent) if is_file else "")
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
    else:
        main.__file__, sys.argv = arguments[0], arguments
        exec(compile(Path(arguments[0]).read_text(encoding="utf-8"), arguments[0], "exec"), main.__dict__)
    sys.exit()


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file, whose wvq/ holds the tests of wvq
    import_everything()
    gc.collect()
    gc.freeze()  # else each program would go through all that is imported when it ends
    serve(socket.socket(fileno=int(sys.argv[1])))
