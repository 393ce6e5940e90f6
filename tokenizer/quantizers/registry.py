"""All quantizers by name."""

from __future__ import annotations

from wvq.errors import ConfigError, near_match
from wvq.tokenizer.quantizers.aligned import (
    AffineQuantizer,
    MMDQuantizer,
    SlicedWassersteinQuantizer,
    WassersteinQuantizer,
)
from wvq.tokenizer.quantizers.codebook import VectorQuantizer
from wvq.tokenizer.quantizers.interface import Quantizer
from wvq.tokenizer.quantizers.multiscale import MultiScaleQuantizer
from wvq.tokenizer.quantizers.product import ProductQuantizer
from wvq.tokenizer.quantizers.published import EMAQuantizer, LinearQuantizer, OnlineQuantizer
from wvq.tokenizer.quantizers.scalar import FSQQuantizer, LFQQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vanilla": VectorQuantizer,
    "ema": EMAQuantizer,
    "online": OnlineQuantizer,
    "linear": LinearQuantizer,
    "fsq": FSQQuantizer,
    "lfq": LFQQuantizer,
    "wasserstein": WassersteinQuantizer,
    "sliced": SlicedWassersteinQuantizer,
    "mmd": MMDQuantizer,
    "affine": AffineQuantizer,
}


def build_quantizer(config) -> Quantizer | ProductQuantizer | MultiScaleQuantizer:
    """The quantizer that a config names, ``config.num_groups`` of it, or one of it at all ``config.scales``.

    Raises:
        ConfigError: no quantizer of that name is registered, or it does not have what a field asks for.
    """
    check_quantizer(config)
    method = QUANTIZERS[config.quantizer]
    if config.scales:
        return MultiScaleQuantizer(config, method(config))
    return ProductQuantizer(config, method) if config.num_groups > 1 else method(config)


def check_quantizer(config) -> None:
    """Raise ConfigError, naming the field, if the quantizer is unknown or cannot do what another field asks for."""
    name = config.quantizer
    if not isinstance(name, str) or name not in QUANTIZERS:
        raise ConfigError(
            f'quantizer "{name}" is unknown{near_match(name, QUANTIZERS)}; one of {", ".join(QUANTIZERS)}'
        )
    QUANTIZERS[name].check(config)
