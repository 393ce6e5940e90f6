"""What another project's files call the weights of a model, and how they hold them; read in either direction.

A map is a list of :class:`Entry`, one for each weight of ours. Where files come from and how a model is built is no
part of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from wvq.errors import CheckpointError

Read = Callable[[Sequence[torch.Tensor]], torch.Tensor]
Write = Callable[[torch.Tensor], Sequence[torch.Tensor]]
_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Entry:
    """One weight of ours.

    Attributes:
        ours: its name.
        theirs: the names of the weights that it is made of.
        read: makes ours of theirs, in the order of the names.
        write: makes theirs of ours.
    """

    ours: str
    theirs: tuple[str, ...]
    read: Read
    write: Write


def same(ours: str, theirs: str) -> Entry:
    """A weight that is the same under another name."""
    return Entry(ours, (theirs,), lambda parts: parts[0], lambda weight: (weight,))


def stacked(ours: str, *theirs: str) -> Entry:
    """Weights of equal shapes, one behind the other along the first dim in ours."""
    return Entry(ours, theirs, lambda parts: torch.cat(list(parts)), lambda weight: weight.chunk(len(theirs)))


def reshaped(ours: str, theirs: str, shape: Sequence[int], their_shape: Sequence[int]) -> Entry:
    """A weight with the same elements in the same order in another shape, either of which may hold a -1."""
    return Entry(
        ours, (theirs,), lambda parts: parts[0].reshape(*shape), lambda weight: (weight.reshape(*their_shape),)
    )


def permuted(ours: str, theirs: str, rows: torch.Tensor) -> Entry:
    """A weight whose row i is theirs of number ``rows[i]``, a permutation."""
    back = torch.argsort(rows)

    def read(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """One of other sizes stays as it is, for the check of shapes: rows would be left out."""
        return parts[0][rows] if len(parts[0]) == len(rows) else parts[0]

    return Entry(ours, (theirs,), read, lambda weight: (weight[back],))


def with_suffixes(entries: Iterable[Callable[[str], Entry]]) -> list[Entry]:
    """Each entry for the weight and for the bias of a layer, made by a function of that word."""
    return [make(word) for make in entries for word in ("weight", "bias")]


def read_weights(
    state: MutableMapping[str, torch.Tensor],
    entries: Iterable[Entry],
    dropped: Sequence[str],
    shapes: Mapping[str, torch.Size],
    source: str,
) -> dict[str, torch.Tensor]:
    """Our weights, made of another project's, which are taken out of ``state`` one by one: memory holds each once.

    Args:
        state: their weights by name; what is left of it has not been read. On the device "meta" there are shapes alone.
        entries: the map.
        dropped: patterns (regular expressions of whole names) of what is left out on purpose.
        shapes: shapes of our weights by name.
        source: the file, for errors.

    Returns:
        Contiguous tensors of their own memory, of the types of the file.

    Raises:
        CheckpointError: a weight is missing, is of another shape or type, is not finite or is not known.
    """
    weights = {}
    for entry in entries:
        missing = [name for name in entry.theirs if name not in state]
        if missing:
            raise CheckpointError(f"{source} lacks the weight {missing[0]}; the file is damaged or of another model")
        parts = [state.pop(name) for name in entry.theirs]
        for name, part in zip(entry.theirs, parts, strict=True):
            if part.dtype not in _TYPES:
                raise CheckpointError(
                    f"{source}: {name} is of {str(part.dtype).removeprefix('torch.')}, not of a type that weights are "
                    "read from; take a file of float32, bfloat16 or float16"
                )
        try:
            weight = entry.read(parts)
        except (RuntimeError, IndexError) as error:
            raise CheckpointError(
                f"{source}: {entry.theirs[0]} of {tuple(parts[0].shape)} cannot be {entry.ours} of the model; the file "
                "is damaged or of another model"
            ) from error
        expected = shapes.get(entry.ours)
        if expected is None or weight.shape != expected:
            wanted = "nothing" if expected is None else tuple(expected)
            raise CheckpointError(
                f"{source}: {entry.theirs[0]} makes {tuple(weight.shape)} of {entry.ours}, where the model has "
                f"{wanted}; the file is of another model, or of other sizes than were given"
            )
        if weight.is_floating_point() and not weight.is_meta and not bool(weight.isfinite().all()):
            raise CheckpointError(f"{source}: {entry.theirs[0]} holds NaN or infinite values; the file is damaged")
        weights[entry.ours] = weight.clone(memory_format=torch.contiguous_format)
    unknown = sorted(name for name in state if not any(re.fullmatch(pattern, name) for pattern in dropped))
    if unknown:
        more = f" and {len(unknown) - 1} others" if unknown[1:] else ""
        raise CheckpointError(
            f"{source} holds {unknown[0]}{more}, which the model has no place for; it is another model"
        )
    if lacking := sorted(set(shapes) - set(weights)):
        raise CheckpointError(f"{source} holds nothing for {lacking[0]} of the model; it is another model")
    return weights


def fill(
    model: nn.Module,
    state: MutableMapping[str, torch.Tensor],
    entries: Iterable[Entry],
    dropped: Sequence[str],
    source: str,
) -> None:
    """Give a model the weights of a file as float32, which are taken out of ``state`` one by one; buffers become zero.

    Args:
        model: made on the device "meta", so that its own weights take no memory.
        state, entries, dropped, source: as of :func:`read_weights`.

    Raises:
        CheckpointError: weights that are missing, damaged, of other shapes or not known.
    """
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    weights = read_weights(state, entries, dropped, shapes, source)
    for name in weights:  # one by one, so that memory holds few of them twice
        weights[name] = weights[name].float()
    weights |= {name: torch.zeros(buffer.shape, dtype=buffer.dtype) for name, buffer in model.named_buffers()}
    model.load_state_dict(weights, assign=True)


def write_weights(weights: Mapping[str, torch.Tensor], entries: Iterable[Entry]) -> dict[str, torch.Tensor]:
    """Another project's weights, made of ours by the same map."""
    written = {}
    for entry in entries:
        for name, part in zip(entry.theirs, entry.write(weights[entry.ours]), strict=True):
            written[name] = part.contiguous()
    return written
