"""Tests of what counts as a picture, by ending or first bytes, and of what lies in folders besides."""

import io
import os
import socket

import pytest
from PIL import Image

from wvq.data.listing import is_picture, list_folder, walk
from wvq.errors import DataError


def draw(path, form="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.new("RGB", (4, 4), "red").save(file, form)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.png", "PNG"),
        ("a.PNG", "PNG"),
        ("a.jfif", "JPEG"),
        ("a.jpe", "JPEG"),
        ("a.jp2", "JPEG2000"),
        ("a.ico", "ICO"),
        ("a.tga", "TGA"),
        ("a.jpg", "PNG"),  # a wrong ending of a picture
        ("no ending", "JPEG"),
        ("v1.2", "PNG"),
        ("a.dat", "WEBP"),
        ("a.bin", "BMP"),
    ],
)
def test_what_pillow_opens_is_a_picture(tmp_path, name, form):
    draw(tmp_path / name, form)
    assert list_folder(tmp_path).pictures == [name]


def encoded(form):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pdf", b"%PDF-1.4"),
        ("a.eps", b"%!PS-Adobe-3.0"),
        ("a.mpg", b"\x00\x00\x01\xb3"),
        ("a.h5", b"\x89HDF\r\n\x1a\n"),
        ("a.nef", encoded("TIFF")),
        ("a.pfm", b"Pf\n1 1\n-1.0\n\0\0\0\0"),
        ("document", b"%PDF-1.4"),
        ("README", b"Pictures of cats"),
        ("LICENSE", b"P1 is no picture"),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0"),
        ("a.caption", b"red"),
        ("empty", b""),
    ],
)
def test_other_files_are_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    listing = list_folder(tmp_path)
    assert (listing.pictures, listing.others) == ([], [name])


def test_texts_are_not_looked_into(tmp_path, monkeypatch):
    for name in ("a.txt", "a.json", "a.parquet", "a.npy", "a.png", "a.mp4"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr("wvq.data.listing.is_picture", lambda file: pytest.fail(f"opened {file}"))
    assert list_folder(tmp_path).pictures == ["a.png"]


def test_pipes_sockets_and_devices_are_not_opened(tmp_path, monkeypatch):
    for name in ("pipe.png", "pipe", "pipe.txt"):
        os.mkfifo(tmp_path / name)
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.png")
    (tmp_path / "device.png").symlink_to("/dev/null")
    listing = list_folder(tmp_path)
    assert listing.odd == ["device.png", "pipe", "pipe.png", "pipe.txt", "socket.png"]
    assert listing.pictures == listing.others == []


def test_links_that_lead_nowhere_count_by_their_names(tmp_path):
    (tmp_path / "a.png").symlink_to("gone.png")
    (tmp_path / "b.txt").symlink_to("gone.txt")
    (tmp_path / "c").symlink_to("c")
    listing = list_folder(tmp_path)
    assert (listing.pictures, listing.others) == (["a.png"], ["b.txt", "c"])


def test_hidden_entries_are_not_there(tmp_path):
    draw(tmp_path / ".a.png")
    draw(tmp_path / ".cache" / "a.png")
    draw(tmp_path / "__MACOSX" / "a.png")
    assert list_folder(tmp_path).folders == list_folder(tmp_path).pictures == []


def test_folders_are_walked_in_order_and_once(tmp_path):
    for name in ("b/2.png", "b/1.png", "b/c/3.png", "a/0.png"):
        draw(tmp_path / name)
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "d").symlink_to(tmp_path / "b" / "c")
    pictures = [path for listing in walk(tmp_path) for path in listing.picture_paths()]
    assert pictures == [str(tmp_path / name) for name in ("a/0.png", "b/1.png", "b/2.png", "b/c/3.png")]


def test_a_folder_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"gone cannot be read \(No such file or directory\)"):
        list_folder(tmp_path / "gone")


def test_a_picture_that_is_too_large_is_one(tmp_path, monkeypatch):
    draw(tmp_path / "large")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert is_picture(str(tmp_path / "large"))
