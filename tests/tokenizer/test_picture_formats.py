"""Pictures as users have them: Pillow, arrays and tensors of each layout, files and addresses, in and out."""

import functools
import http.server
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from wvq.errors import ConfigError, DataError, UnreadablePictureError
from wvq.tokenizer.picture_formats import as_pictures, as_type, require_output_type

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
PIXELS[0, :2] = [[0], [255]]
ALPHA = np.concatenate([PIXELS, np.full((6, 9, 1), 255, np.uint8)], axis=-1)
TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)


@pytest.fixture
def file(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a b.png")
    return tmp_path / "a b.png"


FORMS = {
    "pillow": lambda file: Image.fromarray(PIXELS),
    "file": lambda file: file,
    "text": str,
    "array": lambda file: PIXELS,
    "array, channels first": lambda file: PIXELS.transpose(2, 0, 1),
    "float64": lambda file: PIXELS / 255,
    "float32": lambda file: (PIXELS / 255).astype(np.float32),
    "float16": lambda file: (PIXELS / 255).astype(np.float16),
    "with alpha": lambda file: ALPHA,
    "batch": lambda file: PIXELS[None],
    "tensor": lambda file: TENSOR,
    "tensor, channels last": lambda file: TENSOR.permute(1, 2, 0),
    "float tensor": lambda file: (TENSOR / 255).requires_grad_(),
    "bfloat16 tensor": lambda file: (TENSOR / 255).bfloat16(),
    "batch of tensors": lambda file: TENSOR[None],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_picture(form, file):
    image = FORMS[form](file)
    (picture,) = as_pictures(image)
    found = np.asarray(picture.convert("RGB"))
    # bfloat16 has 8 binary digits.
    np.testing.assert_allclose(found.astype(int), PIXELS, atol=1 if form == "bfloat16 tensor" else 0)
    assert [one.tobytes() for one in as_pictures([image, [image]])] == [picture.tobytes()] * 2


def test_a_list_of_all_forms_is_flat_and_in_order(file):
    given = [form(file) for form in FORMS.values()]
    assert len(as_pictures([*given, np.stack([PIXELS] * 3)])) == len(FORMS) + 3


@pytest.mark.parametrize("grey", [PIXELS[..., 0], PIXELS[..., :1], TENSOR[:1], TENSOR[0], TENSOR[0] / 255])
def test_grey(grey):
    (picture,) = as_pictures(grey)
    assert picture.mode == "L"
    assert np.array_equal(np.asarray(picture), PIXELS[..., 0])


def test_an_address_on_the_web(file):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(file.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        (picture,) = as_pictures(address + "a%20b.png")
        assert np.array_equal(np.asarray(picture), PIXELS)
        with pytest.raises(DataError, match=r"images: http://.*/none\.png cannot be read as a picture \(.*404"):
            as_pictures([address + "none.png"])
        with pytest.raises(DataError, match="cannot be read as a picture"):
            as_pictures(address)  # a page
        server.shutdown()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS / 255 * 2 - 1, r"images: floats must be in \[0, 1\], got -1 to 1; .* take \(x \+ 1\) / 2 of those in"),
        (PIXELS.astype(float), r"images: floats must be in \[0, 1\], got 0 to 255; divide those up to 255 by 255"),
        (PIXELS * np.nan, r"images: floats must be in \[0, 1\], got nan to nan"),
        (PIXELS.astype(np.int64), r"images: an array must be uint8 or floats in \[0, 1\], got int64"),
        (PIXELS > 3, "images: an array must be uint8 .* got bool"),
        (PIXELS.astype(object), "images: an array must be uint8 .* got object"),
        (
            np.zeros((3, 8, 3), np.uint8),
            r"shape \(3, 8, 3\) may have its channels first or last; give one as",
        ),
        (torch.zeros(10, 8, 8), r"shape \(10, 8, 8\) has neither 1, 3 nor 4 channels; .* several as \(N, H, W, C\)"),
        (PIXELS[..., :2], r"shape \(6, 9, 2\) has neither 1, 3 nor 4 channels"),
        (PIXELS[None, None], r"images: an array must have 2, 3 or 4 dims, got shape \(1, 1, 6, 9, 3\)"),
        (PIXELS[0, 0], r"images: an array must have 2, 3 or 4 dims, got shape \(3,\)"),
        (PIXELS[:0], r"images: an array of shape \(0, 9, 3\) is empty"),
        ([], "images must be Pillow pictures, arrays, tensors, files or a list of them, got an empty list"),
        ([PIXELS, []], "images must be .* got an empty list"),
        (None, "images must be .* got a NoneType"),
        ({"a": PIXELS}, "images must be .* got a dict"),
        ([3], "images must be .* got a int"),
    ],
)
def test_anything_else_is_one_line_that_names_the_argument(images, message):
    with pytest.raises(DataError, match=message) as caught:
        as_pictures(images)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    for name in ("a.txt", "none.png"):
        with pytest.raises(UnreadablePictureError, match=f"{name} cannot be read as a picture"):
            as_pictures(tmp_path / name)


# ---- out


def test_pictures_of_each_type():
    uint8 = TENSOR[None]
    assert [np.asarray(image).tolist() for image in as_type(uint8, "pil")] == [PIXELS.tolist()]
    assert np.array_equal(as_type(uint8, "np"), PIXELS[None])
    floats = torch.rand(1, 3, 4, 4)
    assert as_type(floats, "pt") is floats


def test_an_unknown_type_is_one_line():
    with pytest.raises(ConfigError, match=r'output_type "pill" is unknown \(did you mean "pil"\?\); one of pil'):
        require_output_type("pill")
