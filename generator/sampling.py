"""Sampling of codes: settings, filters, draws and the loop over positions, one small function each.

Every picture has a random generator of its own, so that its codes depend on the weights, its condition, the settings
and its seed: on the batch that it was sampled in, and so on the number of processes, only by rounding. Now and then a
draw lies so close to the border of two codes that rounding decides it; with ``deterministic`` not even then.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace

import torch
from tqdm import tqdm

from wvq.checks import is_integer, is_number
from wvq.errors import ConfigError, near_match
from wvq.generator.conditioning import Condition
from wvq.generator.decoding import Halves
from wvq.generator.filters import FREE, filter_logits
from wvq.generator.fixed_rows import ROWS, run_in_fixed_rows
from wvq.generator.guidance import SCHEDULES, guidance_scales
from wvq.generator.linear import packed_weights
from wvq.generator.modeling import ImageCodeTransformer
from wvq.generator.speculative import Speculation


@dataclass(frozen=True)
class SamplingSettings:
    """How codes are drawn. Guidance comes first, then temperature, top-k, top-p and min-p.

    Args:
        guidance_scale: s of u + s (c - u), c and u the logits with and without the condition; 1 is off. (Papers that
            write c + w (c - u) have w = s - 1.)
        temperature: divides the guided logits; 0 takes the likeliest code each time.
        top_k: keep the k likeliest codes; 0 keeps all.
        top_p: keep the likeliest codes up to this share of probability, in (0, 1].
        min_p: keep the codes of at least this share of the likeliest one's probability, in [0, 1]; 0 keeps all.
        guidance_schedule: ``constant``, or a rise from 1 to the scale over the positions: ``linear``, ``cosine``,
            ``power_cosine``; see :func:`wvq.generator.guidance.guidance_scales`.
        guidance_power: of ``power_cosine``.
        guidance_interval: shares of the picture between which guidance is on, within [0, 1]; off outside.
        window: codes that are guessed and checked in one forward pass (:mod:`wvq.generator.speculative`): the same
            distribution, other pictures for a seed than without it; 0 draws one code a pass.
        deterministic: the same picture to the bit whatever the batch, on one machine with one number of threads: all
            batches run in groups of a fixed number of rows (:mod:`wvq.generator.fixed_rows`), with a window one picture
            at a time.

    Raises:
        ConfigError: a value is out of range.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    guidance_schedule: str = "constant"
    guidance_power: float = 2.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    window: int = 0
    deterministic: bool = False

    def __post_init__(self):
        if isinstance(self.guidance_interval, list):  # from JSON or YAML
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        self._require("guidance_scale", is_number(self.guidance_scale), "at least 0 (1 is off)")
        self._require("temperature", is_number(self.temperature), "at least 0 (0 takes the likeliest code)")
        self._require("top_k", is_integer(self.top_k, 0), "an integer of at least 0 (0 keeps all codes)")
        self._require("top_p", is_number(self.top_p) and 0 < self.top_p <= 1, "in (0, 1] (1 keeps all codes)")
        self._require("min_p", is_number(self.min_p) and self.min_p <= 1, "in [0, 1] (0 keeps all codes)")
        if self.guidance_schedule not in SCHEDULES:
            near = near_match(str(self.guidance_schedule), SCHEDULES)
            self._require("guidance_schedule", False, f"one of {', '.join(SCHEDULES)}{near}")
        self._require("guidance_power", is_number(self.guidance_power) and self.guidance_power > 0, "a number above 0")
        ends = self.guidance_interval
        two = isinstance(ends, tuple) and len(ends) == 2 and all(map(is_number, ends)) and ends[0] < ends[1] <= 1
        self._require("guidance_interval", two, "two shares of the picture, 0 <= start < end <= 1")
        self._require("window", is_integer(self.window, 0), "an integer of at least 0 (0 draws one code a pass)")
        self._require("deterministic", isinstance(self.deterministic, bool), "true or false")

    def _require(self, field: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"{field} must be {wanted}, got {getattr(self, field)!r}")

    def updated(self, **given) -> SamplingSettings:
        """These settings with those of ``given`` that are not None in their place.

        Raises:
            ConfigError: an unknown name, or a value out of range.
        """
        known = [field.name for field in fields(self)]
        for name in given:
            if name not in known:
                raise ConfigError(f'"{name}" is no sampling setting{near_match(name, known)}')
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def identity(self) -> dict:
        """The settings as JSON, by which a job or an evaluation is known again.

        Settings that earlier versions did not have are in it only if they are not at their default, so that what those
        versions began can go on.
        """
        known = json.loads(json.dumps(asdict(self)))
        return {name: value for name, value in known.items() if name != "deterministic" or value}

    @property
    def fixed_rows(self) -> int | None:
        """Pictures that always run together, of which some may be fillers; None if batches run as they are.

        A window moves on by what all pictures of its batch have guessed, so there each one runs alone.
        """
        return (1 if self.window else ROWS) if self.deterministic else None

    def whole_batch(self, batch_size: int) -> int:
        """The batch of at least so many pictures that leaves no row of a group without one."""
        rows = self.fixed_rows or 1
        return -(-batch_size // rows) * rows

    def scales(self, length: int) -> list[float]:
        """Guidance scale at each of ``length`` positions."""
        return guidance_scales(
            self.guidance_scale, self.guidance_schedule, self.guidance_power, self.guidance_interval, length
        )


def draw(logits: torch.Tensor, uniform: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Codes (B,) from guided logits (B, K) by uniform numbers (B,) in [0, 1): temperature, filters, inverse CDF."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    logits = filter_logits(logits.float() / settings.temperature, settings.top_k, settings.top_p, settings.min_p)
    cumulative = logits.softmax(-1).cumsum(-1)
    # 1 - u lies in (0, 1]: the first code that reaches it has a probability above 0, whatever was rounded.
    target = (1 - uniform[:, None]) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target).squeeze(1)


def uniforms(seeds: list[int], length: int) -> torch.Tensor:
    """Uniform numbers (B, T) in [0, 1), row by row from each picture's own generator."""
    return torch.stack([torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sample_codes(
    model: ImageCodeTransformer,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    progress: bool = False,
    fixed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw the codes of pictures.

    Args:
        model: in eval mode.
        condition: of B pictures.
        seeds: one a picture.
        settings: guidance and filters.
        progress: show a progress bar over the codes.
        fixed: (B, h, w) int64, codes that are given, -1 where they are to be drawn. Each drawn code sees the given
            ones before it, not those after it: rows that are given from the top down are continued downwards.

    Returns:
        (B, h, w) int64, made outside of inference mode, so that they can be trained on.

    Raises:
        ConfigError: ``fixed`` does not fit.
    """
    config = model.config
    shape = (len(seeds), *config.grid)
    codes = torch.full((len(seeds), config.sequence_length), FREE, dtype=torch.int64, device=model.device)
    if fixed is not None:
        check_fixed(fixed, shape, config.num_codes)
        codes.copy_(fixed.flatten(1))

    def fill(numbers: list[int]) -> torch.Tensor:
        part = codes[numbers]
        _fill(part, model, condition.rows(numbers), [seeds[number] for number in numbers], settings, progress)
        return part

    with packed_weights(model, settings.deterministic), torch.inference_mode():
        if settings.fixed_rows is None:
            _fill(codes, model, condition, seeds, settings, progress)
        else:
            codes.copy_(run_in_fixed_rows(seeds, settings.fixed_rows, fill))
    return codes.view(shape)


def check_fixed(fixed: torch.Tensor, shape: tuple[int, ...], num_codes: int) -> None:
    """
    Raises:
        ConfigError: another shape or kind, or a code out of range.
    """
    if tuple(fixed.shape) != shape or fixed.is_floating_point():
        raise ConfigError(f"fixed codes must be integers {shape}, got {fixed.dtype} {tuple(fixed.shape)}")
    if not bool(((fixed >= FREE) & (fixed < num_codes)).all()):
        raise ConfigError(f"fixed codes must be in [0, {num_codes}), or {FREE} where they are drawn")


def _fill(
    codes: torch.Tensor,
    model: ImageCodeTransformer,
    condition: Condition,
    seeds: list[int],
    settings: SamplingSettings,
    progress: bool,
) -> None:
    """Draw the codes (B, T) that are FREE, in place."""
    length = codes.shape[1]
    open_places = (codes == FREE).any(0).nonzero().flatten().tolist()
    if not open_places:
        return
    # A pass over given codes at once rounds in another way than one after the other, and the others' masks may differ.
    start = 0 if (settings.fixed_rows or 0) > 1 else open_places[0]
    given = bool((codes != FREE).any())
    if settings.window:
        speculation = Speculation(codes, model, condition, seeds, settings, settings.scales(length))
        speculation.fill(start, open_places[-1] + 1, settings.window, progress)
        return
    halves = Halves(model, condition, len(seeds), settings.scales(length), start)
    uniform = uniforms(seeds, length).to(codes.device)
    for position in tqdm(range(start, open_places[-1] + 1), unit="code", disable=not progress, leave=False):
        drawn = draw(halves.logits(codes, position), uniform[:, position], settings)
        if given:
            drawn = torch.where(codes[:, position] == FREE, drawn, codes[:, position])
        codes[:, position] = drawn
