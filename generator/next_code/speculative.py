"""Several codes a pass: a window of guesses is checked at once, and gives the same codes as one at a time.

Each position of each picture has its own Gumbel noise, so the code there is a function of the codes before it: the
likeliest one after the noise is added to the logits, which is a draw from their distribution (Gumbel 1954). One forward
pass evaluates that function at all guesses of a window. Every code before the first wrong guess, and the corrected one
there, is final; the others are better guesses for the next pass. This is the Jacobi iteration for the fixed point of
the sampler (Song et al. 2021, arXiv 2002.03629) under fixed noise; Teng et al. 2024 (arXiv 2410.01699) accept guesses
at random instead, which keeps the distribution but not the picture.
"""

from __future__ import annotations

import torch
from tqdm import tqdm

from wvq.generator.base.filters import FREE, filter_logits
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.decoder import GuidedDecoder


class GumbelNoise:
    """Noise (B, n, K) for positions in order, from each picture's own generator; earlier ones are dropped."""

    def __init__(self, seeds: list[int], num_codes: int, device: torch.device):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.num_codes, self.device = num_codes, device
        self.start, self.noise = 0, torch.empty(len(seeds), 0, num_codes, device=device)

    def __call__(self, start: int, end: int) -> torch.Tensor:
        """Noise of the positions start..end; none before ``start`` can be requested again."""
        drawn_to = self.start + self.noise.shape[1]
        self.noise, self.start = self.noise[:, start - self.start :], start
        if (missing := end - drawn_to) > 0:
            new = torch.empty(len(self.generators), missing, self.num_codes)
            for rows, generator in zip(new, self.generators, strict=True):
                rows.exponential_(generator=generator)
            new = new[:, max(0, start - drawn_to) :].log_().neg_()
            self.noise = torch.cat((self.noise, new.to(self.device)), 1)
        return self.noise[:, : end - start]


class WindowedSampler:
    """Draws the codes of a batch, several positions a pass.

    Args:
        codes: (B, T) int64, -1 where codes are to be drawn; filled in place.
        decoder: gives logits of the B pictures.
        seeds: one a picture.
        settings: temperature, filters and the size of the window.
    """

    def __init__(self, codes: torch.Tensor, decoder: GuidedDecoder, seeds: list[int], settings: SamplingSettings):
        self.codes, self.decoder, self.settings = codes, decoder, settings
        self.given = codes.clone()
        self.noise = GumbelNoise(seeds, decoder.model.config.num_codes, codes.device)

    def fill(self, start: int, stop: int, progress: bool = False) -> int:
        """Draw the positions start..stop, of which all before are known; returns the number of passes."""
        window, passes = self.settings.window, 1
        with tqdm(total=stop - start, unit="code", disable=not progress, leave=False) as bar:
            known = self._advance(start, start + 1, stop, window - 1)
            bar.update(known - start)
            while known < stop:
                before, known = known, self._advance(known, min(known + window, stop), stop, window)
                bar.update(known - before)
                passes += 1
        return passes

    def _advance(self, known: int, end: int, stop: int, ahead: int) -> int:
        """Check the guesses of known..end in one pass and guess at most ``ahead`` more; returns how many are known."""
        logits = self._logits(known, end)
        drawn = self._draw(logits, known)
        right = (drawn == self.codes[:, known:end]).long().cumprod(1).sum(1).min()
        self.codes[:, known:end] = drawn
        known = min(known + int(right) + 1, end)
        self._guess(logits, known, end, min(known + ahead, stop))
        return known

    def _logits(self, start: int, end: int) -> torch.Tensor:
        """Filtered logits (B, n, K) of the positions start..end, by the codes and guesses before each."""
        logits, settings = self.decoder.logits(self.codes, start, end), self.settings
        if settings.temperature == 0:
            return logits
        rows = logits.div_(settings.temperature).flatten(0, 1)  # in place: with a window these are the largest tensors
        return filter_logits(rows, settings.top_k, settings.top_p, settings.min_p).view_as(logits)

    def _draw(self, logits: torch.Tensor, start: int) -> torch.Tensor:
        """Codes (B, n) of the positions from ``start`` on; given ones stay."""
        end = start + logits.shape[1]
        noisy = logits if self.settings.temperature == 0 else logits + self.noise(start, end)
        given = self.given[:, start:end]
        return torch.where(given == FREE, noisy.argmax(-1), given)

    def _guess(self, logits: torch.Tensor, known: int, start: int, end: int) -> None:
        """Write first guesses of the positions start..end: each one's own noise on the last logits.

        The window now begins at ``known``.
        """
        if end <= start:
            return
        last = logits[:, -1:].expand(-1, end - start, -1)
        if self.settings.temperature:
            last = last + self.noise(known, end)[:, start - known :]
        given = self.given[:, start:end]
        self.codes[:, start:end] = torch.where(given == FREE, last.argmax(-1), given)
