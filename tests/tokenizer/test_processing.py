"""ImageProcessor: any picture in, tensors out and back, saved beside the model."""

import numpy as np
import pytest
import torch
from PIL import Image

from wvq.data.pixels import center_crop, to_pixels
from wvq.errors import ConfigError
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


def test_save_and_load(tmp_path):
    ImageProcessor(size=24).save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    assert ImageProcessor.from_pretrained(tmp_path).size == 24


@pytest.mark.parametrize("size", [0, -1, 2.5, "16", True])
def test_a_bad_size_is_an_error(size):
    with pytest.raises(ConfigError, match=r"ImageProcessor.size must be an integer of at least 1"):
        ImageProcessor(size=size)
