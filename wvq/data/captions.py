"""What files beside pictures say about them: metadata files, a text for each picture, and what only looks so."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence

from wvq.data.inventory import Inventory, first_names, shown
from wvq.data.listing import Listing
from wvq.data.metadata import CAPTION_KEYS, OtherFormError, Row, caption_of, metadata_files, read_metadata
from wvq.distributed import is_main_process
from wvq.errors import DataError
from wvq.files.plain_text import read_plain_text

SIDECARS = (".txt", ".caption")
_TEXTS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
_LIKE_CAPTIONS = re.compile(r"(?<![a-z])(caption|metadata|label|annotation|prompt)", re.IGNORECASE)
# Boxes of objects, as YOLO writes them, lie beside pictures in files of the same names.
_BOX = re.compile(r"\s*\d+(\s+[-+.\deE]+){4,}\s*")
_TOKEN = re.compile(rb"[^\s\"',;/\\<>]+\.[A-Za-z0-9]+")  # what may be the name of a file
_LOOKED_INTO, _HEAD = 50, 2**16  # other text files that are searched for names of pictures, and bytes of each


class Notes:
    """What files say about pictures, by the paths of these; two files that disagree about one are an error.

    Args:
        inventory: receives which files were read and which were passed over.

    Attributes:
        rows: what is said about a picture, by its normal path.
        used: paths of the files that say it.
    """

    def __init__(self, inventory: Inventory):
        self.inventory = inventory
        self.rows: dict[str, Row] = {}
        self.used: set[str] = set()

    def about(self, picture: str) -> dict[str, object]:
        """The fields of a picture."""
        row = self.rows.get(os.path.normpath(picture)) if self.rows else None
        return {} if row is None else row.fields

    def add(self, row: Row) -> None:
        """Take up what a file says.

        Raises:
            DataError: another file says something else about the picture.
        """
        key = os.path.normpath(row.picture)
        self.rows[key] = joined(self.rows[key], row) if key in self.rows else row

    def listed(self, folder: Listing) -> list[Row]:
        """The rows of the first metadata file in a folder; none without one."""
        files = (os.path.join(folder.path, name) for name in metadata_files(folder.others))
        return next(filter(None, map(self._rows, files)), [])

    def _rows(self, file: str) -> list[Row]:
        """The rows of a metadata file; none, and a warning, for one in a form that is not known."""
        try:
            rows = read_metadata(file)
        except OtherFormError as error:
            _warn(f"{error}; the file is not used")
            self.used.add(file)  # has been named
            self.inventory.pass_over(os.path.basename(file))
            return []
        self.used.add(file)
        self.inventory.remark(f"{os.path.basename(file)} read")
        return rows

    def add_below(self, listings: Sequence[Listing]) -> None:
        """Take up all metadata files and texts in some folders, but those that were read before.

        Raises:
            DataError: see :func:`wvq.data.metadata.read_metadata`, or a text in another encoding.
        """
        for listing in listings:
            for file in (os.path.join(listing.path, name) for name in metadata_files(listing.others)):
                for row in self._rows(file) if file not in self.used else ():
                    self.add(row)
        texts = [row for listing in listings for row in _sidecars(listing)]
        lines = [line for row in texts for line in str(row.caption or "").split("\n") if line.strip()]
        if not all(map(_BOX.fullmatch, lines)):
            for row in texts:
                self.add(row)
                self.used.add(row.file)
            self.inventory.remark(f"NAME{os.path.splitext(texts[0].file)[1].lower()} read")

    def pass_over_rest(self, listings: Sequence[Listing]) -> None:
        """Count the files of some folders that are neither pictures nor read, and warn of those like captions."""
        rest = [
            (listing, name)
            for listing in listings
            for name in listing.others
            if os.path.join(listing.path, name) not in self.used
        ]
        for _, name in rest:
            self.inventory.pass_over(name)
        for listing in listings:
            for name in listing.odd:
                self.inventory.pass_over(name, "no plain file")
        texts = [(listing, name) for listing, name in rest if name.lower().endswith(_TEXTS)]
        if suspects := self._like_captions(texts, listings):
            look, used = ("looks", "is") if len(suspects) == 1 else ("look", "are")
            _warn(
                f"{first_names(suspects)} {look} like captions or labels and {used} not used; captions are read from "
                "metadata.jsonl, .csv, .tsv or .json, from captions.jsonl and so on, and from NAME.txt beside NAME.png"
            )

    def _like_captions(self, texts: Sequence[tuple[Listing, str]], listings: Sequence[Listing]) -> list[str]:
        """Text files with the name of a picture that has no caption, of captions, or with names of pictures in them."""
        if not texts:
            return []
        pictures = {name for listing in listings for name in listing.pictures}
        stems = {os.path.splitext(path)[0]: path for listing in listings for path in listing.picture_paths()}
        suspects, looked_into = [], 0
        for listing, name in texts:
            if picture := stems.get(os.path.splitext(os.path.join(listing.path, name))[0]):
                suspicious = caption_of(self.about(picture)) is None
            elif _LIKE_CAPTIONS.search(name):
                suspicious = True
            else:
                looked_into += 1
                file = os.path.join(listing.path, name)
                suspicious = looked_into <= _LOOKED_INTO and _names_pictures(file, pictures)
            suspects += [name] if suspicious else []
        return suspects


def joined(first: Row, second: Row) -> Row:
    """What two files say about one picture.

    Raises:
        DataError: they disagree.
    """
    captions = [_texts(row.caption) for row in (first, second)]
    if all(captions) and captions[0] != captions[1]:
        raise _disagreement(first, second, "caption", (first.caption, second.caption))
    more = {name: value for name, value in second.fields.items() if name not in CAPTION_KEYS}
    for name in more:
        values = [row.fields.get(name) for row in (first, second)]
        if None not in values and str(values[0]) != str(values[1]):
            raise _disagreement(first, second, name, values)
    if captions[1] and not captions[0]:
        more["caption"] = second.caption
    own = {name: value for name, value in first.fields.items() if value is not None or name not in more}
    return first._replace(fields=more | own)


def _disagreement(first: Row, second: Row, name: str, values: Sequence[object]) -> DataError:
    return DataError(
        f"{first.place} and {second.place} disagree about {first.picture}: its {name} is {values[0]!r} or "
        f"{values[1]!r}; keep one of them"
    )


def _texts(caption: object) -> list[str]:
    texts = caption if isinstance(caption, list) else [] if caption is None else [caption]
    return [str(text).strip() for text in texts]


def _sidecars(listing: Listing) -> list[Row]:
    """What stands in NAME.txt or NAME.caption beside pictures of that name, the whole text as the caption."""
    files = [name for name in listing.others if name.lower().endswith(SIDECARS)]
    stems: dict[str, list[str]] = {}
    for name in listing.pictures if files else ():
        stems.setdefault(os.path.splitext(name)[0], []).append(name)
    rows = []
    for name in files:
        if pictures := stems.get(os.path.splitext(name)[0]):
            file = os.path.join(listing.path, name)
            try:
                text = read_plain_text(file).strip()
            except (OSError, ValueError) as error:
                raise DataError(f"{shown(file)} {getattr(error, 'strerror', None) or error}") from None
            fields: dict[str, object] = {"caption": text or None}
            rows += [Row(os.path.join(listing.path, picture), fields, file, file) for picture in pictures]
    return rows


def _names_pictures(file: str, pictures: set[str]) -> bool:
    """Whether the beginning of a text file holds the name of a picture."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(_HEAD)
    except OSError:
        return False
    return any(os.fsdecode(token) in pictures for token in _TOKEN.findall(head))


def _warn(text: str) -> None:
    if is_main_process():
        warnings.warn(text, stacklevel=4)
