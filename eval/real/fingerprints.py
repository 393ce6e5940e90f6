"""Whether models have seen the real pictures of an evaluation, and what its result says of them."""

from __future__ import annotations

from collections.abc import Mapping

from wvq.data.dataset import ImageSplits
from wvq.data.fingerprint import fingerprint_of
from wvq.data.opening import StreamSplits
from wvq.data.splits import check_held_out
from wvq.distributed import decided_by_first_process
from wvq.files.fingerprint import DataFingerprint, changed_pictures
from wvq.settings.data import DataConfig


def check_seen(
    images: ImageSplits | StreamSplits, kind: str, data: DataConfig, models: Mapping[str, DataFingerprint | None]
) -> tuple[DataFingerprint | None, list[str]]:
    """Compare the pictures of an evaluation with those that its models were trained on. All processes call it together.

    Args:
        images: the pictures.
        kind: which of them are used. Of ``train`` all should be training pictures of the models, and none missing; of
            ``validation`` none should be.
        data: the settings by which they were read.
        models: the fingerprints of models by what messages call them; None for those that have none.

    Returns:
        The fingerprint of the pictures (None for a stream), and warnings.

    Raises:
        ConfigError: held-out pictures that a model was trained on, unless ``data`` accepts it.
    """

    def compare() -> tuple[DataFingerprint | None, list[str]]:
        now = fingerprint_of(images, data.path)
        lines: list[str | None] = []
        for name, before in models.items():
            if kind == "validation":
                lines.append(check_held_out(before, now, name, data))
            elif before is not None and now is not None:
                changed = changed_pictures(before, now)
                lines.append(changed and f"{name} was trained on other pictures: {changed}")
        return now, [line for line in lines if line]

    return decided_by_first_process(compare)


def fingerprint_settings(**fingerprints: DataFingerprint | None) -> dict[str, dict[str, dict[str, str]]]:
    """The fingerprints in short, for the settings of a result: counts and digests by name and part."""
    return {"data_fingerprint": {name: known.summary() for name, known in fingerprints.items() if known is not None}}
