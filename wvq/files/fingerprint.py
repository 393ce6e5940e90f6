"""Which pictures something was made from: ids by which a later stage knows what is new, gone, or held out otherwise."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from wvq.checks import is_integer
from wvq.errors import CheckpointError, first_line
from wvq.files.atomic import read_json, write_json
from wvq.files.names import FINGERPRINT_NAME

MOST_IDS = 65_536  # that are kept of a set
_SAMPLE = 0xFFFF  # the bits of an id that come from the picture's content

Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class PictureSketch:
    """A set of pictures by their ids: all of up to 65,536, and of more the smallest, which are a random sample.

    An id has 64 bits. The upper 48 are a hash of the picture's name, and decide which are kept. The lower 16 are one of
    a sample of its content, which is taken of the kept ones alone: pictures of one name with other content differ.

    Attributes:
        count: number of pictures.
        digest: a hash of all names and of the kept ids; it does not depend on the order.
        ids: the kept ids, ascending.
    """

    count: int
    digest: str
    ids: Ids

    @classmethod
    def of(cls, names: Iterable[str], sample: Callable[[int], bytes] | None = None) -> Self:
        """The sketch of pictures with these names, which may come one by one.

        Args:
            names: a name for each, which stays when the data move; shards with their keys, for a stream.
            sample: gives a few bytes that tell of a picture's content, by its number among the names.
        """
        hashes = np.fromiter((_hash(name.encode("utf-8", "surrogatepass")) for name in names), np.uint64)
        hashes &= ~np.uint64(_SAMPLE)
        count = len(hashes)
        kept = np.argpartition(hashes, MOST_IDS)[:MOST_IDS] if count > MOST_IDS else np.arange(count)
        ids = hashes[kept]
        if sample is not None:
            ids |= np.fromiter((_hash(sample(number)) & _SAMPLE for number in kept.tolist()), np.uint64, len(kept))
        return cls._with_digest(count, np.sort(ids), int(hashes.sum()))

    @classmethod
    def _with_digest(cls, count: int, ids: Ids, total: int = 0) -> Self:
        digest = hashlib.sha256(f"{count} {total} ".encode() + ids.astype("<u8").tobytes())
        return cls(count, digest.hexdigest()[:16], ids)

    @property
    def is_exact(self) -> bool:
        """Whether the ids are those of all pictures."""
        return self.count <= MOST_IDS

    def joined(self, other: PictureSketch) -> PictureSketch:
        """The pictures of both; their count is an estimate where one of them is not exact."""
        ids = np.union1d(*known_ids(self, other))
        exact = self.is_exact and other.is_exact
        return self._with_digest(len(ids) if exact else self.count + number_new(self, other), ids[:MOST_IDS])

    def to_dict(self) -> dict[str, object]:
        """The values of a JSON object."""
        ids = base64.b64encode(self.ids.astype("<u8").tobytes()).decode()
        return {"count": self.count, "digest": self.digest, "ids": ids}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The sketch of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: the values are of something else.
        """
        count, digest = values["count"], values["digest"]
        ids = np.frombuffer(base64.b64decode(values["ids"], validate=True), "<u8").astype(np.uint64)
        if not (is_integer(count, 0) and isinstance(digest, str)):
            raise ValueError("count and digest must be a whole number and a text")
        if len(ids) > MOST_IDS or (len(ids) != count if count <= MOST_IDS else not len(ids)):
            raise ValueError(f"{len(ids):,} ids for {count:,} pictures")
        if (ids[1:] < ids[:-1]).any():
            raise ValueError("ids must ascend")
        return cls(count, digest, ids)

    def __str__(self) -> str:
        return f"{self.count:,} pictures ({self.digest})"


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def known_ids(*sketches: PictureSketch) -> list[Ids]:
    """The ids of each set in the range in which no id of any of them is unknown: a fair sample of each."""
    # In a sketch that is not exact others may share the last name.
    largest = min((int(sketch.ids[-1]) & ~_SAMPLE) - 1 if not sketch.is_exact else 2**64 - 1 for sketch in sketches)
    return [sketch.ids[sketch.ids <= np.uint64(max(largest, 0))] for sketch in sketches]


def number_new(before: PictureSketch, now: PictureSketch) -> int:
    """How many pictures of ``now`` are not in ``before``; an estimate unless both are exact."""
    known, current = known_ids(before, now)
    return _scaled(~np.isin(current, known), now)


def _scaled(marks: npt.NDArray[np.bool_], whole: PictureSketch) -> int:
    """How many pictures of a set are marked, by the marks of those that are known."""
    return round(int(marks.sum()) * whole.count / len(marks)) if len(marks) else 0


@dataclass(frozen=True, eq=False)
class DataFingerprint:
    """The pictures that something was made from, as they were held out.

    Attributes:
        train, validation: training and held-out pictures.
        earlier: those that the weights were trained on before, where a run started from others or went on with other
            data; None if there are none.
    """

    train: PictureSketch
    validation: PictureSketch
    earlier: PictureSketch | None = None

    @classmethod
    def read(cls, folder: str | Path) -> Self | None:
        """The fingerprint in a folder; None where there is none, as in those of earlier versions.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = Path(folder) / FINGERPRINT_NAME
        if not file.exists():
            return None
        values = read_json(file, CheckpointError, f"{file} is missing")
        try:
            parts = {name: PictureSketch.from_dict(values[name]) for name in ("train", "validation")}
            earlier = values["earlier"]
            return cls(**parts, earlier=None if earlier is None else PictureSketch.from_dict(earlier))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{file} is damaged ({first_line(error)}); remove it, and the data are not compared"
            ) from error

    def save(self, folder: str | Path) -> None:
        """Write it into a folder; the file is complete or absent."""
        parts = {"train": self.train, "validation": self.validation, "earlier": self.earlier}
        write_json(Path(folder) / FINGERPRINT_NAME, {name: part and part.to_dict() for name, part in parts.items()})

    @property
    def trained_on(self) -> PictureSketch:
        """All pictures that the weights have been trained on."""
        return self.train if self.earlier is None else self.train.joined(self.earlier)

    def after(self, before: DataFingerprint | None) -> DataFingerprint:
        """The fingerprint of weights that were trained on ``before``, and now on these pictures."""
        if before is None:
            return self
        same = before.train.digest == self.train.digest
        return DataFingerprint(self.train, self.validation, before.earlier if same else before.trained_on)

    def summary(self) -> dict[str, str]:
        """Counts and digests by part, for results and descriptions."""
        parts = {"training": self.train, "held out": self.validation, "trained on before": self.earlier}
        return {name: str(part) for name, part in parts.items() if part is not None}


def changed_pictures(before: DataFingerprint, now: DataFingerprint) -> str | None:
    """How the training pictures differ, in counts; None if they are the same."""
    changes = _changes(before.train, now.train, "training pictures")
    otherwise = ", the same pictures held out otherwise" if same_pictures(before, now) else ""
    return changes and changes + otherwise


def changed_data(before: DataFingerprint, now: DataFingerprint) -> str:
    """How the pictures differ, however they are held out, in counts."""
    if same_pictures(before, now):
        return "the same pictures, held out otherwise"
    changes = _changes(before.train.joined(before.validation), now.train.joined(now.validation), "pictures")
    return changes or "no picture is new or gone"


def same_pictures(before: DataFingerprint, now: DataFingerprint) -> bool:
    """Whether training and held-out pictures together are the same, as far as their ids are known."""
    if before.train.count + before.validation.count != now.train.count + now.validation.count:
        return False
    known = known_ids(before.train, before.validation, now.train, now.validation)
    return np.array_equal(np.union1d(*known[:2]), np.union1d(*known[2:]))


def _changes(before: PictureSketch, now: PictureSketch, what: str) -> str | None:
    if before.digest == now.digest:
        return None
    about = "" if before.is_exact and now.is_exact else "about "
    new, gone = number_new(before, now), number_new(now, before)
    if not new and not gone:  # none among the known ids
        return f"a few of {now.count:,} {what} are others"
    return f"{about}{new:,} of {now.count:,} {what} are new, {gone:,} are gone"


def mixed_pictures(before: DataFingerprint, now: DataFingerprint, resumed: bool = False) -> str | None:
    """How many held-out pictures a run was trained on, as what is said of it; None if there are none.

    A picture that was on both sides before is not counted.

    Args:
        before: of what was trained.
        now: of what goes on with it, or measures it.
        resumed: also count training pictures that were held out before.
    """
    parts, trained_on = [], before.trained_on
    if mixed := _number_passed(now.validation, trained_on, before.validation):
        parts.append(f"was trained on {mixed} of these {now.validation.count:,} held-out pictures")
    if resumed and (mixed := _number_passed(now.train, before.validation, trained_on)):
        parts.append(f"held out {mixed} of these {now.train.count:,} training pictures")
    return " and ".join(parts) or None


def _number_passed(now: PictureSketch, other_side: PictureSketch, own_side: PictureSketch) -> str | None:
    """How many pictures were on the other side before, and not on this one too; None for none."""
    known, others, own = known_ids(now, other_side, own_side)
    number = _scaled(np.isin(known, np.setdiff1d(others, own)), now)
    about = "" if now.is_exact and other_side.is_exact and own_side.is_exact else "about "
    return f"{about}{number:,}" if number else None
