"""Projections that start whitened, from mean and covariance of any number of rows, taken batch by batch. E dims."""

from __future__ import annotations

import torch


class Moments:
    """Mean and covariance of rows that come in batches, in float64 (Chan, Golub and LeVeque 1979, eq. 2.1)."""

    mean: torch.Tensor  # (E,); like the scatter (E, E), there from the first rows on
    scatter: torch.Tensor

    def __init__(self) -> None:
        self.count = 0
        self._alike = True

    def add(self, rows: torch.Tensor) -> None:
        """Add rows (n, E)."""
        if len(rows) == 0:
            return
        rows = rows.double()
        mean = rows.mean(0)
        scatter = (rows - mean).T @ (rows - mean)
        if self.count == 0:
            self._first = rows[0].clone()
        self._alike = self._alike and bool((rows == self._first).all())
        if self.count == 0:
            self.count, self.mean, self.scatter = len(rows), mean, scatter
            return
        total = self.count + len(rows)
        step = mean - self.mean
        self.scatter += scatter + torch.outer(step, step) * (self.count * len(rows) / total)
        self.mean = self.mean + step * (len(rows) / total)
        self.count = total

    @property
    def spread(self) -> bool:
        """Whether any two rows differ."""
        return not self._alike

    @property
    def covariance(self) -> torch.Tensor:
        """(E, E), over the number of rows."""
        return self.scatter / self.count


def whitening(moments: Moments, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (D, E) and bias (D,) that map the rows to zero mean and, for random ``weight``, to its own scale.

    Directions with less than 1% of the mean variance are not scaled up further; rows that are all the same, or none at
    all, leave the weight unchanged.
    """
    if not moments.spread:
        return weight, torch.zeros_like(weight[:, 0])
    values, vectors = torch.linalg.eigh(moments.covariance)
    floor = 0.01 * values.mean()
    root = (vectors / (values.clamp_min(0) + floor).sqrt()) @ vectors.T
    whitened = weight @ root
    return whitened, -whitened @ moments.mean
