"""One process of several that encode captions together: what it finds, and the texts that it encoded itself.

python text_worker.py settings.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from wvq.distributed import leave_processes, process_rank, processes, world_size
from wvq.errors import CacheError
from wvq.generator.text import features as text_features
from wvq.generator.text.captions import CaptionIndex
from wvq.generator.text.encoder import TextEncoder


def main(settings: dict) -> None:
    processes()
    assert world_size() == 2
    captions = [(text,) for text in settings["texts"]]
    texts = CaptionIndex([captions], lambda picture: captions[picture])
    encoded: list[str] = []
    encode, write = text_features.encode_part, text_features.write_part

    def noted(some, encoder):
        encoded.extend(some)
        return encode(some, encoder)

    def full(*_):
        if process_rank() == 1:
            raise OSError(28, "No space left on device")
        write(*_)

    text_features.encode_part = noted
    out = Path(settings["out"])
    found = {}
    text_features.write_part = full
    try:
        text_features.text_features("disk", out / "full", texts, TextEncoder(settings["encoder"], 5))
    except CacheError as error:
        found["error"] = str(error)
    text_features.write_part = write
    for kept in ("disk", "memory"):
        encoded.clear()
        features = text_features.text_features(kept, out / "text", texts, TextEncoder(settings["encoder"], 5))
        found[kept] = (features[np.arange(len(features))], list(encoded))
    torch.save(found, out / f"{process_rank()}.pt")
    leave_processes()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
