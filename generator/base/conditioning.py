"""Conditions of the generator: class and text tokens ahead of the codes, each with its own trained null.

Shapes: B pictures, P prefix tokens, L text tokens, E dims of the text encoder, D hidden size.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import SupportsIndex

import torch
import torch.nn.functional as F
from torch import nn

from wvq.checks import as_integer, locale_fault
from wvq.errors import ConfigError, near_match
from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.base.initialization import set_init_scale
from wvq.generator.text.whitening import Moments, whitening
from wvq.hardware import send

NULL_CLASS = -1


@dataclass(frozen=True)
class Condition:
    """The condition of a batch of pictures; a missing part is null.

    Attributes:
        class_labels: (B,) int64, -1 for null.
        text_features: (B, L, E), left-padded.
        text_mask: (B, L) bool, True for tokens; a row without any is null.
        null_mask: (B, L) bool, the mask under which a null text is seen by generators whose ``null_text`` is
            ``features``: that of the text that was left out; ``text_mask`` if None. A row without any tokens has no
            text to leave out, and all places are seen.
    """

    class_labels: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    text_mask: torch.Tensor | None = None
    null_mask: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.null_mask is None:
            object.__setattr__(self, "null_mask", self.text_mask)

    def null(self) -> Condition:
        """The same shapes with every condition null."""
        return Condition(
            None if self.class_labels is None else torch.full_like(self.class_labels, NULL_CLASS),
            self.text_features,
            None if self.text_mask is None else torch.zeros_like(self.text_mask),
            self.null_mask,
        )

    def drop(self, class_dropout: float, text_dropout: float, joint_dropout: float = 0.0) -> Condition:
        """Replace each picture's class and text by null at random, each on its own and, by one more draw, together.

        With both conditions given, a picture loses both with probability j + (1 - j) c t, the class alone with
        (1 - j) c (1 - t), the text alone with (1 - j) (1 - c) t, and nothing with (1 - j) (1 - c) (1 - t), for class
        dropout c, text dropout t and joint dropout j. With one condition there is nothing to drop together.
        """
        labels, mask = self.class_labels, self.text_mask
        if labels is not None and class_dropout:
            dropped = torch.rand(len(labels)) < class_dropout
            labels = labels.masked_fill(send(dropped, labels.device), NULL_CLASS)
        if mask is not None and text_dropout:
            keep = torch.rand(len(mask)) >= text_dropout
            mask = mask & send(keep, mask.device)[:, None]
        if labels is not None and mask is not None and joint_dropout:
            # Drawn last: without it, the draws are those of versions before this dropout.
            keep = send(torch.rand(len(labels)) >= joint_dropout, labels.device)
            labels, mask = labels.masked_fill(~keep, NULL_CLASS), mask & keep[:, None]
        return Condition(labels, self.text_features, mask, self.null_mask)

    def rows(self, numbers: list[int]) -> Condition:
        """The conditions of these rows of the batch, in that order."""
        return Condition(*(None if part is None else part[numbers] for part in self.named().values()))

    def cat(self, other: Condition) -> Condition:
        """Both batches one after the other."""
        pairs = zip(self.named().values(), other.named().values(), strict=True)
        return Condition(*(None if a is None or b is None else torch.cat((a, b)) for a, b in pairs))

    def named(self) -> dict[str, torch.Tensor | None]:
        """The tensors by name, as arguments of a model."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass
class Prefix:
    """An embedded condition.

    Attributes:
        tokens: (B, P, D), ahead of the codes.
        valid: (B, P) bool, False for the padding of a text; None if nothing is padding.
        bias: (B, 1, D) to add to every code's token, or None.
    """

    tokens: torch.Tensor
    valid: torch.Tensor | None
    bias: torch.Tensor | None


class ConditionNetwork(nn.Module):
    """The part of a generator that embeds conditions: a class, a text, or both."""

    def text_layers(self) -> list[tuple[nn.Linear, bool]]:
        """The layers that read features of text, and whether they read the mean of a text's tokens or each token."""
        raise NotImplementedError

    @torch.no_grad()
    def fit_text(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Start the text projections from whitened features: of unit variance and uncorrelated over the captions.

        Captions of one data set are alike ("flag: Japan", "flag: France"), so a text encoder's features differ in
        directions of small variance only, which a short training would hardly find.

        Args:
            batches: features (n, L, E) and masks (n, L) bool of training captions; memory holds one batch.
        """
        layers = self.text_layers()
        moments = [Moments() for _ in layers]
        for features, mask in batches:
            features, mask = features.cpu().double(), mask.cpu()
            for (_, pooled), sums in zip(layers, moments, strict=True):
                sums.add(mean_text(features, mask)[mask.any(1)] if pooled else features[mask])
        for (layer, _), sums in zip(layers, moments, strict=True):
            weight, bias = whitening(sums, layer.weight.double().cpu())
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


class TextProjection(nn.Module):
    """Two layers without biases, from features (..., E) of a text encoder to (..., D)."""

    def __init__(self, text_dim: int, width: int):
        super().__init__()
        self.up, self.out = nn.Linear(text_dim, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.out(F.gelu(self.up(features), approximate="tanh"))


class ConditionEmbedder(ConditionNetwork):
    """Prefix tokens of a condition: the class token first, then the text, so that text touches the first code."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        if config.has_class_token:
            self.class_embedding = nn.Embedding(config.num_classes + 1, config.hidden_size)  # the last row is null
        if config.text_dim:
            projection = nn.Linear if config.text_projection == "linear" else TextProjection
            self.text_projection = projection(config.text_dim, config.hidden_size)
            features = (config.text_length, config.text_dim)
            self.null_text = nn.Parameter(torch.zeros(features if self.null_features else config.hidden_size))
        if config.condition_bias and config.has_class_token:
            self.class_bias = nn.Embedding(config.num_classes + 1, config.hidden_size)
            # As large as the bias of a text: whitened features of some hundred dims sum up to about this.
            set_init_scale(self.class_bias, 20.0)
        if config.condition_bias and config.text_dim:
            self.text_bias = nn.Linear(config.text_dim, config.hidden_size)

    @property
    def null_features(self) -> bool:
        """Whether a null text is features in the place of those that are left out, and not a token."""
        return self.config.null_text == "features"

    def forward(self, condition: Condition, batch_size: int) -> Prefix:
        """Embed the condition of ``batch_size`` pictures.

        Raises:
            ConfigError: text features without their mask, or a mask alone.
        """
        config, device = self.config, next(self.parameters()).device
        tokens, masks, biases = [], [], []
        if config.has_class_token:
            labels = class_rows(condition, config.num_classes, batch_size, device)
            tokens.append(self.class_embedding(labels)[:, None])
            masks.append(torch.ones(batch_size, 1, dtype=torch.bool, device=device))
            if config.condition_bias:
                biases.append(self.class_bias(labels)[:, None])
        if config.text_dim:
            features, mask = self._given_text(condition, batch_size, device)
            if config.condition_bias:
                biases.append(
                    (self.text_bias(mean_text(features, mask)) * mask.any(1, keepdim=True))[:, None]
                )  # or none
            null = ~mask.any(1, keepdim=True)
            if self.null_features:
                tokens.append(self.text_projection(torch.where(null[..., None], self.null_text, features)))
                masks.append(mask | (null & self._null_mask(condition, mask)))
            else:
                last = torch.arange(config.text_length, device=device) == config.text_length - 1
                null = null & last  # B L: a null text is one trained token in the last place
                tokens.append(torch.where(null[..., None], self.null_text, self.text_projection(features)))
                masks.append(mask | null)
        valid = torch.cat(masks, 1) if config.text_dim else None
        return Prefix(torch.cat(tokens, 1), valid, sum(biases) if biases else None)

    def text_layers(self) -> list[tuple[nn.Linear, bool]]:
        layers: list[tuple[nn.Linear, bool]] = []
        if isinstance(self.text_projection, nn.Linear):  # two layers have no bias that could centre the features
            layers.append((self.text_projection, False))
        return [*layers, (self.text_bias, True)] if self.config.condition_bias else layers

    def _null_mask(self, condition: Condition, mask: torch.Tensor) -> torch.Tensor:
        """Which places (B, L) of a null text are seen: those of the text that it replaces, or all."""
        places = mask if condition.null_mask is None else condition.null_mask
        return places | ~places.any(1, keepdim=True)

    def _given_text(
        self, condition: Condition, batch_size: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, L, E) and mask (B, L) of the texts, all null if there are none."""
        dtype = self.null_text.dtype
        if (given := given_text(condition)) is not None:
            return given[0].to(dtype), given[1]
        shape = (batch_size, self.config.text_length)
        features = torch.zeros(*shape, self.config.text_dim, device=device, dtype=dtype)
        return features, torch.zeros(shape, dtype=torch.bool, device=device)


class ConditionVector(ConditionNetwork):
    """The condition of each picture as one vector (B, D): its class, the mean of its text's tokens, or their sum."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        if config.has_class_token:
            self.class_embedding = nn.Embedding(config.num_classes + 1, config.hidden_size)  # the last row is null
        if config.text_dim:
            self.text_projection = nn.Linear(config.text_dim, config.hidden_size)
            self.null_text = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, condition: Condition, batch_size: int) -> torch.Tensor:
        """Embed the condition of ``batch_size`` pictures.

        Raises:
            ConfigError: text features without their mask, or a mask alone.
        """
        config, device, vectors = self.config, next(self.parameters()).device, []
        if config.has_class_token:
            vectors.append(self.class_embedding(class_rows(condition, config.num_classes, batch_size, device)))
        if config.text_dim:
            vectors.append(self._text(condition, batch_size))
        return torch.stack(vectors).sum(0)

    def text_layers(self) -> list[tuple[nn.Linear, bool]]:
        return [(self.text_projection, True)]

    def _text(self, condition: Condition, batch_size: int) -> torch.Tensor:
        if (given := given_text(condition)) is None:
            return self.null_text.expand(batch_size, -1)
        features, mask = given
        projected = self.text_projection(mean_text(features.to(self.text_projection.weight.dtype), mask))
        return torch.where(mask.any(1, keepdim=True), projected, self.null_text)


def class_rows(condition: Condition, num_classes: int, batch_size: int, device: torch.device) -> torch.Tensor:
    """Rows (B,) of a class embedding whose last one is null; all null where there are no classes."""
    labels = condition.class_labels
    if labels is None:
        labels = torch.full((batch_size,), NULL_CLASS, device=device)
    return torch.where(labels < 0, num_classes, labels)


def given_text(condition: Condition) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Features (B, L, E) and mask (B, L) of the texts; None where there are none.

    Raises:
        ConfigError: text features without their mask, or a mask alone.
    """
    features, mask = condition.text_features, condition.text_mask
    if (features is None) != (mask is None):
        raise ConfigError("text_features and text_mask belong together; give both or neither")
    return None if features is None or mask is None else (features, mask)


def mean_text(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean (B, E) of the features (B, L, E) of each text's tokens; 0 for a text without any."""
    return (features * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


def class_ids(labels: Iterable[str | SupportsIndex], class_names: Sequence[str], num_classes: int) -> list[int]:
    """Ids of classes given by name or id. An integer is an id; a text is a name first, and else a number that is an id.

    Args:
        labels: names or ids.
        class_names: names in order of their ids; empty if the model has none.
        num_classes: classes of the model.

    Raises:
        ConfigError: a name that does not exist (the near match is named), an id out of range, or neither.
    """
    ids_by_name = {name: number for number, name in reversed([*enumerate(class_names)])}
    ids = []
    for label in labels:
        number = ids_by_name.get(label, _written_id(label)) if isinstance(label, str) else as_integer(label)
        if number is None and isinstance(label, str):
            if fault := locale_fault(label):
                raise ConfigError(f"class {label!r}: {fault}")
            known = f"; classes: {', '.join(class_names[:12])}" if class_names else "; this model has no class names"
            raise ConfigError(f'class "{label}" is unknown{near_match(label, class_names)}{known}')
        if not isinstance(number, int) or isinstance(number, bool):
            raise ConfigError(f"a class is a name or an id, got {label!r}")
        if not 0 <= number < num_classes:
            named = ids_by_name.get(str(number))
            hint = "" if named is None else f'; the class of that name has the id {named}: give "{number}", as a text'
            raise ConfigError(f"class id {number} is out of range: this model has {num_classes} classes, from 0{hint}")
        ids.append(number)
    return ids


def warn_of_numbers_as_names(labels: Iterable[str | SupportsIndex], class_names: Sequence[str]) -> None:
    """Warn if a text among the labels names one class and is the id of another one: the name counts.

    Args:
        labels: names or ids, as a user gives them.
        class_names: names in order of their ids.
    """
    doubtful = []
    for label in dict.fromkeys(label for label in labels if isinstance(label, str) and label in class_names):
        number = _written_id(label)
        if number is not None and number < len(class_names) and class_names[number] != label:
            doubtful.append(f'"{label}" is the class of that name, not the one with that id ("{class_names[number]}")')
    if doubtful:
        others = f" ({len(doubtful) - 1} more are alike)" if doubtful[1:] else ""
        warnings.warn(f"{doubtful[0]}{others}; give an id as an integer in Python, or the other name", stacklevel=2)


def class_list(class_names: Iterable[str]) -> list[str]:
    """The classes for a reader: each name behind its id, by which it can be asked for as well."""
    return [f"{number}: {name}" for number, name in enumerate(class_names)]


def _written_id(label: str) -> int | None:
    """The id that a text is if it is no name; None if it is no number."""
    return int(label) if re.fullmatch("[0-9]{1,18}", label) else None
