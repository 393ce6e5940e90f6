"""Tests of the picture functions: modes, crops, the pixel range and its rounding, contact sheets."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from wvq.data.pixels import (
    center_crop,
    halve,
    largest_resize,
    random_crop,
    scaled_ten_crop,
    ten_crop,
    to_pil,
    to_pixels,
    to_rgb,
    to_uint8,
)
from wvq.data.sheets import image_grid
from wvq.errors import DataError


def noise(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def reopened(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    file.seek(0)
    return Image.open(file)


def colour(image):
    return to_rgb(image).getpixel((0, 0))


class TestToRGB:
    def test_sixteen_bit_grey_is_scaled_not_clipped(self):
        values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
        image = reopened(Image.fromarray(values), format="PNG")
        assert image.mode.startswith("I")
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
        assert to_rgb(image).mode == "RGB"

    def test_every_eight_bit_value_survives_sixteen_bits(self):
        values = np.arange(256, dtype=np.uint16)[None] * 257
        assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 1].tolist() == list(range(256))

    def test_alpha_is_composited_on_white(self):
        assert colour(Image.new("RGBA", (1, 1), (255, 0, 0, 0))) == (255, 255, 255)
        assert colour(Image.new("RGBA", (1, 1), (255, 0, 0, 255))) == (255, 0, 0)
        assert colour(Image.new("RGBA", (1, 1), (0, 0, 0, 128))) == (127, 127, 127)
        assert colour(Image.new("LA", (1, 1), (0, 0))) == (255, 255, 255)

    def test_transparent_palette_entry_becomes_white(self):
        image = Image.new("P", (2, 1), 0)
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        image = reopened(image, format="PNG", transparency=0)
        assert np.asarray(to_rgb(image)).tolist() == [[[255, 255, 255], [40, 50, 60]]]

    def test_other_modes(self):
        assert colour(Image.new("L", (1, 1), 7)) == (7, 7, 7)
        assert colour(Image.new("1", (1, 1), 1)) == (255, 255, 255)
        assert colour(Image.new("CMYK", (1, 1), (0, 0, 0, 0))) == (255, 255, 255)
        assert colour(Image.new("CMYK", (1, 1), (0, 255, 255, 0))) == (255, 0, 0)
        assert colour(Image.new("RGB", (1, 1), (1, 2, 3))) == (1, 2, 3)

    def test_exif_orientation_is_applied(self):
        image = Image.new("RGB", (4, 2), "white")
        image.putpixel((0, 0), (255, 0, 0))
        exif = Image.Exif()
        exif[0x0112] = 6  # stored lying on its side: turn it a quarter clockwise to show it
        upright = to_rgb(reopened(image, format="PNG", exif=exif))
        assert upright.size == (2, 4)
        assert upright.getpixel((1, 0)) == (255, 0, 0)

    @pytest.mark.parametrize("mode", ["F", "LAB"])
    def test_modes_without_a_range_are_refused(self, mode):
        with pytest.raises(DataError, match=f"mode {mode} are not supported"):
            to_rgb(Image.new(mode, (1, 1)))


class TestCrops:
    @pytest.mark.parametrize("size", [(32, 32), (100, 64), (64, 301), (5, 9), (33, 32), (1000, 17), (1, 1)])
    def test_sizes(self, size):
        rng = np.random.default_rng(0)
        assert center_crop(noise(*size), 32).size == (32, 32)
        for fraction in (1.0, 0.8, 0.3):
            for _ in range(5):
                assert random_crop(noise(*size), 32, fraction, rng).size == (32, 32)

    def test_a_picture_of_the_right_size_is_unchanged(self):
        image = noise(32, 32)
        assert center_crop(image, 32).tobytes() == image.tobytes()
        assert random_crop(image, 32, 1.0, np.random.default_rng(0)).tobytes() == image.tobytes()

    def test_the_centre_is_cut(self):
        image = Image.new("RGB", (64, 32), "white")
        image.paste((255, 0, 0), (16, 0, 48, 32))
        assert center_crop(image, 32).getcolors() == [(32 * 32, (255, 0, 0))]

    def test_halving_averages_blocks(self):
        values = np.zeros((8, 8, 3), dtype=np.uint8)
        values[::2, ::2] = 200
        assert np.unique(np.asarray(halve(Image.fromarray(values), 4))).tolist() == [50]
        assert halve(noise(70, 35), 8).size == (17, 8)
        assert halve(noise(15, 15), 8).size == (15, 15)

    def test_random_crop_is_seeded_and_moves(self):
        image = noise(80, 60)
        first = [random_crop(image, 32, 0.8, np.random.default_rng(seed)).tobytes() for seed in range(6)]
        again = [random_crop(image, 32, 0.8, np.random.default_rng(seed)).tobytes() for seed in range(6)]
        assert first == again
        assert len(set(first)) == 6

    def test_ten_crops_are_the_centre_the_corners_and_their_mirror_images(self):
        image = noise(90, 60)
        crops = [ten_crop(image, 32, 0.8, version) for version in range(10)]
        assert crops[0].tobytes() == center_crop(image, 32).tobytes()
        larger = np.asarray(center_crop(image, 40))
        corners = [larger[:32, :32], larger[:32, 8:], larger[8:, :32], larger[8:, 8:]]
        for crop, corner in zip(crops[1:5], corners, strict=True):
            assert np.array_equal(np.asarray(crop), corner)
        for crop, mirrored in zip(crops[:5], crops[5:], strict=True):
            assert np.array_equal(np.asarray(mirrored), np.asarray(crop)[:, ::-1])

    def test_scaled_ten_crops_are_those_of_each_scale(self):
        """With 256 pixels and scales 1.1 and 1.05: of 281 and 268 pixels, the centre 12 and 6 pixels from the edge."""
        image = noise(700, 600)
        crops = [np.asarray(scaled_ten_crop(image, 256, (1.1, 1.05), version)) for version in range(20)]
        for first, side, edge in ((0, 281, 12), (10, 268, 6)):
            square, end = np.asarray(center_crop(image, side)), side - 256
            for corner, (left, top) in enumerate([(edge, edge), (0, 0), (end, 0), (0, end), (end, end)]):
                assert np.array_equal(crops[first + corner], square[top : top + 256, left : left + 256])
                assert np.array_equal(crops[first + 5 + corner], crops[first + corner][:, ::-1])
        assert len({crop.tobytes() for crop in crops}) == 20

    def test_random_crop_keeps_at_least_the_fraction(self):
        # A left-to-right ramp shows which share of the width a crop has kept.
        ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3)))
        rng = np.random.default_rng(0)
        kept = []
        for _ in range(200):
            row = np.asarray(random_crop(ramp, 32, 0.8, rng))[0, :, 0].astype(float)
            kept.append((row[-1] - row[0]) / 255)
        assert 0.74 < min(kept) < 0.8
        assert max(kept) > 0.95
        assert largest_resize(32, 0.8) == (40, 40)


class TestOtherShapes:
    """Crops of a size that is not square."""

    @pytest.mark.parametrize("size", [[32, 48], [48, 32]])
    @pytest.mark.parametrize("shape", [(90, 40), (40, 90), (7, 5), (49, 33), (1, 1), (300, 200), (1000, 100)])
    def test_every_shape_gets_the_size(self, size, shape):
        crops = [center_crop(noise(*shape), size), random_crop(noise(*shape), size, 0.8, np.random.default_rng(0))]
        crops += [ten_crop(noise(*shape), size, 0.8, version) for version in range(10)]
        crops += [scaled_ten_crop(noise(*shape), size, (1.1, 1.05), version) for version in range(20)]
        assert {crop.size for crop in crops} == {(size[1], size[0])}

    def test_the_picture_just_covers_the_size(self):
        image = Image.new("RGB", (96, 32), "white")
        image.paste((255, 0, 0), (24, 0, 72, 32))
        assert center_crop(image, [32, 48]).getcolors() == [(32 * 48, (255, 0, 0))]
        tall = Image.new("RGB", (48, 128), "white")
        tall.paste((255, 0, 0), (0, 48, 48, 80))
        assert center_crop(tall, [32, 48]).getcolors() == [(32 * 48, (255, 0, 0))]
        image = noise(48, 32)
        assert center_crop(image, [32, 48]).tobytes() == image.tobytes()
        assert random_crop(image, [32, 48], 1.0, np.random.default_rng(0)).tobytes() == image.tobytes()

    def test_halving_stops_before_a_side_is_too_short(self):
        assert halve(noise(200, 128), [32, 48]).size == (50, 32)
        assert halve(noise(191, 128), [32, 48]).size == (95, 64)
        assert halve(noise(95, 64), [32, 48]).size == (95, 64)
        assert halve(noise(96, 64), [32, 48]).size == (48, 32)
        assert halve(noise(96, 64), [32, 48], inside=True).size == (48, 32)
        assert halve(noise(96, 20), [32, 48], inside=True).size == (48, 10)
        assert halve(noise(1000, 1), 32, inside=True).size == (62, 1)

    def test_ten_crops_have_the_corners_of_the_central_part(self):
        image = noise(150, 80)
        crops = [np.asarray(ten_crop(image, [32, 48], 0.8, version)) for version in range(10)]
        larger = np.asarray(center_crop(image, [40, 60]))
        corners = [larger[:32, :48], larger[:32, 12:], larger[8:, :48], larger[8:, 12:]]
        assert all(np.array_equal(crop, corner) for crop, corner in zip(crops[1:5], corners, strict=True))
        assert all(np.array_equal(crops[5 + i], crops[i][:, ::-1]) for i in range(5))
        scaled = np.asarray(scaled_ten_crop(image, [32, 48], (1.5, 1.25), 14))
        assert np.array_equal(scaled, np.asarray(center_crop(image, [40, 60]))[8:, 12:])

    def test_random_crops_keep_at_least_the_fraction_of_either_side(self):
        values = np.zeros((64, 96, 3), np.uint8)
        values[..., 0], values[..., 1] = np.linspace(0, 255, 96)[None], np.linspace(0, 255, 64)[:, None]
        rng = np.random.default_rng(0)
        kept = []
        for _ in range(200):
            crop = np.asarray(random_crop(Image.fromarray(values), [32, 48], 0.8, rng)).astype(float)
            kept.append(((crop[0, -1, 0] - crop[0, 0, 0]) / 255, (crop[-1, 0, 1] - crop[0, 0, 1]) / 255))
        for share in zip(*kept, strict=True):
            assert 0.74 < min(share) < 0.8
            assert max(share) > 0.95

    def test_the_largest_box(self):
        assert largest_resize([32, 48], 0.8) == (40, 60)
        assert largest_resize([33, 48], 0.8) == (42, 62)  # 33 / 0.8 rounded up, and 48 as many times, rounded up
        assert largest_resize([32, 48], 0.8, (1.5, 1.1)) == (48, 72)


class TestPixels:
    def test_range_and_shape(self):
        pixels = to_pixels(Image.new("RGB", (5, 3), (0, 255, 51)))
        assert pixels.shape == (3, 3, 5)
        assert pixels.dtype == torch.float32
        assert pixels.is_contiguous()
        torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))

    def test_every_value_comes_back(self):
        values = torch.arange(256, dtype=torch.float32) / 127.5 - 1
        assert to_uint8(values).tolist() == list(range(256))
        image = noise(16, 16)
        assert to_pil(to_pixels(image))[0].tobytes() == image.tobytes()

    def test_rounds_half_up_and_clamps(self):
        halves = torch.tensor([0.5, 1.5, 2.5, 3.5], dtype=torch.float64) / 127.5 - 1
        assert to_uint8(halves + 1e-7).tolist() == [1, 2, 3, 4]
        assert to_uint8(torch.tensor([-5.0, 1.004, 7.0, float("inf"), -float("inf")])).tolist() == [0, 255, 255, 255, 0]
        # 127.5 lies exactly between two values.
        assert to_uint8(torch.zeros(1)).tolist() == [128]

    def test_half_precision_and_gradients_are_taken(self):
        assert to_uint8(torch.tensor([-1.0, 1.0], dtype=torch.bfloat16)).tolist() == [0, 255]
        assert to_uint8(torch.ones(1, requires_grad=True)).tolist() == [255]

    def test_bad_pixels(self):
        with pytest.raises(DataError, match="floating point"):
            to_uint8(torch.zeros(3, dtype=torch.uint8))
        with pytest.raises(DataError, match="NaN"):
            to_uint8(torch.tensor([0.0, float("nan")]))
        with pytest.raises(DataError, match=r"\(B, 3, H, W\), not \(1, 4, 4\)"):
            to_pil(torch.zeros(1, 4, 4))

    def test_to_pil_takes_a_batch(self):
        images = to_pil(torch.stack([torch.full((3, 4, 6), -1.0), torch.full((3, 4, 6), 1.0)]))
        assert [image.size for image in images] == [(6, 4)] * 2
        assert [image.getpixel((0, 0)) for image in images] == [(0, 0, 0), (255, 255, 255)]


class TestImageGrid:
    def test_layout(self):
        images = [Image.new("RGB", (4, 4), name) for name in ("red", "green", "blue")]
        sheet = image_grid(images, columns=2, scale=3, padding=1)
        assert sheet.size == (2 * 14, 2 * 14)
        assert sheet.getpixel((1, 1)) == (255, 0, 0)
        assert sheet.getpixel((15 + 11, 12)) == (0, 128, 0)
        assert sheet.getpixel((1, 15)) == (0, 0, 255)
        assert sheet.getpixel((15, 15)) == (255, 255, 255)
        assert sheet.getpixel((0, 0)) == (255, 255, 255)

    def test_pixels_and_fewer_pictures_than_columns(self):
        sheet = image_grid(torch.zeros(2, 3, 4, 4), columns=8, padding=0)
        assert sheet.size == (8, 4)
        assert sheet.getpixel((0, 0)) == (128, 128, 128)

    def test_captions_are_drawn_below_and_cut_to_the_width(self):
        images = [Image.new("RGB", (32, 32), "red")] * 2
        plain = image_grid(images, columns=1)
        captioned = image_grid(images, columns=1, captions=["é", "a caption far wider than the picture above it"])
        assert captioned.width == plain.width
        assert captioned.height > plain.height
        below = np.asarray(captioned)[34 : captioned.height // 2]
        assert below.min() < 128
        assert np.asarray(captioned)[:, -2:].min() == 255

    def test_bad_arguments(self):
        image = Image.new("RGB", (2, 2))
        with pytest.raises(DataError, match="images is empty"):
            image_grid([], columns=2)
        with pytest.raises(DataError, match="columns and scale"):
            image_grid([image], columns=0)
        with pytest.raises(DataError, match="2 captions for 1 pictures"):
            image_grid([image], columns=1, captions=["a", "b"])
