"""Which real pictures each evaluation is compared with. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from wvq.errors import ConfigError

# Samples are compared with the pictures that the models learned from, reconstructions are made of held-out ones.
KINDS = {"generation": "train", "reconstruction": "validation"}
FEWEST = 4  # pictures on a side of a comparison


def require_kind(task: Literal["generation", "reconstruction"], kind: str, force: bool) -> dict[str, bool]:
    """Compare the kind of a reference with the one that an evaluation needs.

    Args:
        task: what is evaluated.
        kind: what the reference holds, ``train`` or ``validation`` pictures.
        force: accept the other kind.

    Returns:
        ``{"forced": True}``, for the result, where the other kind is accepted; else nothing.

    Raises:
        ConfigError: an unknown kind, or the other one without ``force``.
    """
    if kind not in KINDS.values():
        raise ConfigError(f"reference_kind must be {' or '.join(KINDS.values())}, not {kind!r}")
    if kind == KINDS[task]:
        return {}
    if not force:
        why = (
            "samples are compared with the training pictures, whose distribution was learned"
            if task == "generation"
            else "a tokenizer is measured on pictures that it has not been trained on"
        )
        raise ConfigError(
            f"{task} takes a {KINDS[task]} reference, and this one is {kind}: {why}, and published figures are made "
            "so; --force-reference accepts it and marks the result"
        )
    return {"forced": True}
