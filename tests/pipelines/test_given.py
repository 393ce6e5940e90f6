"""Pictures that a call keeps in part: which codes are kept, for every layout; inpainting, variations, previews."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import LAYOUTS, make_layout_pipeline, make_tokenizer
from wvq import ImageProcessor
from wvq.errors import ConfigError, DataError
from wvq.generator.base.filters import FREE
from wvq.pipelines.given import given_pictures

LEFT = np.zeros((16, 16), dtype=np.uint8)
LEFT[:, :8] = 255  # the left half is drawn anew
SIZES = (1, 4, 16)


def picture(seed=0, size=(16, 16)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def encoded(tokenizer, image):
    with torch.no_grad():
        return tokenizer.encode(ImageProcessor.of_tokenizer(tokenizer.config)(image).pixel_values).codes


# ---- which codes are kept


@pytest.mark.parametrize("kind", LAYOUTS)
def test_codes_outside_of_the_mask_are_those_of_the_picture(kind):
    tokenizer = make_tokenizer(**LAYOUTS[kind])
    codes = given_pictures(tokenizer, 1, picture(), LEFT).codes
    of_picture = encoded(tokenizer, picture())
    assert codes.shape == of_picture.shape
    kept = codes != FREE
    assert torch.equal(codes[kept], of_picture[kept])
    right = [columns >= 2 for columns in range(4)]
    if kind != "multi-scale":
        for row in kept[0]:
            for column in range(4):
                assert bool(row[column].all()) == bool(row[column].any()) == right[column]
        return
    first, second, third = kept[0].split(SIZES)
    assert first.tolist() == [True]  # no more than half of the pixels of the only code are white
    assert second.tolist() == [False, True] * 2
    assert third.tolist() == right * 4


def test_a_code_is_drawn_where_more_than_half_of_its_pixels_are_white():
    tokenizer = make_tokenizer()
    mask = np.zeros((16, 16))
    mask[:2, :8] = 1  # half of the pixels, 4 x 4, of the first code and of the next one
    mask[2, 0] = 1  # and one more of the first
    drawn = given_pictures(tokenizer, 1, picture(), mask).codes == FREE
    assert drawn.flatten().nonzero().flatten().tolist() == [0]
    flags = given_pictures(tokenizer, 1, picture(), torch.from_numpy(mask > 0)).codes == FREE
    assert torch.equal(flags, drawn)


def test_the_first_scales_are_kept_whatever_the_mask():
    tokenizer = make_tokenizer(scales=[1, 2, 4])
    of_picture = encoded(tokenizer, picture())
    codes = given_pictures(tokenizer, 1, picture(), keep_scales=2).codes
    assert torch.equal(codes[:, :5], of_picture[:, :5])
    assert (codes[:, 5:] == FREE).all()
    codes = given_pictures(tokenizer, 1, picture(), LEFT, keep_scales=1).codes
    assert torch.equal(codes[:, :1], of_picture[:, :1])
    assert torch.equal(codes[:, 1:], given_pictures(tokenizer, 1, picture(), LEFT).codes[:, 1:])


def test_a_mask_is_cropped_and_padded_as_its_picture():
    white_right = np.zeros((16, 32), dtype=np.uint8)
    white_right[:, 20:] = 255
    drawn = given_pictures(make_tokenizer(), 1, picture(0, (16, 32)), white_right).codes == FREE
    assert drawn[0].tolist() == [[False, False, False, True]] * 4  # of the middle 16 columns the last 4
    drawn = given_pictures(make_tokenizer(fit="pad"), 1, picture(0, (16, 32)), white_right).codes == FREE
    assert drawn[0].tolist() == [[False, False, False, True]] * 4  # 20 of 32 columns lie before; rows as the edge


def test_maps_that_are_not_square_follow_the_mask():
    mask = np.zeros((24, 16), dtype=np.uint8)
    mask[12:] = 255  # the lower half
    codes = given_pictures(make_tokenizer(image_size=[24, 16], scales=[1, 2, 4]), 1, picture(0, (24, 16)), mask).codes
    first, second, third = (codes == FREE)[0].split((2, 6, 24))  # 2 x 1, 3 x 2 and 6 x 4
    assert first.tolist() == [False, True]
    assert second.tolist() == [False] * 4 + [True] * 2
    assert third.tolist() == [False] * 12 + [True] * 12


def test_one_for_all_or_one_a_picture():
    tokenizer = make_tokenizer()
    images, masks = [picture(seed) for seed in range(3)], [LEFT, 255 - LEFT, LEFT]
    each = given_pictures(tokenizer, 3, images, masks)
    for index in range(3):
        single = given_pictures(tokenizer, 1, images[index], masks[index])
        assert torch.equal(single.codes[0], each.codes[index])
        assert single.sources[0] == each.sources[index]
    one_mask = given_pictures(tokenizer, 3, np.stack([np.asarray(image) for image in images]), LEFT)
    assert torch.equal(one_mask.codes[[0, 2]], each.codes[[0, 2]])
    one_image = given_pictures(tokenizer, 3, images[0], masks)
    assert torch.equal(one_image.codes[0], each.codes[0])
    assert one_image.codes.shape == (3, 4, 4)


def test_pictures_are_known_by_their_pixels_and_shown_by_their_files(tmp_path):
    tokenizer = make_tokenizer(scales=[1, 2, 4])
    picture().save(tmp_path / "a.png")
    Image.fromarray(LEFT).save(tmp_path / "mask.png")
    memory = given_pictures(tokenizer, 2, picture(), LEFT, 1)
    files = given_pictures(tokenizer, 2, tmp_path / "a.png", str(tmp_path / "mask.png"), 1)
    assert torch.equal(files.codes, memory.codes)
    assert files.identity == memory.identity
    shown = {"image": str(tmp_path / "a.png"), "mask_image": str(tmp_path / "mask.png"), "keep_scales": 1}
    assert files.sources == [shown] * 2
    assert memory.sources[0]["image"] == memory.identity["image"][0]
    assert given_pictures(tokenizer, 2, picture(1), LEFT, 1).identity["image"] != memory.identity["image"]
    assert (
        given_pictures(tokenizer, 2, picture(), 255 - LEFT, 1).identity["mask_image"] != memory.identity["mask_image"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_image": LEFT}, "mask_image is given without image, the picture that is kept in part; give both"),
        ({"keep_scales": 1}, "keep_scales is given without image"),
        ({"image": picture()}, "image is given without what is kept of it; give mask_image, .*, or keep_scales"),
        (
            {"image": [picture()] * 3, "mask_image": LEFT},
            "image has 3 pictures for 2 to draw; give one for all, or one",
        ),
        ({"image": picture(), "mask_image": [LEFT] * 3}, "mask_image has 3 pictures for 2 to draw"),
        (
            {"image": picture(), "mask_image": LEFT[:8]},
            "mask_image has 8 x 16 pixels and its image 16 x 16; give a mask of its picture's size",
        ),
        ({"image": picture(), "mask_image": 0 * LEFT}, "mask_image leaves nothing to draw: a code is drawn anew where"),
        ({"image": picture(), "keep_scales": 0}, "keep_scales must be an integer from 1 to 2 of this model's 3 scales"),
        ({"image": picture(), "keep_scales": 3}, "keep_scales must be an integer from 1 to 2 of this model's 3 scales"),
        ({"image": picture(), "keep_scales": "2"}, "keep_scales must be an integer"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments, message, scale_pipe):
    with pytest.raises(ConfigError, match=message) as caught:
        scale_pipe(num_images=2, **arguments)
    assert len(str(caught.value).splitlines()) == 1


def test_of_one_scale_none_is_kept():
    with pytest.raises(ConfigError, match=r"^keep_scales needs several scales, and this model has one: leave it out$"):
        given_pictures(make_tokenizer(scales=[4]), 1, picture(), keep_scales=1)


def test_what_other_layouts_do_not_have_is_one_line(class_pipe):
    with pytest.raises(
        ConfigError, match="keep_scales needs a generator that draws scale by scale, which this one does"
    ):
        class_pipe(image=picture(), keep_scales=1)
    with pytest.raises(ConfigError, match=r"give mask_image, white where it is drawn anew$"):
        class_pipe(image=picture())
    with pytest.raises(ConfigError, match="previews need a generator that draws scale by scale"):
        class_pipe(callback=lambda scale, images: None)
    with pytest.raises(ConfigError, match="fixed_codes and image are given; give one of them"):
        class_pipe(image=picture(), mask_image=LEFT, fixed_codes=torch.zeros(4, 4, dtype=torch.int64))


def test_the_argument_that_is_no_picture_is_named(class_pipe):
    with pytest.raises(DataError, match=r"^mask_image: floats must be in \[0, 1\], got 0 to 255"):
        class_pipe(image=picture(), mask_image=LEFT.astype(float))
    with pytest.raises(DataError, match=r"^image: .*nowhere\.png cannot be read as a picture"):
        class_pipe(image="nowhere.png", mask_image=LEFT)


# ---- through a pipeline


def call(pipe, **changes):
    return pipe(**{"class_labels": [0, 1], "num_images": 4, "seed": 3} | changes)


@pytest.fixture(params=LAYOUTS)
def any_pipe(request):
    return make_layout_pipeline(request.param)


def test_inpainting_keeps_the_codes_outside_and_draws_those_inside(any_pipe):
    pipe = any_pipe
    given = given_pictures(pipe.tokenizer, 4, picture(), LEFT).codes
    output = call(pipe, image=picture(), mask_image=LEFT, output_type="pt")
    assert torch.equal(output.codes[given != FREE], given[given != FREE])
    assert len({tuple(codes[given[0] == FREE].tolist()) for codes in output.codes}) == 4
    with torch.no_grad():
        torch.testing.assert_close(output.images, pipe.tokenizer.decode_codes(output.codes), atol=1e-5, rtol=0)
    assert torch.equal(call(pipe, fixed_codes=given).codes, output.codes)
    parts = call(pipe, image=picture(), mask_image=LEFT, batch_size=3)
    assert torch.equal(parts.codes, output.codes)
    same = [call(pipe, image=picture(), mask_image=LEFT, deterministic=True, batch_size=size).codes for size in (1, 4)]
    assert torch.equal(*same)


def test_another_class_edits_the_region(scale_pipe):
    edits = [
        call(scale_pipe, class_labels=label, image=picture(), mask_image=LEFT).codes for label in ("cross", "square")
    ]
    assert not torch.equal(*edits)
    kept = given_pictures(scale_pipe.tokenizer, 4, picture(), LEFT).codes != FREE
    assert torch.equal(edits[0][kept], edits[1][kept])


def test_variations_agree_with_the_picture_at_low_resolution(scale_pipe):
    output = call(scale_pipe, image=picture(), keep_scales=2)
    of_picture = encoded(scale_pipe.tokenizer, picture())
    assert torch.equal(output.codes[:, :5], of_picture[:, :5].expand(4, -1))
    assert len({tuple(codes[5:].tolist()) for codes in output.codes}) == 4


def test_a_whole_mask_is_a_plain_call(scale_pipe):
    whole = call(scale_pipe, image=picture(), mask_image=np.full((16, 16), 255, dtype=np.uint8))
    assert torch.equal(whole.codes, call(scale_pipe).codes)


def test_codes_of_one_picture_are_given_for_all(scale_pipe):
    one = torch.full((21,), FREE)
    one[:5] = torch.arange(5)
    output = call(scale_pipe, fixed_codes=one)
    assert torch.equal(output.codes[:, :5], torch.arange(5).expand(4, -1))
    assert torch.equal(output.codes, call(scale_pipe, fixed_codes=one.expand(4, -1)).codes)
    with pytest.raises(ConfigError, match=r"fixed codes must be integers \(4, 21\), got torch.int64 \(4, 4\)"):
        call(scale_pipe, fixed_codes=torch.zeros(4, 4, dtype=torch.int64))


# ---- previews


def test_previews_are_the_pictures_of_the_scales_so_far(scale_pipe):
    shown = []
    output = call(scale_pipe, callback=lambda scale, images: shown.append((scale, images)), batch_size=3)
    assert [scale for scale, _ in shown] == [0, 1, 2] * 2
    assert [len(images) for _, images in shown] == [3, 3, 3, 1, 1, 1]
    with torch.no_grad():
        partial = scale_pipe.tokenizer.decode_scales(output.codes)  # N S C H W
    for index, (scale, images) in enumerate(shown):
        expected = ImageProcessor.postprocess(partial[:3, scale] if index < 3 else partial[3:, scale], "np")
        pixels = np.stack([np.asarray(image) for image in images])
        assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert np.array_equal(np.asarray(shown[2][1][0]), np.asarray(output.images[0]))
    assert torch.equal(call(scale_pipe).codes, output.codes)


def test_previews_of_groups_of_fixed_rows_are_refused(scale_pipe):
    with pytest.raises(
        ConfigError, match="previews show a batch while it is drawn, and deterministic draws groups of it"
    ):
        scale_pipe(callback=lambda scale, images: None, deterministic=True)


def test_settings_that_the_generator_cannot_follow_are_one_line(scale_pipe):
    with pytest.raises(ConfigError, match="window is for generators of one code a pass; this one draws a scale a pass"):
        scale_pipe(window=4)


# ---- likelihood, and what one pipeline does as the other


def test_likelihood_of_pictures(any_pipe):
    codes = encoded(any_pipe.tokenizer, [picture(0), picture(1)])
    both = any_pipe.log_likelihood(codes, class_labels=["circle", "cross"])
    assert both.shape == (2,)
    torch.testing.assert_close(any_pipe.log_likelihood(codes[1:], class_labels="cross"), both[1:])
    torch.testing.assert_close(any_pipe.log_likelihood(codes.flatten(1), class_labels=["circle", "cross"]), both)
    with pytest.raises(ConfigError, match="codes must hold"):
        any_pipe.log_likelihood(codes[:, :1])


def test_a_batch_equals_singles(any_pipe):
    together = any_pipe(class_labels=[0, 1, 2], seed=5)
    for index in range(3):
        assert torch.equal(any_pipe(class_labels=index, seed=5 + index).codes[0], together.codes[index])
