"""Folders of ImageGenerationPipeline: saving, loading, the Hub, damaged parts, the model card."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from tests.tiny import CLASS_NAMES, make_pipeline
from wvq import ImageProcessor
from wvq.errors import CheckpointError, DownloadError
from wvq.generator.sampling_settings import SamplingSettings
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.model_card import model_card
from wvq.tokenizer.modeling import WassersteinVQModel

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
    assert index["sampling"]["guidance_scale"] == 1.5
    assert index["sampling"]["top_k"] == 20
    assert set(index["sampling"]) == {field.name for field in fields(SamplingSettings)}


def test_saving_again_keeps_equal_parts_and_refuses_others(pipe, copied, tiny_tokenizer_dir, encoder_dir):
    before = (copied / "generator" / "model.safetensors").stat().st_mtime_ns
    pipe.save_pretrained(copied)
    assert (copied / "generator" / "model.safetensors").stat().st_mtime_ns == before
    other = make_pipeline(tiny_tokenizer_dir, encoder_dir, seed=1)
    with pytest.raises(CheckpointError, match="generator already holds another generator; choose another folder"):
        other.save_pretrained(copied)


@pytest.mark.parametrize(
    ("name", "text"),
    [("README.md", "# My project"), ("model_index.json", '{"_class_name": "StableDiffusionPipeline"}')],
)
def test_a_readme_or_index_of_another_project_is_not_written_over(name, text, class_pipe, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=f"{name} is .* would be written over; choose another folder"):
        class_pipe.save_pretrained(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, text)]


def test_saving_that_was_cut_short_before_the_index_goes_on(class_pipe, tmp_path):
    for card in (None, "# A card of my own"):
        folder = tmp_path / str(card)
        class_pipe.save_pretrained(folder, card)
        (folder / "model_index.json").unlink()
        class_pipe.save_pretrained(folder, card)
        assert (folder / "model_index.json").exists()


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
        ({"sampling": {"guidance": 2.0}}, r'"guidance" is no sampling setting \(did you mean "guidance_scale"\?\)'),
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
        for part in (tokenizer.encoder, tokenizer.decoder):
            next(part.parameters()).add_(0.1)
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


def test_a_pipeline_saved_with_other_sampling_settings_says_so_in_its_card(copied):
    pipe = ImageGenerationPipeline.from_pretrained(copied)
    before = (copied / "README.md").read_text().splitlines()
    pipe.sampling = pipe.sampling.updated(temperature=0.35)
    pipe.save_pretrained(copied)
    after = (copied / "README.md").read_text().splitlines()
    [(old, new)] = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert old.startswith("- sampling defaults: ")
    assert '"temperature": 0.35' in new
    assert ImageGenerationPipeline.from_pretrained(copied).sampling == pipe.sampling


def test_the_card_names_data_licence_and_figures(pipe):
    results = {"tokenizer": {"psnr_rgb": 21.5, "cut_short": False, "data": "text"}}
    card = ModelCard(model_card(pipe, data="Drawn shapes.", licence="mit", results=results))
    assert card.data.license == "mit"
    assert "Drawn shapes." in card.text
    assert "| tokenizer | psnr_rgb | 21.5 |" in card.text
    assert "cut_short" not in card.text
