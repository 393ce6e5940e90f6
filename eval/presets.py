"""Protocols of published figures, by name: ImageNet at 256 px, 50,000 samples, ADM's training statistics.

LlamaGen's larger models draw 384 px, which their script brings to 256 (:func:`wvq.eval.samples.drawing.resized`).

A scale s is that of u + s (c - u), 1 is off. VAR's "cfg 1.5" is t = 1.5 i / 9 at scale i = 0 to 9, in (1 + t) c - t u:
a linear rise over the scales to s = 2.5. Sources: LlamaGen (arXiv 2406.06525), RAR (arXiv 2411.00776), IBQ
(arXiv 2412.02692), VAR (Tian et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from wvq.errors import ConfigError, near_match
from wvq.generator.base.sampling_settings import SamplingSettings

if TYPE_CHECKING:
    from wvq.eval.recipes import GenerationEvaluation

FIXED = ("num_images", "classes", "feature_network", "reference_kind", "resize")  # fields of a recipe


@dataclass(frozen=True)
class Preset:
    """The protocol of a published figure, with the figure.

    Attributes:
        sampling: fields of :class:`wvq.generator.base.sampling_settings.SamplingSettings`.
        published: the figures.
        num_images, classes, feature_network, reference_kind: the protocol.
        image_size: side of the pictures that the pipeline draws.
        resize: side that they are brought to before they are measured; as drawn if None.
        layout: kind of the codes (:mod:`wvq.data.layout`), over whose places guidance goes; any if None.
    """

    sampling: dict[str, Any]
    published: dict[str, float]
    num_images: int = 50_000
    classes: str = "balanced"
    feature_network: str = "inception"
    reference_kind: str = "train"
    image_size: int = 256
    resize: int | None = None
    layout: str | None = None


# What a protocol leaves open: a power is fixed where its schedule is used, and the other changes rounding alone.
_OPEN = ("guidance_power", "deterministic")


def _preset(fid: float, image_size: int = 256, **sampling: float | str) -> Preset:
    defaults = {field.name: field.default for field in fields(SamplingSettings) if field.name not in _OPEN}
    return Preset(defaults | sampling, {"fid": fid}, image_size=image_size, resize=256 if image_size != 256 else None)


def _rar(fid: float, scale: float, power: float, temperature: float) -> Preset:
    return _preset(
        fid,
        guidance_scale=scale,
        guidance_schedule="power_cosine",
        guidance_power=power,
        temperature=temperature,
    )


def _var(fid: float) -> Preset:
    preset = _preset(fid, guidance_scale=2.5, guidance_schedule="linear", top_k=900, top_p=0.96)
    return replace(preset, layout="multi-scale")


PRESETS = {
    "llamagen_b_256": _preset(5.46, guidance_scale=2.0),
    "llamagen_l_256": _preset(3.80, guidance_scale=2.0),
    "llamagen_b_384": _preset(6.09, 384, guidance_scale=2.0),
    "llamagen_l_384": _preset(3.07, 384, guidance_scale=2.0),
    "llamagen_xl_384": _preset(2.62, 384, guidance_scale=1.75),
    "llamagen_xxl_384": _preset(2.34, 384, guidance_scale=1.75),
    "llamagen_3b_384": _preset(2.18, 384, guidance_scale=1.65),
    "rar_b_256": _rar(1.95, 16.0, 2.75, 1.0),
    "rar_l_256": _rar(1.70, 15.5, 2.5, 1.02),
    "rar_xl_256": _rar(1.50, 6.9, 1.5, 1.02),
    "rar_xxl_256": _rar(1.48, 8.0, 1.2, 1.02),
    "ibq_b_256": _preset(2.88, guidance_scale=2.25, temperature=1.10),
    "ibq_l_256": _preset(2.45, guidance_scale=2.0),
    "ibq_xl_256": _preset(2.14, guidance_scale=2.35, temperature=1.15),
    "ibq_xxl_256": _preset(2.05, guidance_scale=2.85, temperature=1.20),
    "var_d16_256": _var(3.55),
    "var_d20_256": _var(2.95),
    "var_d24_256": _var(2.33),
    "var_d30_256": _var(1.97),
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in PRESETS:
        raise ConfigError(f'preset "{name}" is unknown{near_match(name, PRESETS)}; one of {", ".join(PRESETS)}')
    return PRESETS[name]


def with_preset(recipe: GenerationEvaluation) -> GenerationEvaluation:
    """A recipe with the settings that its preset fixes; the recipe itself if it names none.

    Raises:
        ConfigError: an unknown preset, a setting that was given another value, or a reference that the published
            figure was not taken against.
    """
    if recipe.preset is None:
        return recipe
    preset = find_preset(recipe.preset)
    fixed = {name: getattr(preset, name) for name in FIXED}
    given = {name: getattr(recipe, name) for name in fixed}
    for name, value in (fixed | preset.sampling).items():
        other = (given | recipe.sampling).get(name)
        other = tuple(other) if isinstance(other, list) else other
        if other is not None and other != value:
            raise ConfigError(f"preset {recipe.preset} has {name} {value}, and {other} is given; leave one of them out")
    if not recipe.reference or recipe.weights:
        raise ConfigError(
            f"preset {recipe.preset} is measured against ADM's training statistics, with full weights: give "
            "--reference FILE.npz and leave --weights out"
        )
    return replace(recipe, **fixed, sampling=recipe.sampling | preset.sampling)
