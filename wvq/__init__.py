"""wvq: Wasserstein-VQ image tokenizers, and autoregressive generators over their codes.

Public names are loaded on first use, so that ``import wvq`` costs nothing.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "WassersteinVQConfig": "wvq.tokenizer.configuration",
    "WassersteinVQModel": "wvq.tokenizer.modeling",
    "ImageProcessor": "wvq.tokenizer.processing",
    "nearest_codes": "wvq.tokenizer.quantizers.nearest",
    "gaussian_wasserstein": "wvq.tokenizer.quantizers.alignment",
    "sliced_wasserstein": "wvq.tokenizer.quantizers.alignment",
    "ImageCodeTransformerConfig": "wvq.generator.configuration",
    "ImageCodeTransformer": "wvq.generator.modeling",
    "ImageGenerationPipeline": "wvq.pipelines.image_generation",
    "CodeDataset": "wvq.data.codes",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'wvq' has no attribute '{name}'")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
