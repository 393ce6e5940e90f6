"""Several codes a pass: a window of guesses is checked at once, and gives the very codes that one at a time would give.

Each position of each picture has Gumbel noise of its own, so the code there is a function of the codes before it: the
likeliest one after the noise is added to the logits, which is a draw from their distribution (Gumbel 1954). One forward
pass evaluates that function at all guesses of a window. Every code before the first wrong guess, and the corrected one
there, is final; the others are better guesses for the next pass. This is the Jacobi iteration for the fixed point of
the sampler (Song et al. 2021, arXiv 2002.03629) under fixed noise; Teng et al. 2024 (arXiv 2410.01699) accept guesses
at random instead, which keeps the distribution but not the picture.
"""

from __future__ import annotations

import torch
from tqdm import tqdm

from wvq.generator.conditioning import Condition
from wvq.generator.decoding import begin
from wvq.generator.filters import FREE, filter_logits
from wvq.generator.guidance import guide
from wvq.generator.modeling import ImageCodeTransformer


class GumbelNoise:
    """Noise (B, n, K) for positions in order, from each picture's own generator; those behind are forgotten."""

    def __init__(self, seeds: list[int], num_codes: int, device: torch.device):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.num_codes, self.device = num_codes, device
        self.start, self.kept = 0, torch.empty(len(seeds), 0, num_codes, device=device)

    def __call__(self, start: int, end: int) -> torch.Tensor:
        """Noise of the positions start..end; none before ``start`` is asked for again."""
        there = self.start + self.kept.shape[1]
        self.kept, self.start = self.kept[:, start - self.start :], start
        if (missing := end - there) > 0:
            new = torch.empty(len(self.generators), missing, self.num_codes)
            for rows, generator in zip(new, self.generators, strict=True):
                rows.exponential_(generator=generator)
            new = new[:, max(0, start - there) :].log_().neg_()
            self.kept = torch.cat((self.kept, new.to(self.device)), 1)
        return self.kept[:, : end - start]


class Speculation:
    """The state of one batch; ``passes`` counts forward passes.

    Args:
        codes: (B, T) int64, -1 where codes are to be drawn; filled in place.
        model: the generator.
        condition: of the B pictures.
        seeds: B seeds, one a picture.
        scales: guidance scale at each position.
        settings: :class:`wvq.generator.sampling.SamplingSettings`.
    """

    def __init__(
        self,
        codes: torch.Tensor,
        model: ImageCodeTransformer,
        condition: Condition,
        seeds: list[int],
        settings,
        scales: list[float],
    ):
        self.codes, self.model, self.settings = codes, model, settings
        self.given = codes.clone()
        self.scales = torch.tensor(scales, device=codes.device)
        self.guided = any(scale != 1 for scale in scales)
        self.prefix, self.valid, self.cache = begin(model, condition, len(seeds), self.guided)
        self.noise = GumbelNoise(seeds, model.config.num_codes, codes.device)
        self.passes = 0

    def fill(self, start: int, stop: int, window: int, progress: bool) -> None:
        """Draw the positions start..stop, in windows of at most ``window``."""
        with tqdm(total=stop - start, unit="code", disable=not progress, leave=False) as bar:
            known = self._advance(start, start + 1, stop, window - 1)
            bar.update(known - start)
            while known < stop:
                before, known = known, self._advance(known, min(known + window, stop), stop, window)
                bar.update(known - before)

    def _advance(self, known: int, end: int, stop: int, ahead: int) -> int:
        """Check the guesses of known..end in one pass and guess at most ``ahead`` more; returns how many are known."""
        logits = self._logits(known, end)
        found = self._draw(logits, known)
        right = (found == self.codes[:, known:end]).long().cumprod(1).sum(1).min()
        self.codes[:, known:end] = found
        known = min(known + int(right) + 1, end)
        self.cache.length = self.model.config.prefix_length + known - 1  # what was fed beyond was a wrong guess
        self._guess(logits, known, end, min(known + ahead, stop))
        return known

    def _logits(self, start: int, end: int) -> torch.Tensor:
        """Guided, filtered logits (B, n, K) of the positions start..end, by the codes and guesses before each."""
        seen = max(0, self.cache.length - self.model.config.prefix_length)
        inputs = self.codes[:, seen : end - 1]
        x = self.model.embed_codes(torch.cat((inputs, inputs)) if self.guided else inputs, self.prefix.bias)
        if self.cache.length == 0:
            x = torch.cat((self.prefix.tokens, x), 1)
        hidden = self.model.run(x, self.valid, self.cache)
        logits = self.model.logits(hidden[:, start - end :]).float()
        self.passes += 1
        if self.guided:
            logits = guide(logits, self.scales[start:end, None])
        if self.settings.temperature == 0:
            return logits
        kept = self.settings
        rows = logits.div_(kept.temperature).flatten(0, 1)  # in place: with a window these are the largest tensors
        return filter_logits(rows, kept.top_k, kept.top_p, kept.min_p).view_as(logits)

    def _draw(self, logits: torch.Tensor, start: int) -> torch.Tensor:
        """Codes (B, n) of the positions from ``start`` on; given ones stay."""
        end = start + logits.shape[1]
        noisy = logits if self.settings.temperature == 0 else logits + self.noise(start, end)
        given = self.given[:, start:end]
        return torch.where(given == FREE, noisy.argmax(-1), given)

    def _guess(self, logits: torch.Tensor, known: int, start: int, end: int) -> None:
        """First guesses of positions that enter the window, which now begins at ``known``: each one's own noise on the
        last logits.
        """
        if end <= start:
            return
        last = logits[:, -1:].expand(-1, end - start, -1)
        if self.settings.temperature:
            last = last + self.noise(known, end)[:, start - known :]
        given = self.given[:, start:end]
        self.codes[:, start:end] = torch.where(given == FREE, last.argmax(-1), given)
