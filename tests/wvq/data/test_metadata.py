"""Tests of metadata files: every form, every name, line ends, encodings, and each malformed line as one clear line."""

import json
import os

import pytest

from wvq.data.metadata import OtherFormError, caption_of, metadata_files, read_metadata
from wvq.errors import DataError

ROWS = [{"file_name": "a.png", "caption": "red"}, {"file_name": "b.png", "caption": "blue, light"}]


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def read(folder, name, text):
    content = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(content)
    return read_metadata(str(folder / name))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("Metadata.JSONL", "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n"),
        ("captions.jsonl", "\n".join(json.dumps({"image": r["file_name"], "text": r["caption"]}) for r in ROWS)),
        ("metadata.json", json.dumps(ROWS)),
        ("captions.json", json.dumps({row["file_name"]: row["caption"] for row in ROWS})),
        ("metadata.json", json.dumps({row["file_name"]: {"caption": row["caption"]} for row in ROWS})),
        ("metadata.csv", 'file_name,caption\na.png,red\nb.png,"blue, light"\n'),
        ("CAPTIONS.csv", 'caption, filename\r\nred, a.png\r\n"blue, light", b.png\r\n'),
        ("metadata.csv", "path;captions\na.png;red\nb.png;blue, light\n"),
        ("metadata.tsv", "file\ttext\na.png\tred\n\nb.png\tblue, light\n"),
    ],
)
def test_forms(folder, name, text):
    rows = read(folder, name, text)
    assert [(row.picture, row.caption) for row in rows] == [
        (str(folder / "a.png"), "red"),
        (str(folder / "b.png"), "blue, light"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_only_a_line_feed_ends_a_line(folder, encoding, name):
    caption = "a\u2028b\x85c\x0bd\x0ce"
    lines = {
        "metadata.jsonl": json.dumps({"file_name": "a.png", "caption": caption}, ensure_ascii=False) + "\r\n",
        "metadata.csv": f"file_name,caption\r\na.png,{caption}\r\n",
    }
    (row,) = read(folder, name, lines[name].encode(encoding))
    assert row.caption == caption


def test_other_fields_are_kept_and_empty_cells_are_none(folder):
    first, second = read(folder, "metadata.csv", "file_name,caption,label\na.png,red,1\nb.png,,\n")
    assert first.fields == {"caption": "red", "label": "1"}
    assert second.fields == {"caption": None, "label": None}
    assert second.caption is None


def test_several_captions(folder):
    (row,) = read(folder, "metadata.jsonl", '{"file_name": "a.png", "captions": ["red", "scarlet"]}')
    assert row.caption == ["red", "scarlet"]
    assert caption_of({"captions": [], "text": "red"}) == "red"


def test_names_of_metadata_files_in_their_order():
    names = ["captions.jsonl", "a.png", "metadata.csv", "METADATA.jsonl", "my_metadata.jsonl", "metadata.txt"]
    assert metadata_files(names) == ["METADATA.jsonl", "metadata.csv", "captions.jsonl"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.json", '{"images": [{"file_name": "a.png"}], "annotations": []}'),
        ("metadata.json", "[1, 2]"),
        ("metadata.json", "[]"),
        ("metadata.csv", "id,caption\n1,red\n"),
        ("metadata.csv", "a.png,red\n"),
        ("metadata.csv", ""),
        ("captions.jsonl", '{"image_id": 1, "caption": "red"}'),
    ],
)
def test_files_of_another_form(folder, name, text):
    with pytest.raises(OtherFormError, match=name):
        read(folder, name, text)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '{"caption": "x"}', 'line 1 must be an object with a "file_name"'),
        ("captions.jsonl", '{"file_name": "a.png"}\n[1]', 'line 2 must be an object with a "file_name"'),
        ("captions.jsonl", '{"file_name": "a.png"', "line 1 is not JSON"),
        ("metadata.json", "{", "metadata.json is not JSON"),
        ("metadata.json", '[{"file_name": "a.png"}, 2]', 'object 2, must be an object with a "file_name"'),
        ("metadata.json", '{"a.png": "red", "c.png": "blue"}', r"'c\.png', names .*c\.png, which does not exist$"),
        ("metadata.csv", "file_name,caption\na.png,red, light\n", "line 2 has 3 cells where line 1 has 2; quote those"),
        ("metadata.csv", 'file_name,caption\na.png,"red\n', "line 2 is malformed"),
        ("metadata.csv", "file_name,caption\n,red\n", 'line 2 must have a "file_name"'),
        ("metadata.csv", "file_name\n", "lists no pictures"),
        (
            "metadata.csv",
            "file_name\nc.png\na.png\nd.png\n",
            r"line 2 names .*c\.png, which does not .*; so do 1 other",
        ),
        (
            "metadata.jsonl",
            b'{"file_name": "a.png"}\n{"caption": "caf\xe9"}',
            r"metadata\.jsonl line 2 is not UTF-8 text",
        ),
        ("metadata.csv", b"file_name,caption\na.png,caf\xe9\n", r"metadata\.csv line 2 is not UTF-8 text \(byte e9\)"),
        ("metadata.jsonl", '{"file_name": "a.png", "caption": "\\ud83d"}', r"line 1 holds \\ud83d, half a character"),
    ],
)
def test_malformed_lines(folder, name, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read(folder, name, text)
    assert not isinstance(caught.value, OtherFormError)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_no_picture(folder):
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(DataError, match=r"line 1 names .*pipe\.png, which is no file"):
        read(folder, "metadata.jsonl", '{"file_name": "pipe.png"}')
