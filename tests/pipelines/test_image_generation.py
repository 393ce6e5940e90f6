"""ImageGenerationPipeline: conditions, counts, output types, seeds, folders, the Hub, damaged parts, the model card."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from tests.tiny import CLASS_NAMES, make_generator, make_pipeline, save_text_encoder
from wvq import ImageProcessor
from wvq.errors import CheckpointError, ConfigError, DownloadError
from wvq.generator.sampling import SamplingSettings
from wvq.images import to_uint8
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.model_card import model_card
from wvq.tokenizer.modeling import WassersteinVQModel


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp("text_encoder"))


@pytest.fixture(scope="module")
def pipe(tiny_tokenizer_dir, encoder_dir):
    """Conditional on class and text."""
    return make_pipeline(tiny_tokenizer_dir, encoder_dir)


@pytest.fixture(scope="module")
def class_pipe(tiny_tokenizer_dir):
    return make_pipeline(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    """Folder of the saved pipeline; do not write into it."""
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of the saved pipeline to damage."""
    shutil.copytree(saved, tmp_path / "pipeline")
    return tmp_path / "pipeline"


# ---- conditions and counts


def test_classes_by_name_and_id_are_the_same(pipe):
    by_name, by_id = (pipe(class_labels=labels, seed=0).codes for labels in (["cross", "square"], [1, 2]))
    assert torch.equal(by_name, by_id)
    for labels in (["cross", 2], torch.tensor([1, 2]), np.array([1, 2])):
        assert torch.equal(pipe(class_labels=labels, seed=0).codes, by_id)
    assert not torch.equal(by_name, pipe(class_labels=["square", "cross"], seed=0).codes)


@pytest.mark.parametrize("label", ["cross", 1, np.int64(1), torch.tensor([1]), ("cross",)])
def test_a_single_class_needs_no_list(pipe, label):
    assert torch.equal(pipe(class_labels=label, seed=3).codes, pipe(class_labels=["cross"], seed=3).codes)


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
        ({"num_images": 2.0}, "num_images must be a positive multiple"),
        ({"output_type": "pill"}, r'output_type "pill" is unknown \(did you mean "pil"\?\); one of pil, np, pt'),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"guidance_scale": -1}, "guidance_scale must be at least 0"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_p": 0}, "top_p must be"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"seed": "0"}, "seed must be an integer"),
    ],
)
def test_a_wrong_call_is_one_line_that_names_the_argument(pipe, call, message):
    with pytest.raises(ConfigError, match=message) as caught:
        pipe(**call)
    assert len(str(caught.value).splitlines()) == 1


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


# ---- folders


def test_a_loaded_pipeline_draws_the_same_pictures(pipe, saved):
    again = ImageGenerationPipeline.from_pretrained(saved)
    assert again.class_names == CLASS_NAMES
    assert again.sampling == pipe.sampling == SamplingSettings(guidance_scale=1.5, top_k=20)
    call = {"class_labels": [0, 1, 2], "prompt": "red circle", "num_images": 6, "seed": 0, "output_type": "np"}
    ours, theirs = pipe(**call), again(**call)
    assert torch.equal(ours.codes, theirs.codes)
    assert np.array_equal(ours.images, theirs.images)


def test_a_pipeline_without_text_has_no_text_encoder(class_pipe, tmp_path):
    class_pipe.save_pretrained(tmp_path / "p")
    assert not (tmp_path / "p" / "text_encoder").exists()
    again = ImageGenerationPipeline.from_pretrained(tmp_path / "p")
    assert again.text_encoder is None
    assert torch.equal(again(class_labels=1, seed=0).codes, class_pipe(class_labels=1, seed=0).codes)


def test_the_folder_holds_loadable_parts_and_no_leftovers(saved):
    names = {path.name for path in saved.iterdir()}
    assert names == {"tokenizer", "generator", "text_encoder", "README.md", "model_index.json"}
    assert not list(saved.rglob("*.bin"))
    assert not list(saved.rglob("*.partial"))
    WassersteinVQModel.from_pretrained(saved / "tokenizer")
    assert ImageProcessor.from_pretrained(saved / "tokenizer").size == 16
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "ImageGenerationPipeline"
    assert index["sampling"] == {"guidance_scale": 1.5, "temperature": 1.0, "top_k": 20, "top_p": 1.0}


def test_saving_again_keeps_equal_parts_and_refuses_others(pipe, copied, tiny_tokenizer_dir, encoder_dir):
    before = (copied / "generator" / "model.safetensors").stat().st_mtime_ns
    pipe.save_pretrained(copied)
    assert (copied / "generator" / "model.safetensors").stat().st_mtime_ns == before
    other = make_pipeline(tiny_tokenizer_dir, encoder_dir, seed=1)
    with pytest.raises(CheckpointError, match="generator already holds another generator; choose another folder"):
        other.save_pretrained(copied)


def test_dtype(saved):
    half = ImageGenerationPipeline.from_pretrained(saved, dtype=torch.bfloat16)
    assert half.generator.dtype == torch.bfloat16
    images = half(class_labels=[0, 1], prompt="red", seed=0, output_type="pt").images
    assert images.dtype == torch.float32
    assert images.isfinite().all()


@pytest.mark.parametrize("part", ["tokenizer", "generator", "text_encoder", "model_index.json"])
def test_a_missing_part_is_named(part, copied):
    path = copied / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=rf"pipeline.*{part}.* is missing"):
        ImageGenerationPipeline.from_pretrained(copied)


@pytest.mark.parametrize("part", ["tokenizer", "generator", "text_encoder"])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kind", ["missing", "cut", "empty", "foreign"])
def test_a_damaged_part_is_one_line_that_names_it(part, file, kind, copied):
    path = copied / part / file
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        other = {"tokenizer": "generator", "generator": "tokenizer", "text_encoder": "tokenizer"}[part]
        shutil.copy(copied / other / file, path)
    with pytest.raises(CheckpointError, match=part) as caught:
        ImageGenerationPipeline.from_pretrained(copied)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "does not describe an ImageGenerationPipeline"),
        ('{"_class_name": "DiTPipeline"}', "does not describe an ImageGenerationPipeline"),
        ({"sampling": {"guidance": 2.0}}, r'no setting "guidance" \(did you mean "guidance_scale"\?\)'),
        ({"sampling": {"temperature": "hot"}}, "temperature must be"),
        ({"sampling": [1]}, "sampling"),
    ],
)
def test_a_damaged_index_is_one_line_that_names_the_file(content, message, copied):
    if isinstance(content, dict):
        content = json.dumps(json.loads((copied / "model_index.json").read_text()) | content)
    (copied / "model_index.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"model_index\.json.*{message}") as caught:
        ImageGenerationPipeline.from_pretrained(copied)
    assert len(str(caught.value).splitlines()) == 1


def swap_tokenizer(folder) -> None:
    tokenizer = WassersteinVQModel.from_pretrained(folder / "tokenizer")
    with torch.no_grad():
        next(tokenizer.decoder.parameters()).add_(0.1)
    tokenizer.save_pretrained(folder / "tokenizer")


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}])
def test_another_tokenizer_is_refused(options, copied):
    swap_tokenizer(copied)
    with pytest.raises(CheckpointError, match="the tokenizer is not the one that the generator was trained with"):
        ImageGenerationPipeline.from_pretrained(copied, **options)


def test_another_tokenizer_can_be_allowed(copied, pipe):
    swap_tokenizer(copied)
    again = ImageGenerationPipeline.from_pretrained(copied, ignore_tokenizer_mismatch=True)
    ours, theirs = (p(class_labels=0, seed=0, output_type="pt") for p in (pipe, again))
    assert torch.equal(ours.codes, theirs.codes)
    assert not torch.equal(ours.images, theirs.images)


# ---- Hub


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_path_that_does_not_exist_is_no_hub_id(path):
    with pytest.raises(CheckpointError, match="no such pipeline folder"):
        ImageGenerationPipeline.from_pretrained(path)


def test_a_file_is_no_pipeline(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file, not a pipeline folder"):
        ImageGenerationPipeline.from_pretrained(tmp_path / "file")


def test_a_hub_id_without_network_is_one_line():
    with pytest.raises(DownloadError, match='"someone/pipeline" is no local folder and could not be fetched') as caught:
        ImageGenerationPipeline.from_pretrained("someone/pipeline")
    assert len(str(caught.value).splitlines()) == 1


def test_a_hub_id_is_loaded_from_its_snapshot(saved, pipe, monkeypatch):
    asked = {}

    def snapshot_download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    again = ImageGenerationPipeline.from_pretrained("someone/pipeline", revision="v1")
    assert (asked["repo_id"], asked["revision"]) == ("someone/pipeline", "v1")
    assert torch.equal(again(class_labels=0, seed=0).codes, pipe(class_labels=0, seed=0).codes)
    needed = {path.suffix for path in saved.rglob("*") if path.is_file()}
    allowed = {pattern.removeprefix("*") for pattern in asked["allow_patterns"]}
    assert needed <= allowed
    assert not allowed & {".bin", ".pt", ".pkl", ".pickle"}


def test_push_without_network_is_one_line(class_pipe):
    with pytest.raises(DownloadError, match='"someone/pipeline" could not be pushed to the Hub') as caught:
        class_pipe.push_to_hub("someone/pipeline")
    assert len(str(caught.value).splitlines()) == 1


def test_push_uploads_the_pipeline_and_nothing_else(pipe, saved, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, private, exist_ok):
            calls.append(("create", repo_id, private, exist_ok))

        def upload_folder(self, repo_id, folder_path):
            again = ImageGenerationPipeline.from_pretrained(folder_path)
            calls.append(("upload", repo_id, again(class_labels=0, seed=0).codes))
            calls.append({p.relative_to(folder_path).as_posix() for p in Path(folder_path).rglob("*") if p.is_file()})
            calls.append((Path(folder_path) / "README.md").read_text())
            return "https://huggingface.co/someone/pipeline/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    address = pipe.push_to_hub("someone/pipeline", private=True, token="secret")
    assert address == "https://huggingface.co/someone/pipeline/commit/1"
    assert calls[:2] == [("token", "secret"), ("create", "someone/pipeline", True, True)]
    assert calls[2][:2] == ("upload", "someone/pipeline")
    assert torch.equal(calls[2][2], pipe(class_labels=0, seed=0).codes)
    assert calls[3] == {p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()}
    assert 'from_pretrained("someone/pipeline")' in calls[4]


def test_a_pushed_pipeline_keeps_the_card_of_its_folder(copied, monkeypatch):
    card = model_card(ImageGenerationPipeline.from_pretrained(copied), data="Shapes, drawn.", licence="mit")
    (copied / "README.md").write_text(card)
    found = []

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, *args, **options):
            pass

        def upload_folder(self, repo_id, folder_path):
            found.append(ModelCard.load(f"{folder_path}/README.md"))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    ImageGenerationPipeline.from_pretrained(copied).push_to_hub("someone/pipeline")
    assert found[0].data.license == "mit"
    assert "Shapes, drawn." in found[0].text


# ---- model card


def test_the_card_is_read_by_the_hub_client(saved):
    card = ModelCard.load(saved / "README.md")
    assert card.data.library_name == "wvq"
    assert card.data.pipeline_tag == "text-to-image"
    for text in ("class and text-conditional", "circle, cross, square", "K = 32", '"guidance_scale": 1.5'):
        assert text in card.text


@pytest.mark.parametrize(("classes", "summary"), [(CLASS_NAMES, "class-conditional"), ([], "unconditional")])
def test_the_card_without_text(classes, summary, tiny_tokenizer_dir):
    card = ModelCard(model_card(make_pipeline(tiny_tokenizer_dir, class_names=classes)))
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert f"; {summary}." in card.text


def test_the_example_of_the_card_runs(pipe, class_pipe, saved, tiny_tokenizer_dir, tmp_path):
    for index, one in enumerate((pipe, class_pipe, make_pipeline(tiny_tokenizer_dir, class_names=[]))):
        folder = tmp_path / str(index)
        one.save_pretrained(folder, model_card(one, str(folder)))
        code = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
        scope = {}
        exec(code, scope)
        assert isinstance(scope["images"][0], Image.Image)


def test_the_card_names_data_licence_and_figures(pipe):
    results = {"tokenizer": {"psnr_rgb": 21.5, "cut_short": False, "data": "text"}}
    card = ModelCard(model_card(pipe, data="Drawn shapes.", licence="mit", results=results))
    assert card.data.license == "mit"
    assert "Drawn shapes." in card.text
    assert "| tokenizer | psnr_rgb | 21.5 |" in card.text
    assert "cut_short" not in card.text
