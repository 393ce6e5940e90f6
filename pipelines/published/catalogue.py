"""Which models of other projects can be imported by name, with what their projects say of them. Imports nothing heavy.

Sources: the projects' own pages, of November 2026. Sizes and figures are those that the projects publish.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wvq.errors import ConfigError, near_match
from wvq.models.published import PublishedOptions


@dataclass(frozen=True)
class Family:
    """A project whose weights have one layout.

    Attributes:
        project: its name.
        page: its address.
        licence: of the weights, as the Hub calls it; None where the project states none.
        options: which of the options of an import mean something to it.
        has_generators: whether its generators can be imported, beside its tokenizers.
    """

    project: str
    page: str
    licence: str | None
    options: tuple[str, ...]
    has_generators: bool = False


_TEXT = ("image_size", "num_heads", "text_encoder")
_SCALES = ("image_size", "num_heads", "scales")
FAMILIES = {
    "llamagen": Family("LlamaGen", "https://github.com/FoundationVision/LlamaGen", "mit", _TEXT, True),
    "var": Family("VAR", "https://github.com/FoundationVision/VAR", "mit", _SCALES, True),
    "taming": Family("taming-transformers", "https://github.com/CompVis/taming-transformers", "mit", ("image_size",)),
    "janus": Family("Janus", "https://github.com/deepseek-ai/Janus", "other", ("image_size",)),
    "ibq": Family("IBQ (SEED-Voken)", "https://github.com/TencentARC/SEED-Voken", "apache-2.0", ("image_size",)),
    "wasserstein-var": Family(
        "Wasserstein-VQ", "https://github.com/VQ-Research/Wasserstein-VQ", None, ("image_size", "scales")
    ),
}


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights.

    Attributes:
        place: repository on the Hub, or the address of a page from which the file is fetched by hand.
        name: its name there; None where it is not known for sure.
    """

    place: str
    name: str | None

    @property
    def is_on_hub(self) -> bool:
        """Whether it can be downloaded by name."""
        return self.name is not None and "://" not in self.place

    def __str__(self) -> str:
        return f"{self.place}: {self.name}" if self.name else self.place


@dataclass(frozen=True)
class PublishedModel:
    """A model that can be imported by name.

    Attributes:
        family: whose layout its files have.
        size: parameters of its generator, or else the size of its codebook.
        tokenizer, generator: its files; a tokenizer by itself has no generator.
        options: what shapes do not say.
        figure: what its project published, in words.
        preset: protocol under which that can be measured (:mod:`wvq.eval.presets`).
        text_encoder: whose features its prompts are given as.
        sampling: settings of its project's own demonstration, by field of ``SamplingSettings``.
    """

    family: str
    size: str
    tokenizer: PublishedFile
    generator: PublishedFile | None
    options: PublishedOptions
    figure: str
    preset: str | None = None
    text_encoder: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[PublishedFile]:
        """Its files."""
        return [self.tokenizer] if self.generator is None else [self.tokenizer, self.generator]


_LLAMAGEN, _LLAMAGEN_TEXT, _VAR = "FoundationVision/LlamaGen", "peizesun/llamagen_t2i", "FoundationVision/var"
_VAR_TOKENIZER = PublishedFile(_VAR, "vae_ch160v4096z32.pth")
_HEIBOX = "https://heibox.uni-heidelberg.de/d"


def _tokenizer(
    family: str, num_codes: int, place: str, name: str | None, rfid: str = "", side: int = 256
) -> PublishedModel:
    figure = f"rFID {rfid}" if rfid else ""
    return PublishedModel(
        family, f"K {num_codes:,}", PublishedFile(place, name), None, PublishedOptions(image_size=side), figure
    )


def _llamagen(name: str, parameters: str, side: int, fid: float) -> PublishedModel:
    return PublishedModel(
        "llamagen",
        parameters,
        PublishedFile(_LLAMAGEN, "vq_ds16_c2i.pt"),
        PublishedFile(_LLAMAGEN, f"c2i_{name}_{side}.pt"),
        PublishedOptions(image_size=side),
        f"FID {fid:.2f}",
        f"llamagen_{name.lower()}_{side}",
        sampling={"guidance_scale": 4.0, "top_k": 2_000},
    )


def _llamagen_text(stage: int, side: int) -> PublishedModel:
    return PublishedModel(
        "llamagen",
        "775M",
        PublishedFile(_LLAMAGEN_TEXT, "vq_ds16_t2i.pt"),
        PublishedFile(_LLAMAGEN_TEXT, f"t2i_XL_stage{stage}_{side}.pt"),
        PublishedOptions(image_size=side),
        "",
        text_encoder="google/flan-t5-xl",
        sampling={"guidance_scale": 7.5, "top_k": 1_000},
    )


def _var(depth: int, parameters: str, side: int, fid: float) -> PublishedModel:
    return PublishedModel(
        "var",
        parameters,
        _VAR_TOKENIZER,
        PublishedFile(_VAR, f"var_d{depth}.pth"),
        PublishedOptions(image_size=side),
        f"FID {fid:.2f}",
        f"var_d{depth}_{side}" if side == 256 else None,
        # Its "cfg 4" rises over the scales to 1 + 4.
        sampling={"guidance_scale": 5.0, "guidance_schedule": "linear", "top_k": 900, "top_p": 0.95},
    )


CATALOGUE = {
    "llamagen-b-256": _llamagen("B", "111M", 256, 5.46),
    "llamagen-l-256": _llamagen("L", "343M", 256, 3.80),
    "llamagen-b-384": _llamagen("B", "111M", 384, 6.09),
    "llamagen-l-384": _llamagen("L", "343M", 384, 3.07),
    "llamagen-xl-384": _llamagen("XL", "775M", 384, 2.62),
    "llamagen-xxl-384": _llamagen("XXL", "1.4B", 384, 2.34),
    "llamagen-3b-384": _llamagen("3B", "3.1B", 384, 2.18),
    "llamagen-t2i-xl-256": _llamagen_text(1, 256),
    "llamagen-t2i-xl-512": _llamagen_text(2, 512),
    "var-d16": _var(16, "310M", 256, 3.55),
    "var-d20": _var(20, "600M", 256, 2.95),
    "var-d24": _var(24, "1.0B", 256, 2.33),
    "var-d30": _var(30, "2.0B", 256, 1.97),
    "var-d36": _var(36, "2.3B", 512, 2.63),
    "llamagen-vq-ds16-c2i": _tokenizer("llamagen", 16_384, _LLAMAGEN, "vq_ds16_c2i.pt", "2.19"),
    "llamagen-vq-ds8-c2i": _tokenizer("llamagen", 16_384, _LLAMAGEN, "vq_ds8_c2i.pt", "0.59"),
    "llamagen-vq-ds16-t2i": _tokenizer("llamagen", 16_384, _LLAMAGEN_TEXT, "vq_ds16_t2i.pt"),
    "var-vae": _tokenizer("var", 4_096, _VAR, _VAR_TOKENIZER.name, "0.92"),
    "taming-f16-1024": _tokenizer("taming", 1_024, f"{_HEIBOX}/8088892a516d4e3baf92/", "ckpts/last.ckpt", "8.0"),
    "taming-f16-16384": _tokenizer("taming", 16_384, f"{_HEIBOX}/a7530b09fed84f80a887/", "ckpts/last.ckpt", "4.9"),
    "janus-vq-16": _tokenizer("janus", 16_384, "deepseek-ai/Janus-Pro-1B", "pytorch_model.bin", side=384),
    "ibq-1024": _tokenizer("ibq", 1_024, "TencentARC/IBQ-Tokenizer-1024", "imagenet256_1024.ckpt", "2.24"),
    "ibq-8192": _tokenizer("ibq", 8_192, "TencentARC/IBQ-Tokenizer-8192", "imagenet256_8192.ckpt", "1.87"),
    "ibq-16384": _tokenizer("ibq", 16_384, "TencentARC/IBQ-Tokenizer-16384", "imagenet256_16384.ckpt", "1.37"),
    "ibq-262144": _tokenizer("ibq", 262_144, "TencentARC/IBQ-Tokenizer-262144", "imagenet256_262144.ckpt", "1.00"),
    **{
        f"wasserstein-var-{codes}": _tokenizer(
            "wasserstein-var", codes, "https://huggingface.co/sunset-clouds/Wasserstein-VAR", None, rfid
        )
        for codes, rfid in ((4_096, "0.81"), (8_192, "0.73"))
    },
}


def find_published(name: str) -> PublishedModel:
    """The model of that name.

    Raises:
        ConfigError: an unknown name.
    """
    if name in FAMILIES:
        raise ConfigError(f'"{name}" is a family of models; give the name of one, which wvq import --list shows')
    if name not in CATALOGUE:
        known = [*FAMILIES, *CATALOGUE]
        raise ConfigError(f'"{name}" is no published model{near_match(name, known)}; see wvq import --list')
    return CATALOGUE[name]


def published_with_files(family: str, tokenizer: str | None, generator: str | None) -> str | None:
    """The name of the model of a family whose files have these names; None if there is not exactly one.

    Shapes do not show, for instance, whether a LlamaGen draws pictures of 256 or of 384 pixels.
    """
    given = [Path(file).name for file in (tokenizer, generator) if file is not None]
    named = [
        name
        for name, model in CATALOGUE.items()
        if model.family == family and [Path(file.name or "").name for file in model.files] == given
    ]
    return named[0] if len(named) == 1 else None


def catalogue_text() -> str:
    """The catalogue as a table of plain text, a model a line."""
    rows = [("name", "size", "licence", "published", "preset", "files")]
    rows += [
        (
            name,
            f"{model.size}, {model.options.image_size} px",
            FAMILIES[model.family].licence or "none stated",
            model.figure or "-",
            model.preset or "-",
            ", ".join(map(str, model.files)),
        )
        for name, model in CATALOGUE.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    by_hand = "A file behind an address is downloaded by hand and given by --tokenizer or --generator."
    return "\n".join([*lines, "", by_hand])
