"""Tokenizers of taming-transformers (Esser et al. 2021, VQGAN) and of IBQ (Shi et al. 2024), which took its network."""

from __future__ import annotations

from wvq.tokenizer.published.form import F16, Sizes, TokenizerForm

_LOSS = r"loss\..*"  # discriminator and perceptual network


def averaged(name: str) -> str:
    """Name of the moving average of a weight, in files of Lightning models that keep one."""
    return "model_ema." + name.replace(".", "")


TAMING = TokenizerForm(
    fields={"quantizer": "vanilla"},
    dropped=(_LOSS,),
    published={Sizes(128, F16, 2, 256, 256, codes): 256 for codes in (1_024, 16_384)},
)

_IBQ = {"quantizer": "vanilla", "similarity": "dot"}
_IBQ_SIZES = {Sizes(128, F16, 4, 256, 256, codes): 256 for codes in (1_024, 8_192, 16_384, 262_144)}
IBQ = TokenizerForm(fields=_IBQ, dropped=(_LOSS,), published=_IBQ_SIZES)
# The average is what the authors evaluate; the weights as trained lie beside it.
IBQ_AVERAGED = TokenizerForm(
    fields=_IBQ,
    dropped=(r"(?!model_ema\.).*", r"model_ema\.(decay|num_updates|loss.*)"),
    rename=averaged,
    published=_IBQ_SIZES,
)
