"""Runs the command line, and kills its process in the middle of a given file of features.

python evaluation_worker.py '{"arguments": [...], "kill_at": 2}'
"""

import json
import os
import signal
import sys

from wvq.app.cli import main
from wvq.distributed import processes
from wvq.eval.features import shards as streaming


def install(kill_at: int) -> None:
    save, saved = streaming.save_file, 0

    def killing(tensors, file, metadata):
        nonlocal saved
        saved += 1
        save(tensors, file, metadata)
        if saved == kill_at:
            with open(file, "r+b") as opened:  # as far as the disk had come
                opened.truncate(os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    streaming.save_file = killing


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    install(settings.get("kill_at", 0))
    assert processes().num_processes == settings.get("world", 1)
    sys.exit(main(settings["arguments"]))
