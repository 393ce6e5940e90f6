"""Tokenizers of LlamaGen (Sun et al. 2024), and Janus's (Wu et al. 2024), which is LlamaGen's for 16 x 16 pixels."""

from __future__ import annotations

from dataclasses import replace

from wvq.tokenizer.published.form import F16, Sizes, TokenizerForm

_USED = r"quantize\.codebook_used"  # a count of the training
_VQ_16 = Sizes(128, F16, 2, 256, 8, 16_384)

LLAMAGEN = TokenizerForm(
    levels=("conv_blocks", "conv_blocks"),
    block="res",
    middle=("mid.0", "mid.1", "mid.2"),
    rising=False,
    fields={"quantizer": "vanilla", "l2_normalize": True},
    dropped=(_USED,),
    published={_VQ_16: 256, Sizes(128, (1, 2, 2, 4), 2, 256, 8, 16_384): 256},
)
# The file of the whole model: all other parts are left out.
JANUS = replace(
    LLAMAGEN,
    rename="gen_vision_model.{}".format,
    dropped=(r"(?!gen_vision_model\.).*", rf"gen_vision_model\.{_USED}"),
    published={_VQ_16: 384},
)
# transformers has it under the names of taming-transformers, with the decoder's levels in the order in which they run.
JANUS_VQVAE = TokenizerForm(rising=False, fields=LLAMAGEN.fields, published=JANUS.published)
JANUS_TRANSFORMERS = replace(JANUS_VQVAE, rename="model.vqmodel.{}".format, dropped=(r"(?!model\.vqmodel\.).*",))
