"""ImageProcessor: any picture in, tensors out and back, saved beside the model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from wvq.data.pixels import center_crop, to_pixels
from wvq.errors import CheckpointError, ConfigError, DataError
from wvq.tokenizer.processing import ImageProcessor


def picture(width=20, height=16, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_one_picture_or_several_of_any_size_and_mode():
    processor = ImageProcessor(size=16)
    assert processor(picture()).pixel_values.shape == (1, 3, 16, 16)
    batch = processor([picture(), picture(50, 70, "L"), picture(16, 16, "RGBA"), picture(9, 8, "P")]).pixel_values
    assert batch.shape == (4, 3, 16, 16)
    assert batch.dtype == torch.float32
    assert -1 <= batch.min() < batch.max() <= 1


def test_is_the_centre_crop_of_the_data():
    image = picture(50, 40)
    assert torch.equal(ImageProcessor(size=16)(image).pixel_values[0], to_pixels(center_crop(image, 16)))


def test_pictures_of_the_right_size_come_back_exactly():
    images = [picture(16, 16, seed=seed) for seed in range(3)]
    processor = ImageProcessor(size=16)
    back = processor.postprocess(processor(images).pixel_values)
    assert [image.tobytes() for image in back] == [image.tobytes() for image in images]


def test_numpy_on_request():
    pixels = ImageProcessor(size=16)(picture(), return_tensors="np").pixel_values
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (1, 3, 16, 16)


def test_arrays_tensors_and_files_are_taken_as_pictures_are(tmp_path):
    image = picture(50, 40)
    image.save(tmp_path / "a.png")
    pixels = np.array(image)
    processor = ImageProcessor(size=16)
    expected = processor(image).pixel_values[0]
    given = [image, pixels, torch.from_numpy(pixels).permute(2, 0, 1) / 255, tmp_path / "a.png", pixels[None] / 255]
    assert all(torch.equal(one, expected) for one in processor(images=given).pixel_values)


@pytest.mark.parametrize("kind", ["tf", "jax", "torch"])
def test_another_kind_of_tensors_is_one_line(kind):
    with pytest.raises(ConfigError, match=f"return_tensors must be one of pt, np, or null, got '{kind}'"):
        ImageProcessor(size=16)(picture(), return_tensors=kind)


def test_pictures_come_back_in_the_types_of_a_pipeline():
    processor = ImageProcessor(size=16)
    images = [picture(16, 16, seed=seed) for seed in range(2)]
    decoded = processor(images).pixel_values * 1.5
    array, tensor = (processor.postprocess(decoded, output_type=kind) for kind in ("np", "pt"))
    assert (array.shape, array.dtype) == ((2, 16, 16, 3), np.uint8)
    assert torch.equal(tensor, decoded.clamp(-1, 1))
    assert [image.tobytes() for image in processor.postprocess(decoded)] == [one.tobytes() for one in array]
    assert processor.postprocess(decoded[0], "np").shape == (1, 16, 16, 3)
    with pytest.raises(ConfigError, match='output_type "latent" is unknown'):
        processor.postprocess(decoded, "latent")
    for wrong, message in ((decoded[:, :1], "pixels must have shape"), (decoded * torch.nan, "pixels contain NaN")):
        with pytest.raises(DataError, match=message):
            processor.postprocess(wrong, "pt")


def test_save_and_load(tmp_path):
    ImageProcessor(size=24).save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    assert ImageProcessor.from_pretrained(tmp_path).size == 24


def test_fields_and_options_of_loading(tmp_path):
    ImageProcessor(size=24).save_pretrained(tmp_path / "tokenizer")
    hub = {"revision": "main", "token": None, "trust_remote_code": False, "use_fast": True}
    assert ImageProcessor.from_pretrained(tmp_path, subfolder="tokenizer", **hub).size == 24
    changed = ImageProcessor.from_pretrained(tmp_path / "tokenizer", size=np.int64(64), do_resize=True)
    assert changed(picture()).pixel_values.shape == (1, 3, 64, 64)
    changed.save_pretrained(tmp_path / "again")
    assert ImageProcessor.from_pretrained(tmp_path / "again").size == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"siz": 3}, r'ImageProcessor.from_pretrained takes no "siz" \(did you mean "size"\?\)'),
        ({"size": "big"}, r"ImageProcessor.size must be an integer of at least 1, or .*, got 'big'"),
        ({"do_resize": False}, "do_resize=False is not possible here: pictures are resized and cropped to the size"),
        ({"image_mean": [0.5]}, "image_mean=.* is not possible here"),
        ({"trust_remote_code": True}, "trust_remote_code=True is not possible here"),
    ],
)
def test_a_wrong_option_is_one_line_that_blames_no_file(options, message, tmp_path):
    ImageProcessor(size=24).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        ImageProcessor.from_pretrained(tmp_path, **options)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("values", [{"size": "x"}, {"sise": 3}, {"do_resize": False}, {"self": 3}])
def test_a_wrong_value_in_the_file_names_the_file(values, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json holds an impossible value"):
        ImageProcessor.from_pretrained(tmp_path, size=16)


def test_another_field_is_an_error():
    with pytest.raises(ConfigError, match=r'ImageProcessor takes no "sise" \(did you mean "size"\?\)'):
        ImageProcessor(sise=3)


@pytest.mark.parametrize("size", [0, -1, 2.5, "0", True])
def test_a_bad_size_is_an_error(size):
    with pytest.raises(ConfigError, match=r"ImageProcessor.size must be an integer of at least 1"):
        ImageProcessor(size=size)
