"""The training data of a generator: codes with what it is told about each picture."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from wvq.data.codes import CodeDataset
from wvq.generator.text.captions import CaptionIndex
from wvq.generator.text.encoder import TextEncoder
from wvq.generator.text.features import text_features


class ConditionedCodes(Dataset):
    """Codes with what the generator is told about each picture.

    Of several captions of a picture, one is drawn by the seed and the position in the run; an integer key reads the
    first. Every process makes its own at the same time: they encode the captions together.

    Args:
        codes: the pictures.
        classes: whether items hold ``class_labels``.
        text_encoder: of the captions; without one, items hold none. It ends on the CPU.
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
        self.captions = self.text = None
        if text_encoder is not None:
            self.captions = CaptionIndex(codes.caption_batches(4_096), codes.texts)
            if text_cache != "none":
                self.text = text_features(text_cache, codes.folder / "text", self.captions, text_encoder, device)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list) -> dict:
        """A batch at once: rows cut apart and stacked again by the loader would take most of its time."""
        found = self.codes.batch(keys)
        batch = {"codes": found["codes"]}
        if self.classes:
            batch["class_labels"] = found["label"]
        if self.captions is not None:
            numbers = self.captions.drawn(keys, self.codes.seed)
            if self.text is None:
                batch["caption"] = [self.captions.caption(int(number)) for number in numbers]
            else:
                batch["text_features"], batch["text_mask"] = self.text[self.captions.rows[numbers]]
        return batch

    @staticmethod
    def collate_fn(batch: dict) -> dict:
        """A batch is whole as it comes."""
        return batch
