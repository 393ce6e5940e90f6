"""Sampling of grid codes in any order, several a pass, by a model that was trained in random order.

Such a model reads, at each place of the order, the code before it and the position that it predicts (RAR, Yu et al.
2024, arXiv 2411.00776). To draw a group of positions at once, the last code's token is read once for each of them, each
time with another position to predict. Every copy sees all codes so far and itself, none of the other copies, so its
logits are those of the model at that position. The next pass reads the drawn codes in their order. What comes before
the first of them was read by the copy that predicted it: the cache keeps that copy, and the others are written over.

Codes of one group do not see each other, so the picture's probability is not the product of the model's. Groups grow as
in MaskGIT (Chang et al. 2022, arXiv 2202.04200). ARPG (arXiv 2503.10568) and LPD draw groups in any order by query
tokens of their own; here a model of one code a pass needs no other weights.
"""

from __future__ import annotations

import itertools
import math

import torch
from tqdm import tqdm

from wvq.generator.base.cache import KeyValueCache
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.draws import uniforms
from wvq.generator.base.filters import FREE, draw
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.decoder import GuidedDecoder
from wvq.generator.next_code.modeling import ImageCodeTransformer


def group_sizes(count: int, passes: int) -> list[int]:
    """Codes that each pass draws of ``count``: few at first; after pass i of P it is count (1 - cos(pi i / 2 P)).

    Each pass draws at least one, so there are at most ``count`` passes.
    """
    passes = min(passes, count)
    shares = [1 - math.cos(math.pi * i / (2 * passes)) for i in range(passes + 1)]
    ends = [max(i, math.floor(count * share + 0.5)) for i, share in enumerate(shares)]
    return [end - start for start, end in itertools.pairwise(ends)]


def drawing_order(keys: torch.Tensor, known: torch.Tensor, sizes: list[int], grid: list[int]) -> torch.Tensor:
    """Positions in the order that they are read in: those known first, then group after group.

    A group starts anywhere, and goes on with the position that is farthest from its members, so that those lie far
    apart: codes that do not see each other should not be neighbours.

    Args:
        keys: (B, T) random numbers in [0, 1), which decide all else.
        known: (B, T) bool, as many a row: the positions of given codes.
        sizes: positions of each group, in all as many as are not known.
        grid: rows and columns.

    Returns:
        (B, T) int64, each row a permutation.
    """
    cells = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).float()
    distances = (cells[:, None] - cells).square().sum(-1)  # whole numbers: keys decide between equal ones
    taken = known.clone()
    places = [torch.where(known, keys, 2.0).argsort(1)[:, : int(known[0].sum())]]
    for size in sizes:
        nearest = torch.zeros_like(keys)
        for number in range(size):
            place = (nearest + keys).masked_fill(taken, -1).argmax(1, keepdim=True)
            taken.scatter_(1, place, True)
            from_here = distances[place.squeeze(1)]
            nearest = torch.minimum(nearest, from_here) if number else from_here
            places.append(place)
    return torch.cat(places, 1)


class AnyOrderDecoder(GuidedDecoder):
    """A decoder whose positions, in codes and in calls, are places of an order: ``logits`` gives those of a group.

    Codes of the group are drawn at once, from the codes before it; the codes of the call before are final.

    Args:
        order: (B, T) int64, each row a permutation: positions of the grid in the order that they are read in.
        model, condition, scales, start: as of :class:`GuidedDecoder`; the model has ``target_positions``.
    """

    def __init__(
        self, order: torch.Tensor, model: ImageCodeTransformer, condition: Condition, scales: list[float], start: int
    ):
        super().__init__(model, condition, len(order), scales, start)
        config = model.config
        self.order = torch.cat((order, order)) if self.on else order
        prefix = torch.arange(config.prefix_length, device=order.device).expand(len(self.order), -1)
        self.tokens = torch.cat((prefix, config.prefix_length + self.order), 1)  # rows of the rotary tables
        self.tables = model.rotary_tables(order.device)

    def _read(self, cache: KeyValueCache, rows: slice, codes: torch.Tensor, start: int, end: int) -> torch.Tensor:
        model, known, first = self.model, cache.length, self.model.config.prefix_length - 1  # predicts the first code
        last, length = first + start, first + end  # the token of the last code, and the first of its copies
        new = torch.arange(known, length, device=codes.device)
        read = new.clamp_max(last)
        x = self._new_tokens(cache, rows, codes[:, :start])[:, read - known]
        x = model.add_targets(x, known, self.order[rows, max(0, known - first) : end])
        cos, sin = (table[self.tokens[rows][:, read]][:, None] for table in self.tables)
        x = model.run_blocks(x, cos, sin, self._mask(rows, new, last, length), cache.layers())
        cache.length = last + 1
        return x[:, start - end :]

    def _mask(self, rows: slice, new: torch.Tensor, last: int, length: int) -> torch.Tensor | None:
        """Mask ((B, 1,) n, length) of new tokens: each sees those before it but copies of the last one, and itself."""
        if len(new) == 1 and self.valid is None:
            return None
        tokens = torch.arange(length, device=new.device)
        before = (tokens < new[:, None]) & (tokens < last)
        if self.valid is not None:
            before = before & self.valid[rows, None, None, :length]
        return before | (tokens == new[:, None])


def fill(
    codes: torch.Tensor,
    model: ImageCodeTransformer,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    progress: bool,
) -> None:
    """Draw the codes (B, T) that are FREE, in place; arguments as in :func:`wvq.generator.sampling.sample_codes`.

    Pictures with other numbers of open positions have other groups: each number is a batch of its own.
    """
    counts = (codes == FREE).sum(1).tolist()
    for count in sorted({*counts} - {0}):
        members = [number for number, own in enumerate(counts) if own == count]
        rows, kept = members, list(range(len(members)))
        if settings.fixed_rows is not None:  # all rows run, with copies in place of the other pictures
            rows, kept = [number if own == count else members[0] for number, own in enumerate(counts)], members
        drawn = _drawn(codes[rows], model, condition.rows(rows), [seeds[row] for row in rows], settings, progress)
        codes[members] = drawn[kept]


def _drawn(
    codes: torch.Tensor,
    model: ImageCodeTransformer,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    progress: bool,
) -> torch.Tensor:
    """The codes (B, T) with those that are FREE, as many a row, drawn."""
    length = codes.shape[1]
    known = codes != FREE
    start = int(known[0].sum())
    sizes = group_sizes(length - start, settings.passes)
    # A picture's numbers of its draws come first, position by position, and then those of its order.
    uniform, keys = uniforms(seeds, 2 * length).chunk(2, 1)
    order = drawing_order(keys, known.cpu(), sizes, model.config.grid).to(codes.device)
    uniform, in_order = uniform.to(codes.device).gather(1, order), codes.gather(1, order)
    decoder = AnyOrderDecoder(order, model, condition, settings.scales(length), start)
    for size in tqdm(sizes, unit="pass", disable=not progress, leave=False):
        group = slice(start, start + size)
        drawn = draw(decoder.logits(in_order, start, start + size).flatten(0, 1), uniform[:, group].flatten(), settings)
        in_order[:, group] = drawn.view(-1, size)
        start += size
    return codes.scatter(1, order, in_order)
