"""Text features of a code cache's captions, encoded once and kept beside the codes.

They lie in ``<codes>/text/<key>``: features.npy (N, L, E) float16 and masks.npy (N, L) bool, read through memory maps.
The key is a hash of the encoder's identity, the length and the captions, so nothing that differs is ever taken for the
same.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from wvq.distributed import processes
from wvq.generator.text_encoder import TextEncoder
from wvq.outputs import whole_folder

BATCH = 64


class TextFeatures:
    """Features and masks of texts by row.

    Indexing by rows gives features (..., L, E) float16, as they are kept, and masks (..., L) bool.
    """

    def __init__(self, features: np.ndarray, masks: np.ndarray):
        self.features, self.masks = features, masks

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: int | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.from_numpy(np.array(values[rows])) for values in (self.features, self.masks))


def cached_text_features(folder: Path, texts: list[str], encoder: TextEncoder) -> TextFeatures:
    """Features of the texts, from the folder, or encoded and then kept there; the first process encodes for all.

    A folder that cannot be written is no error: the features then stay in memory.
    """
    key = features_key(texts, encoder)
    target = folder / key
    with processes().main_process_first():
        if not target.is_dir():
            try:
                with whole_folder(target) as partial:
                    write_features(partial, texts, encoder)
            except OSError as error:
                warnings.warn(f"text features are not kept in {target} ({error.strerror or error})", stacklevel=2)
                features, masks = encoder.encode(texts)
                return TextFeatures(features.half().cpu().numpy(), masks.cpu().numpy())
        return TextFeatures(*(np.load(target / f"{name}.npy", mmap_mode="r") for name in ("features", "masks")))


def features_key(texts: list[str], encoder: TextEncoder) -> str:
    """Hash of all that the features depend on; 16 hex digits."""
    parts = [encoder.identity(), encoder.length, texts]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def write_features(folder: Path, texts: list[str], encoder: TextEncoder) -> None:
    """Write features.npy and masks.npy batch by batch, so that memory holds one batch."""
    shape = (len(texts), encoder.length)
    create = np.lib.format.open_memmap
    # Half precision: half the room, and the projection that reads them rounds more.
    features = create(folder / "features.npy", "w+", np.float16, (*shape, encoder.dim))
    masks = create(folder / "masks.npy", "w+", np.bool_, shape)
    done = 0
    with tqdm(total=len(texts), desc="encoding captions", unit="text", disable=len(texts) <= BATCH) as bar:
        for states, mask in encoder.stream(texts, BATCH):
            rows = slice(done, done + len(states))
            features[rows], masks[rows] = states.cpu().numpy(), mask.cpu().numpy()
            done = rows.stop
            bar.update(len(states))
    features.flush()
    masks.flush()
