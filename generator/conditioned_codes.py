"""The training data of a generator: codes, and the class and the caption of each picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from wvq.data.codes import CodeDataset
from wvq.generator.text.cache import TextFeatures
from wvq.generator.text.captions import CaptionIndex
from wvq.generator.text.encoder import TextEncoder
from wvq.generator.text.features import text_features


class ConditionedCodes(Dataset[dict[str, Any]]):
    """Codes with the conditions of each picture.

    Of several captions of a picture, one is drawn by the seed and the position in the run; an integer key reads the
    first. Every process makes its own at the same time: they encode the captions together.

    Args:
        codes: the pictures.
        classes: whether items hold ``class_labels``.
        text_encoder: encodes the captions; without one, items hold none. It is moved to the CPU at the end.
        text_cache: where the features of the captions lie: ``disk`` or ``memory``, where items hold ``text_features``
            (L, E) float16 and ``text_mask`` (L,); or ``none``, where items hold the text itself as ``caption``.
        device: where the encoder works.

    Raises:
        ConfigError, CacheError: see :func:`wvq.generator.text.features.text_features`.
    """

    def __init__(
        self,
        codes: CodeDataset,
        classes: bool,
        text_encoder: TextEncoder | None,
        text_cache: str = "disk",
        device: torch.device | str = "cpu",
    ):
        self.codes, self.classes = codes, classes
        self.captions: CaptionIndex | None = None
        self.text: TextFeatures | None = None
        if text_encoder is not None:
            self.captions = CaptionIndex(codes.caption_batches(4_096), codes.texts)
            if text_cache != "none":
                self.text = text_features(text_cache, codes.folder / "text", self.captions, text_encoder, device)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> dict[str, Any]:
        """A batch at once: rows cut apart and stacked again by the loader would take most of its time."""
        rows = self.codes.batch(keys)
        batch: dict[str, Any] = {"codes": rows["codes"]}
        if self.classes:
            batch["class_labels"] = rows["label"]
        if self.captions is not None:
            numbers = self.captions.drawn(keys, self.codes.seed)
            if self.text is None:
                batch["caption"] = [self.captions.caption(int(number)) for number in numbers]
            else:
                batch["text_features"], batch["text_mask"] = self.text[self.captions.rows[numbers]]
        return batch

    def sampled_text(
        self, count: int, batch_size: int, encoder: TextEncoder | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Features (B, L, E) and masks (B, L) of a random sample of the captions, the same each time.

        Args:
            count: captions in all, at most.
            batch_size: captions at once.
            encoder: needed by a set that keeps no features.
        """
        if self.captions is None:
            return
        total = len(self.captions)
        rows = np.random.default_rng(0).choice(total, min(total, count), replace=False, shuffle=False)
        rows.sort()  # neighbours lie together on disk
        if self.text is not None:
            for batch in np.split(rows, range(batch_size, len(rows), batch_size)):
                yield self.text[batch]
        elif encoder is not None:
            yield from encoder.stream(self.captions.texts(rows), batch_size)

    @staticmethod
    def collate_fn(batch: Any) -> Any:
        """The batch unchanged: :meth:`__getitems__` has stacked it already."""
        return batch
