"""wvq: Wasserstein-VQ image tokenizers, and autoregressive generators over their codes.

Public names are loaded on first use, so that ``import wvq`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PUBLIC = {
    "WassersteinVQConfig": "wvq.tokenizer.configuration",
    "WassersteinVQModel": "wvq.tokenizer.modeling",
    "ImageProcessor": "wvq.tokenizer.processing",
    "nearest_codes": "wvq.tokenizer.quantizers.nearest",
    "gaussian_wasserstein": "wvq.tokenizer.quantizers.alignment",
    "sliced_wasserstein": "wvq.tokenizer.quantizers.alignment",
    "ImageCodeTransformerConfig": "wvq.generator.next_code.configuration",
    "ImageCodeTransformer": "wvq.generator.next_code.modeling",
    "NextScaleTransformerConfig": "wvq.generator.next_scale.configuration",
    "NextScaleTransformer": "wvq.generator.next_scale.modeling",
    "DepthTransformerConfig": "wvq.generator.depth.configuration",
    "DepthTransformer": "wvq.generator.depth.modeling",
    "ImageGenerationPipeline": "wvq.pipelines.image_generation",
    "load_published": "wvq.pipelines.published.loading",
    "load_published_tokenizer": "wvq.pipelines.published.loading",
    "CodeDataset": "wvq.data.codes",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:  # the same names for editors and type checkers, which run nothing
    from wvq.data.codes import CodeDataset as CodeDataset
    from wvq.generator.depth.configuration import DepthTransformerConfig as DepthTransformerConfig
    from wvq.generator.depth.modeling import DepthTransformer as DepthTransformer
    from wvq.generator.next_code.configuration import ImageCodeTransformerConfig as ImageCodeTransformerConfig
    from wvq.generator.next_code.modeling import ImageCodeTransformer as ImageCodeTransformer
    from wvq.generator.next_scale.configuration import NextScaleTransformerConfig as NextScaleTransformerConfig
    from wvq.generator.next_scale.modeling import NextScaleTransformer as NextScaleTransformer
    from wvq.pipelines.image_generation import ImageGenerationPipeline as ImageGenerationPipeline
    from wvq.pipelines.published.loading import load_published as load_published
    from wvq.pipelines.published.loading import load_published_tokenizer as load_published_tokenizer
    from wvq.tokenizer.configuration import WassersteinVQConfig as WassersteinVQConfig
    from wvq.tokenizer.modeling import WassersteinVQModel as WassersteinVQModel
    from wvq.tokenizer.processing import ImageProcessor as ImageProcessor
    from wvq.tokenizer.quantizers.alignment import gaussian_wasserstein as gaussian_wasserstein
    from wvq.tokenizer.quantizers.alignment import sliced_wasserstein as sliced_wasserstein
    from wvq.tokenizer.quantizers.nearest import nearest_codes as nearest_codes
else:

    def __getattr__(name: str):
        if name not in _PUBLIC:
            raise AttributeError(f"module 'wvq' has no attribute '{name}'")
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
