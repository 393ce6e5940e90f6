"""Tokenizers of VAR (Tian et al. 2024), and of the authors of arXiv 2506.15078 over its network."""

from __future__ import annotations

from wvq.tokenizer.published.form import F16, Sizes, TokenizerForm

_SCALES = {16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}

VAR = TokenizerForm(
    fused_qkv=True,
    scale_convs="quantize.quant_resi.qresi_ls",
    fields={"quantizer": "vanilla", "scale_conv_ratio": 0.5},
    dropped=(r"quantize\.ema_vocab_hit_SV",),
    published={Sizes(160, F16, 2, 32, 32, 4_096): 256},
    published_scales=_SCALES,
)
WASSERSTEIN_VAR = TokenizerForm(
    fused_qkv=True,
    codebook="quantizer.embedding.weight",
    scale_convs="quantizer.phi.qresi_ls",
    residual_projector="projector_out",
    fields={"quantizer": "wasserstein", "scale_conv_ratio": 0.5},
    dropped=(r"quantizer\.queue\..*",),
    published={Sizes(160, F16, 2, 32, 32, codes): 256 for codes in (4_096, 8_192)},
    published_scales=_SCALES,
)
