"""Results to the bit, whatever the batch: every batch is run in groups of a fixed number of rows.

A kernel chooses its order of summation by the shapes, so a picture's values are rounded differently in a batch of
another size. At one shape a row depends on what it holds and on which row it is, never on what the others hold. So all
groups have as many rows, and a picture's row depends on its seed alone; a row that has no picture repeats another one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def fixed_groups(seeds: list[int], rows: int) -> list[list[int | None]]:
    """Groups of ``rows`` places, each with a picture's number in the batch, or None. Consecutive seeds fill groups."""
    groups: list[list[int | None]] = []
    count = [0] * rows  # groups in which a row is taken
    for number, seed in enumerate(seeds):
        row = seed % rows
        if count[row] == len(groups):
            groups.append([None] * rows)
        groups[count[row]][row] = number
        count[row] += 1
    return groups


def run_in_fixed_rows(seeds: list[int], rows: int, work: Callable[[list[int]], torch.Tensor]) -> torch.Tensor:
    """The results (B, ...) of ``work`` for a batch, run group by group.

    Args:
        seeds: seeds of the B pictures.
        rows: rows of a group.
        work: from the numbers of ``rows`` pictures in the batch, some of them perhaps several times, to their results
            (rows, ...).
    """
    by_number: dict[int, torch.Tensor] = {}
    for group in fixed_groups(seeds, rows):
        filler = next(number for number in group if number is not None)
        results = work([filler if number is None else number for number in group])
        by_number |= {number: result for number, result in zip(group, results, strict=True) if number is not None}
    return torch.stack([by_number[number] for number in range(len(seeds))])
