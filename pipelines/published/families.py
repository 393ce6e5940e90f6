"""Of which project a file of weights is, by the names of its weights."""

from __future__ import annotations

from collections.abc import Iterable

from wvq.errors import CheckpointError
from wvq.pipelines.published.catalogue import FAMILIES

# Families by the beginning of a name that all their files have and none of the families before: the first that fits.
_TOKENIZERS = {
    "gen_vision_model.": ("janus",),
    "model.vqmodel.": ("janus",),
    "vqmodel.": ("janus",),
    "encoder.conv_blocks.": ("llamagen",),
    "quantizer.phi.": ("wasserstein-var",),
    "quantize.quant_resi.": ("var",),
    "model_ema.": ("ibq",),
    "encoder.down.": ("taming", "ibq", "janus"),
}
_GENERATORS = {"layers.0.attention.wqkv.": ("llamagen",), "blocks.0.attn.mat_qkv.": ("var",)}


def require_family(names: Iterable[str], family: str, part: str, source: str) -> None:
    """Check that weights are such as a family's, as far as their names show.

    Args:
        names: of the weights.
        family: of which they should be.
        part: ``tokenizer`` or ``generator``.
        source: the file, for errors.

    Raises:
        CheckpointError: they are of another family, of the other part, or of no model that is known.
    """
    names = list(names)
    for kind, table in (("tokenizer", _TOKENIZERS), ("generator", _GENERATORS)):
        families = next((fit for start, fit in table.items() if any(name.startswith(start) for name in names)), ())
        if not families:
            continue
        if kind == part and family in families:
            return
        projects = " or ".join(FAMILIES[one].project for one in families)
        remedy = f"import it as {families[0]}" if kind == part else f"give it by --{kind}"
        raise CheckpointError(
            f"{source} holds a {kind} of {projects}, not a {part} of {FAMILIES[family].project}; {remedy}"
        )
    known = ", ".join(FAMILIES)
    raise CheckpointError(f"{source} holds no {part} of a known layout ({known}): its first weight is {names[0]}")
