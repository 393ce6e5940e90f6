"""What captions cost before and in a training run, on one core: indexing, encoding, and reading features back.

    python -m benchmarks.captions [--texts 4096] [--captions 1000000] [--out docs/results/captions.json]

Texts of 6 to 15 tokens by all-MiniLM-L6-v2 (E = 384), of at most 16 tokens; features are written to disk and read in
random order, 256 at a time. The index is of different captions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch
import transformers

from wvq.files.atomic import write_json
from wvq.generator.text.captions import CaptionIndex
from wvq.generator.text.encoder import TextEncoder
from wvq.generator.text.features import text_features
from wvq.hardware import hardware

WORDS = ["a", "the", "small", "large", "red", "blue", "old", "new", "house", "tree", "river", "dog", "cat", "bird"]
WORDS += ["on", "under", "near", "behind", "with", "and", "of", "light"]


def captions(count: int) -> list[tuple[str]]:
    """Different captions of 4 to 12 words and a number."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 13, count)
    chosen = rng.integers(0, len(WORDS), (count, 12))
    return [
        (" ".join(WORDS[i] for i in row[:length]) + f" {number}",)
        for number, (row, length) in enumerate(zip(chosen, lengths, strict=True))
    ]


def indexed(texts: list[tuple[str]]) -> CaptionIndex:
    """The index of these captions, one a picture."""
    batches = (texts[start : start + 4_096] for start in range(0, len(texts), 4_096))
    return CaptionIndex(batches, lambda picture: texts[picture])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=4_096, help="texts to encode")
    parser.add_argument("--captions", type=int, default=1_000_000, help="captions to index")
    parser.add_argument("--batches", type=int, default=200, help="batches to read")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict = {}
    texts = indexed(captions(arguments.texts))
    encoder = TextEncoder("all-MiniLM-L6-v2", 16)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        features = text_features("disk", Path(folder), texts, encoder)
        result["texts_encoded_per_second"] = round(len(texts) / (time.perf_counter() - start))
        result["tokens_per_text"] = round(float(features.offsets[-1]) / len(texts), 2)
        result["bytes_per_text"] = round(sum(part.nbytes for part in features.tokens) / len(texts))
        rows = np.random.default_rng(0).integers(0, len(texts), (arguments.batches, 256))
        start = time.perf_counter()
        for batch in rows:
            features[batch]
        result["rows_read_per_second"] = round(rows.size / (time.perf_counter() - start))
    caption_lists = captions(arguments.captions)
    start = time.perf_counter()
    index = indexed(caption_lists)
    result["captions_indexed_per_second"] = round(len(caption_lists) / (time.perf_counter() - start))
    tracemalloc.start()
    indexed(caption_lists)
    result["index_bytes_per_caption_at_most"] = round(tracemalloc.get_traced_memory()[1] / len(caption_lists), 1)
    result["index_bytes_per_caption_kept"] = round(
        sum(value.nbytes for value in vars(index).values() if isinstance(value, np.ndarray)) / len(caption_lists), 1
    )
    print(result)
    if arguments.out:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        write_json(arguments.out, {**hardware(), **versions, **result})


if __name__ == "__main__":
    main()
