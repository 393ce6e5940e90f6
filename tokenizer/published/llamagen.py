"""Tokenizers of LlamaGen (Sun et al. 2024), and Janus's (Wu et al. 2024), which is LlamaGen's for 16 x 16 pixels."""

from __future__ import annotations

import re
from dataclasses import replace

from wvq.tokenizer.published.form import F16, Sizes, TokenizerForm

_VQ_16 = Sizes(128, F16, 2, 256, 8, 16_384)


def _within(form: TokenizerForm, prefix: str) -> TokenizerForm:
    """The form of a file of a larger model, whose tokenizer's names begin with ``prefix``; all else is left out."""
    start = re.escape(prefix)
    dropped = (f"(?!{start}).*", *(start + pattern for pattern in form.dropped))
    return replace(form, rename=f"{prefix}{{}}".format, dropped=dropped)


LLAMAGEN = TokenizerForm(
    levels=("conv_blocks", "conv_blocks"),
    block="res",
    middle=("mid.0", "mid.1", "mid.2"),
    rising=False,
    fields={"quantizer": "vanilla", "l2_normalize": True},
    dropped=(r"quantize\.codebook_used",),  # a count of the training
    published={_VQ_16: 256, Sizes(128, (1, 2, 2, 4), 2, 256, 8, 16_384): 256},
)
JANUS = replace(_within(LLAMAGEN, "gen_vision_model."), published={_VQ_16: 384})
# transformers has it under the names of taming-transformers, with the decoder's levels in the order in which they run.
JANUS_VQVAE = TokenizerForm(rising=False, fields=LLAMAGEN.fields, published=JANUS.published)
JANUS_TRANSFORMERS = (_within(JANUS_VQVAE, "model.vqmodel."), _within(JANUS_VQVAE, "vqmodel."))
