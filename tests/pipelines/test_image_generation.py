"""ImageGenerationPipeline: conditions, counts, output types, seeds, wrong calls."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import make_generator, make_pipeline, save_pipeline
from wvq.data.pixels import to_uint8
from wvq.errors import ConfigError
from wvq.generator.base.sampling_settings import SamplingOptions
from wvq.pipelines.image_generation import CallOptions, ImageGenerationPipeline
from wvq.tokenizer.modeling import WassersteinVQModel

# ---- conditions and counts


def test_classes_by_name_and_id_are_the_same(pipe):
    by_name, by_id = (pipe(class_labels=labels, seed=0).codes for labels in (["cross", "square"], [1, 2]))
    assert torch.equal(by_name, by_id)
    for labels in (["cross", 2], torch.tensor([1, 2]), np.array([1, 2])):
        assert torch.equal(pipe(class_labels=labels, seed=0).codes, by_id)
    assert not torch.equal(by_name, pipe(class_labels=["square", "cross"], seed=0).codes)


@pytest.mark.parametrize("label", ["cross", "1", 1, 1.0, np.int64(1), torch.tensor([1]), torch.tensor(1), ("cross",)])
def test_a_single_class_needs_no_list(pipe, label):
    assert torch.equal(pipe(class_labels=label, seed=3).codes, pipe(class_labels=["cross"], seed=3).codes)


def test_whole_numbers_of_any_library_are_taken(pipe):
    codes = pipe(class_labels=1, num_images=2, seed=3, batch_size=1, top_k=4).codes
    for whole in (np.int64, np.int32, float, torch.tensor, np.array):
        call = {"class_labels": whole(1), "num_images": whole(2), "seed": whole(3), "batch_size": whole(1)}
        output = pipe(**call, top_k=whole(4))
        assert torch.equal(output.codes, codes)
        assert output.seeds == [3, 4]


def test_a_prompt_changes_the_picture(pipe):
    red, green, none = (pipe(prompt=prompt, seed=0).codes for prompt in ("red circle", "green cross", None))
    assert not torch.equal(red, green)
    assert not torch.equal(red, none)
    assert torch.equal(pipe(prompt=["red circle"], seed=0).codes, red)


def test_an_empty_prompt_is_no_prompt(pipe):
    assert torch.equal(pipe(prompt="", seed=0).codes, pipe(seed=0).codes)


def test_class_and_prompt_together(pipe):
    both = pipe(class_labels=["circle", "cross"], prompt=["red", "blue"], seed=0).codes
    assert torch.equal(both[1:], pipe(class_labels="cross", prompt="blue", seed=1).codes)
    assert not torch.equal(both, pipe(class_labels=["circle", "cross"], seed=0).codes)
    spread = pipe(class_labels=["circle", "cross"], prompt="red", seed=0).codes
    assert torch.equal(spread, pipe(class_labels=["circle", "cross"], prompt=["red", "red"], seed=0).codes)
    spread = pipe(class_labels="cross", prompt=["red", "blue"], seed=0).codes
    assert torch.equal(spread, pipe(class_labels=["cross"] * 2, prompt=["red", "blue"], seed=0).codes)


def test_num_images_serves_the_conditions_in_order(pipe):
    output = pipe(class_labels=["circle", "cross"], num_images=6, seed=10)
    assert len(output.images) == 6
    assert output.seeds == [10, 11, 12, 13, 14, 15]
    expected = pipe(class_labels=["circle"] * 3 + ["cross"] * 3, seed=10).codes
    assert torch.equal(output.codes, expected)


@pytest.mark.parametrize(("given", "count"), [({}, 1), ({"class_labels": [0, 1, 2]}, 3), ({"prompt": ["red"] * 4}, 4)])
def test_one_picture_a_condition_by_default(pipe, given, count):
    assert len(pipe(**given, seed=0).images) == count


def test_pictures_without_a_condition(class_pipe, tiny_tokenizer_dir):
    assert class_pipe(num_images=3, seed=0).codes.shape == (3, 4, 4)
    plain = make_pipeline(tiny_tokenizer_dir, class_names=[])
    assert plain.class_names == []
    assert plain(num_images=3, seed=0, guidance_scale=1.0).codes.shape == (3, 4, 4)


# ---- output


def test_output_types_show_the_same_pictures(pipe):
    pil, array, tensor = (pipe(class_labels=[0, 1], seed=0, output_type=t).images for t in ("pil", "np", "pt"))
    assert all(isinstance(image, Image.Image) and image.size == (16, 16) and image.mode == "RGB" for image in pil)
    assert (array.shape, array.dtype) == ((2, 16, 16, 3), np.uint8)
    assert (tensor.shape, tensor.dtype) == ((2, 3, 16, 16), torch.float32)
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    assert tensor.std() > 0.05
    assert np.array_equal(np.stack([np.asarray(image) for image in pil]), array)
    assert np.array_equal(to_uint8(tensor).permute(0, 2, 3, 1).numpy(), array)


def test_pictures_are_the_decoded_codes(pipe):
    output = pipe(class_labels=[0, 1], seed=0, output_type="pt")
    with torch.no_grad():
        torch.testing.assert_close(output.images, pipe.tokenizer.decode_codes(output.codes), atol=1e-5, rtol=0)


def test_output_can_be_trained_on(pipe):
    output = pipe(class_labels=[0, 1], seed=0, output_type="pt")
    pipe.tokenizer(output.images).quantizer_loss.backward()
    pipe.generator(output.codes).loss.backward()
    pipe.tokenizer.zero_grad()
    pipe.generator.zero_grad()


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.0, "top_k": 0}, {"temperature": 0.0}])
def test_a_batch_equals_singles(pipe, settings):
    labels, prompts = [0, 1, 2, 0, 1], ["red", "green cross", "", "blue", "yellow square"]
    together = pipe(class_labels=labels, prompt=prompts, seed=5, output_type="np", **settings)
    for i, (label, prompt) in enumerate(zip(labels, prompts, strict=True)):
        single = pipe(class_labels=label, prompt=prompt, seed=5 + i, output_type="np", **settings)
        assert torch.equal(single.codes[0], together.codes[i])
        assert np.abs(single.images[0].astype(int) - together.images[i]).max() <= 1


def test_batch_size_changes_nothing(pipe):
    whole, parts = (pipe(class_labels=[0, 1, 2], num_images=9, seed=0, batch_size=n) for n in (32, 4))
    assert torch.equal(whole.codes, parts.codes)
    assert whole.seeds == parts.seeds


def test_seeds(pipe):
    first, again, other, random = (pipe(class_labels=0, num_images=2, seed=s) for s in (1, 1, 7, None))
    assert torch.equal(first.codes, again.codes)
    assert not torch.equal(first.codes, other.codes)
    assert len(set(random.seeds)) == 2
    assert torch.equal(pipe(class_labels=0, seed=random.seeds[1]).codes[0], random.codes[1])


def test_settings_of_a_call_override_those_of_the_pipeline(pipe):
    default = pipe(class_labels=0, num_images=4, seed=0).codes
    same = pipe(class_labels=0, num_images=4, seed=0, guidance_scale=1.5, top_k=20, temperature=1.0, top_p=1.0).codes
    assert torch.equal(default, same)
    for change in ({"guidance_scale": 4.0}, {"temperature": 0.2}, {"top_k": 1}, {"top_p": 0.1}):
        assert not torch.equal(pipe(class_labels=0, num_images=4, seed=0, **change).codes, default), change
    assert torch.equal(pipe(class_labels=0, seed=0, top_k=1).codes, pipe(class_labels=0, seed=9, temperature=0.0).codes)


# ---- what callers of other libraries give


@pytest.mark.parametrize("number", [np.int64, np.int32, torch.tensor], ids=["int64", "int32", "tensor"])
def test_numbers_of_numpy_and_torch_are_numbers(number, pipe):
    output = pipe(class_labels=number(1), num_images=number(2), seed=number(3), batch_size=number(1), top_k=number(5))
    assert output.seeds == [3, 4]
    assert all(type(seed) is int for seed in output.seeds)
    assert torch.equal(output.codes, pipe(class_labels=1, num_images=2, seed=3, batch_size=1, top_k=5).codes)
    likelihood = pipe.log_likelihood(output.codes, class_labels=number(1), batch_size=number(2))
    assert torch.equal(likelihood, pipe.log_likelihood(output.codes, class_labels=1, batch_size=2))


def test_num_images_per_prompt_is_a_number_for_each_condition(pipe):
    expected = pipe(class_labels=["circle", "cross"], num_images=6, seed=10)
    output = pipe(class_labels=iter(["circle", "cross"]), num_images_per_prompt=3, seed=10)
    assert torch.equal(output.codes, expected.codes)
    assert output.seeds == expected.seeds


def test_a_generator_is_its_seed(pipe):
    generator = torch.Generator().manual_seed(7)
    torch.randn(3, generator=generator)  # its state plays no part
    output = pipe(class_labels=0, num_images=2, generator=generator)
    assert output.seeds == [7, 8]
    assert torch.equal(output.codes, pipe(class_labels=0, num_images=2, seed=7).codes)
    several = pipe(class_labels=0, num_images=2, generator=[torch.Generator().manual_seed(seed) for seed in (8, 3)])
    assert several.seeds == [8, 3]
    assert torch.equal(several.codes[0], output.codes[1])
    assert pipe(class_labels=0, generator=torch.Generator().manual_seed(-1)).seeds == [2**63 - 1]


def test_arguments_that_ask_for_what_is_done_anyway_are_accepted(pipe):
    given = {"height": 16, "width": np.int64(16), "num_inference_steps": None, "return_dict": True}
    assert torch.equal(pipe(class_labels=0, seed=0, **given).codes, pipe(class_labels=0, seed=0).codes)


# ---- wrong calls


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"class_labels": "crosss"}, r'class "crosss" is unknown \(did you mean "cross"\?\)'),
        ({"class_labels": [0, 3]}, "class id 3 is out of range: this model has 3 classes"),
        ({"class_labels": -1}, "class id -1 is out of range"),
        ({"class_labels": []}, "class_labels is an empty list"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": [3]}, "prompt must be a text or a list of texts"),
        ({"prompt": 3}, "prompt must be a text or a list of texts"),
        ({"class_labels": [1.5]}, "class_labels must be a name, an id or a list of them"),
        ({"class_labels": 1.5}, "class_labels must be a name, an id or a list of them"),
        ({"class_labels": [0, 1], "prompt": ["a", "b", "c"]}, "class_labels has 2 entries where the other .* has 3"),
        ({"class_labels": [0, 1, 2], "prompt": ["a", "b"]}, "prompt has 2 entries where the other .* has 3"),
        ({"class_labels": [0, 1], "num_images": 3}, r"num_images must be a positive multiple of the 2 condition"),
        ({"num_images": 0}, "num_images must be a positive multiple"),
        ({"num_images": -2}, "num_images must be a positive multiple"),
        ({"num_images": 2.5}, "num_images must be a positive multiple"),
        ({"class_labels": True}, "class_labels must be a name, an id or a list of them"),
        ({"output_type": "pill"}, r'output_type "pill" is unknown \(did you mean "pil"\?\); one of pil, np, pt'),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"guidance_scale": -1}, "guidance_scale must be at least 0"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_p": 0}, "top_p must be"),
        ({"temprature": 1.0}, r'a call of the pipeline takes no "temprature" \(did you mean "temperature"\?\)'),
        ({"num_image": 4}, r'a call of the pipeline takes no "num_image" \(did you mean "num_images"\?\)'),
        ({"promt": "red"}, r'a call of the pipeline takes no "promt" \(did you mean "prompt"\?\)'),
        ({"num_inference_steps": 50}, "num_inference_steps=50 is not possible here: codes are drawn one after the"),
        ({"negative_prompt": "blue"}, "negative_prompt='blue' is not possible here: guidance leads away from the null"),
        ({"return_dict": False}, "return_dict=False is not possible here"),
        ({"height": 512}, "height=512: this model draws 16 x 16 pixels; leave it out"),
        ({"width": "16"}, "width='16': this model draws 16 x 16 pixels"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be an integer of at least 1"),
        ({"num_images_per_prompt": 2, "num_images": 2}, "num_images and num_images_per_prompt are given; give one"),
        ({"generator": 3}, "generator must be a torch.Generator or a list of them, got 3"),
        ({"generator": [torch.Generator()] * 2}, "generator has 2 entries for 1 pictures; give one, or one a picture"),
        ({"generator": torch.Generator(), "seed": 0}, "seed and generator are given; give one of them"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"seed": torch.tensor(1.5)}, "seed must be an integer"),
        ({"seed": 2**64}, "seed must be an integer"),
        ({"seed": "0"}, "seed must be an integer"),
    ],
)
def test_a_wrong_call_is_one_line_that_names_the_argument(pipe, call, message):
    with pytest.raises(ConfigError, match=message) as caught:
        pipe(**call)
    assert len(str(caught.value).splitlines()) == 1


def test_every_signature_of_a_call_has_the_same_keywords():
    parameters = inspect.signature(ImageGenerationPipeline.__call__).parameters.values()
    keywords = {one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
    assert CallOptions.__annotations__.keys() - SamplingOptions.__annotations__ == keywords - {"output_type"}


def test_a_prompt_to_a_class_model_is_an_error(class_pipe):
    with pytest.raises(ConfigError, match="a prompt is given, but this model is not conditional on text"):
        class_pipe(prompt="red")


def test_a_class_to_a_text_model_is_an_error(tiny_tokenizer_dir, encoder_dir):
    with pytest.raises(ConfigError, match="class_labels are given, but this model has no classes"):
        make_pipeline(tiny_tokenizer_dir, encoder_dir, class_names=[])(class_labels=0)


def test_parts_that_do_not_fit_are_refused(pipe):
    with pytest.raises(ConfigError, match="the tokenizer has num_codes 32, the generator 16"):
        ImageGenerationPipeline(pipe.tokenizer, make_generator(num_codes=16))
    with pytest.raises(ConfigError, match=r"the tokenizer has grid \[4, 4\], the generator \[2, 8\]"):
        ImageGenerationPipeline(pipe.tokenizer, make_generator(grid=[2, 8]))
    with pytest.raises(ConfigError, match="a text_encoder is needed"):
        ImageGenerationPipeline(pipe.tokenizer, pipe.generator)


# ---- deterministic


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.0}, {"window": 3}], ids=["guided", "plain", "window"])
def test_deterministic_pictures_are_the_same_to_the_bit_in_any_batch(dtype, settings, tiny_tokenizer_dir, tmp_path):
    saved = save_pipeline(tiny_tokenizer_dir, tmp_path)
    pipe = ImageGenerationPipeline.from_pretrained(saved, dtype=dtype)
    call = {"class_labels": 1, "prompt": ["red circle", "", "blue"], "num_images": 18, "seed": 2, **settings}
    call |= {"deterministic": True, "output_type": "pt"}
    alone = pipe(batch_size=1, **call)
    for batch_size in (3, 8, 17):  # the last one is more than the rows of a group
        other = pipe(batch_size=batch_size, **call)
        assert torch.equal(other.codes, alone.codes), batch_size
        assert torch.equal(other.images, alone.images), batch_size
    single = pipe(class_labels=1, prompt="", seed=2 + 7, **settings, deterministic=True, output_type="pt")
    assert torch.equal(single.images[0], alone.images[7])


# ---- given codes


def test_a_region_is_filled_by_what_surrounds_it_on_all_sides(tiny_tokenizer_dir):
    tokenizer = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    generator = make_generator(target_positions=True, tokenizer_hash=tokenizer.codes_hash())
    pipe = ImageGenerationPipeline(tokenizer, generator)
    codes = pipe(num_images=2, seed=0).codes
    codes[:, 1:3, 1:3] = -1
    below = codes.clone()
    below[:, 3] = (below[:, 3] + 1) % 32
    settings = {"num_images": 2, "seed": 5, "temperature": 0}
    filled, other = (pipe(fixed_codes=fixed, passes=2, **settings).codes for fixed in (codes, below))
    assert torch.equal(torch.where(codes < 0, filled, codes), filled)
    assert not torch.equal(filled[:, 1:3, 1:3], other[:, 1:3, 1:3])
    filled, other = (pipe(fixed_codes=fixed, **settings).codes for fixed in (codes, below))  # row by row
    assert torch.equal(filled[:, 1:3, 1:3], other[:, 1:3, 1:3])
