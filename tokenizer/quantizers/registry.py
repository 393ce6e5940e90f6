"""All methods by name, and the quantizer that a config describes."""

from __future__ import annotations

from wvq.checks import Checker
from wvq.errors import ConfigError, near_match
from wvq.tokenizer.quantizers.aligned import (
    AffineConfig,
    AffineQuantizer,
    MMDConfig,
    MMDQuantizer,
    SlicedConfig,
    SlicedWassersteinQuantizer,
    WassersteinQuantizer,
)
from wvq.tokenizer.quantizers.codebook import Codebook
from wvq.tokenizer.quantizers.interface import Quantizer
from wvq.tokenizer.quantizers.multiscale import MultiScaleConfig, MultiScaleQuantizer
from wvq.tokenizer.quantizers.product import ProductQuantizer
from wvq.tokenizer.quantizers.published import DecayConfig, EMAQuantizer, LinearQuantizer, OnlineQuantizer
from wvq.tokenizer.quantizers.scalar import FSQConfig, FSQQuantizer, LFQConfig, LFQQuantizer
from wvq.tokenizer.quantizers.vanilla import VectorQuantizer

METHODS: tuple[type[Codebook], ...] = (
    VectorQuantizer,
    EMAQuantizer,
    OnlineQuantizer,
    LinearQuantizer,
    FSQQuantizer,
    LFQQuantizer,
    WassersteinQuantizer,
    SlicedWassersteinQuantizer,
    MMDQuantizer,
    AffineQuantizer,
)
QUANTIZERS: dict[str, type[Codebook]] = {method.name: method for method in METHODS}


class MethodsConfig(AffineConfig, SlicedConfig, MMDConfig, DecayConfig, FSQConfig, LFQConfig, MultiScaleConfig):
    """The fields of all methods: a config holds those of every method, whichever it chooses."""

    def complete(self, check: Checker) -> None:
        super().complete(check)
        check("code_dim", f"a multiple of num_groups, which is {self.num_groups}", lambda d: d % self.num_groups == 0)
        if self.scales is not None:
            check("l2_normalize", "false where scales are given, which quantize what is left over", lambda on: not on)
        name = self.quantizer
        if not isinstance(name, str) or name not in QUANTIZERS:
            near = near_match(name, QUANTIZERS)
            raise ConfigError(f'quantizer "{name}" is unknown{near}; one of {", ".join(QUANTIZERS)}')
        QUANTIZERS[name].check(self)


def build_codebook(config: MethodsConfig) -> Codebook:
    """One codebook of the method that a config names."""
    return QUANTIZERS[config.quantizer](config)


def build_quantizer(config: MethodsConfig) -> Quantizer:
    """The quantizer that a config describes: a codebook, ``config.num_groups`` of them, or one at ``config.scales``."""
    if config.scales:
        return MultiScaleQuantizer(config, build_codebook(config))
    if config.num_groups > 1:
        return ProductQuantizer(build_codebook(config) for _ in range(config.num_groups))
    return build_codebook(config)
