"""Does something that writes files, and kills its process when the given one is written and has no name of its own yet.

python kill_worker.py '{"arguments": ["sample", ...], "kill_at": 3}'
python kill_worker.py '{"pipeline": "from", "save": "to", "kill_at": 2}'
"""

import json
import os
import signal
import sys
from pathlib import Path

from wvq.app.cli import main
from wvq.pipelines.image_generation import ImageGenerationPipeline


def install(kill_at: int) -> None:
    replace, rename, named = os.replace, Path.rename, 0

    def count() -> None:
        nonlocal named
        named += 1
        if named == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counting_replace(source, target, **options):
        count()
        replace(source, target, **options)

    def counting_rename(self, target):
        count()
        return rename(self, target)

    os.replace, Path.rename = counting_replace, counting_rename


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    pipe = ImageGenerationPipeline.from_pretrained(settings["pipeline"]) if "save" in settings else None
    install(settings.get("kill_at", 0))
    if pipe is None:
        sys.exit(main(settings["arguments"]))
    pipe.save_pretrained(settings["save"])
