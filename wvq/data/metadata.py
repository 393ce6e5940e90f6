"""Files that say something about pictures by their names: metadata and captions as jsonl, json, csv or tsv."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import NamedTuple

from wvq.errors import DataError
from wvq.files.plain_text import read_plain_text
from wvq.files.reading import parse_json

METADATA_NAME = re.compile(r"(metadata|captions)\.(jsonl|json|csv|tsv)", re.IGNORECASE)
FILE_KEYS = ("file_name", "filename", "file", "image", "path")
CAPTION_KEYS = ("caption", "captions", "text")


class Row(NamedTuple):
    """What a file says about one picture.

    Attributes:
        picture: its path.
        fields: such as ``caption`` and ``label``.
        file: the file that says it.
        place: where in it, for messages.
    """

    picture: str
    fields: dict[str, object]
    file: str
    place: str

    @property
    def caption(self) -> object:
        """The caption, or the captions; None for none."""
        return caption_of(self.fields)


class OtherFormError(DataError):
    """A file has the name of a metadata file, and its content has another form than any that is read."""


def caption_of(fields: dict[str, object]) -> object:
    """The caption among some fields, or the captions; None for none."""
    return next((fields[key] for key in CAPTION_KEYS if fields.get(key) not in (None, "", [])), None)


def metadata_files(names: list[str]) -> list[str]:
    """The metadata files among some names, ``metadata`` before ``captions``, jsonl first."""
    endings = (".jsonl", ".csv", ".tsv", ".json")

    def rank(name: str) -> tuple[bool, int, str]:
        stem, ending = os.path.splitext(name.lower())
        return stem != "metadata", endings.index(ending), name

    return sorted(filter(METADATA_NAME.fullmatch, names), key=rank)


def read_metadata(file: str) -> list[Row]:
    """The rows of a metadata file; names of pictures are paths from its folder.

    Forms:
        - ``.jsonl``: an object a line, with the name of a picture (``FILE_KEYS``) and other fields;
        - ``.csv`` (separated by comma, semicolon or tab) and ``.tsv``: the first line names the columns;
        - ``.json``: a list of such objects, or one object with a caption, or an object, for each name.

    Raises:
        OtherFormError: of another form than these.
        DataError: a line that is malformed, names no file that is there, or is in another encoding than UTF-8.
    """
    try:
        text = read_plain_text(file)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{file} {problem if problem.startswith('line') else f'cannot be read ({problem})'}") from None
    read, form = _FORMS[os.path.splitext(file)[1].lower()]
    folder = PurePath(file).parent
    rows: list[Row] = []
    absent: list[Row] = []
    for place, values in read(file, text):
        key = next((key for key in FILE_KEYS if isinstance(values.get(key), str)), None)
        if key is None:
            other_form = PurePath(file).name.lower() == "captions.jsonl" and not (rows or absent)
            raise (OtherFormError if other_form else DataError)(
                f'{place} must {form} a "file_name", the path from {folder}'
            )
        row = Row(str(folder / str(values.pop(key))), values, file, place)
        _refuse_halves(row)
        (rows if os.path.isfile(row.picture) else absent).append(row)
    if absent:
        what = "is no file" if os.path.exists(absent[0].picture) else "does not exist"
        others = f"; so do {len(absent) - 1:,} other lines" if len(absent) > 1 else ""
        raise DataError(f"{absent[0].place} names {absent[0].picture}, which {what}{others}")
    if not rows:
        raise DataError(f"{file} lists no pictures")
    return rows


def _json_lines(file: str, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(text.split("\n"), start=1):  # no other character ends a line
        if line.strip():
            try:
                values = parse_json(line)
            except ValueError as error:
                reason = getattr(error, "msg", error)
                raise DataError(f"{file} line {number} is not JSON: {reason}") from None
            yield f"{file} line {number}", values if isinstance(values, dict) else {}


def _json_value(file: str, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from None
    folder = os.path.dirname(file)
    if isinstance(value, dict) and any(os.path.isfile(os.path.join(folder, name)) for name in value):
        for name, entry in value.items():
            fields = entry if isinstance(entry, dict) else {"caption": entry}
            yield f"{file}, {name!r},", {**fields, "file_name": name}
    elif isinstance(value, list) and any(isinstance(row, dict) and row.keys() & set(FILE_KEYS) for row in value):
        for number, row in enumerate(value, start=1):
            yield f"{file}, object {number},", row if isinstance(row, dict) else {}
    else:
        raise OtherFormError(
            f'{file} is neither a list of objects with a "file_name" nor an object by names of pictures'
        )


def _table(file: str, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    first = text.lstrip("\r\n").split("\n", 1)[0]
    names = {separator: {cell.strip(' "\r') for cell in first.split(separator)} for separator in "\t;,"}
    separator = next((separator for separator, cells in names.items() if cells & set(FILE_KEYS)), None)
    if separator is None:
        raise OtherFormError(f"{file}: its first line has no column file_name")
    # Only \n ends a line here, and the reader itself knows \r\n.
    lines = io.StringIO(text, newline="\n")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t", strict=True)
    columns: list[str] = []
    try:
        for cells in reader:
            place = f"{file} line {reader.line_num}"
            if not columns:
                columns = [cell.strip() for cell in cells]
            elif len(cells) == len(columns):
                yield place, {name: cell or None for name, cell in zip(columns, cells, strict=True)}
            elif cells:
                raise DataError(
                    f"{place} has {len(cells)} cells where line 1 has {len(columns)}; quote those with commas"
                )
    except csv.Error as error:
        raise DataError(
            f"{file} line {reader.line_num} is malformed ({error}); quote cells as spreadsheets do"
        ) from None


# How each is read, and what a row of it must do to name a picture.
_FORMS: dict[str, tuple[Callable[[str, str], Iterator[tuple[str, dict[str, object]]]], str]] = {
    ".jsonl": (_json_lines, "be an object with"),
    ".json": (_json_value, "be an object with"),
    ".csv": (_table, "have"),
    ".tsv": (_table, "have"),
}


def _refuse_halves(row: Row) -> None:
    r"""Refuse halves of surrogate pairs, which JSON can write (``\ud83d``) and no text holds."""
    try:
        json.dumps(row.fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        raise DataError(f"{row.place} holds {half}, half a character: write the whole character") from None
