"""Folders of ImageGenerationPipeline: saving, loading, the Hub, damaged parts, the model card."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from tests.tiny import CLASS_NAMES, make_pipeline
from wvq import ImageProcessor
from wvq.errors import CheckpointError, ConfigError, DownloadError
from wvq.generator.base.sampling_settings import SamplingSettings
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


def test_a_pipeline_does_not_join_the_folder_of_a_tokenizer(pipe, tiny_tokenizer_dir, tmp_path):
    folder = shutil.copytree(tiny_tokenizer_dir, tmp_path / "tokenizer")
    before = sorted(folder.iterdir())
    with pytest.raises(CheckpointError, match="holds a model by itself, and no pipeline; choose another folder"):
        pipe.save_pretrained(folder)
    assert sorted(folder.iterdir()) == before


def test_saving_that_was_cut_short_before_the_index_goes_on(class_pipe, tmp_path):
    for card in (None, "# A card of my own"):
        folder = tmp_path / str(card)
        class_pipe.save_pretrained(folder, card)
        (folder / "model_index.json").unlink()
        class_pipe.save_pretrained(folder, card)
        assert (folder / "model_index.json").exists()


DRAWN = {"class_labels": [0, 1], "prompt": "red", "seed": 0, "output_type": "pt"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_and_the_folder_that_is_saved_in_it(dtype, saved, tmp_path):
    half = ImageGenerationPipeline.from_pretrained(saved, torch_dtype=dtype)
    of_codes = torch.float64 if dtype == torch.float64 else torch.float32
    assert (half.dtype, half.tokenizer.dtype, half.tokenizer.quantizer.codebook.dtype) == (dtype, dtype, of_codes)
    images = half(**DRAWN).images
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    kind = str(dtype).removeprefix("torch.")
    with pytest.warns(UserWarning, match=f"the tokenizer is saved in {kind}: it may give a picture other codes in"):
        half.save_pretrained(tmp_path / "half")
    for again in (
        ImageGenerationPipeline.from_pretrained(tmp_path / "half"),
        ImageGenerationPipeline.from_pretrained(saved).to(dtype),
        ImageGenerationPipeline.from_pretrained(saved).to("cpu", kind),
    ):
        assert (again.dtype, again.tokenizer.dtype) == (dtype, dtype)
        assert torch.equal(again(**DRAWN).images, images)
    with pytest.raises(CheckpointError, match=f"holds a tokenizer in float32, and this one is in {kind}; choose"):
        half.save_pretrained(saved)


def test_a_folder_in_float32_of_rounded_weights_loads_too(saved, tmp_path):
    with pytest.warns(UserWarning, match="other codes in places"):
        ImageGenerationPipeline.from_pretrained(saved, dtype="bfloat16").save_pretrained(tmp_path / "half")
    whole = ImageGenerationPipeline.from_pretrained(tmp_path / "half", dtype="float32")
    with pytest.warns(UserWarning, match="the tokenizer is saved in float32: it may give a picture other codes"):
        whole.save_pretrained(tmp_path / "whole")
    again = ImageGenerationPipeline.from_pretrained(tmp_path / "whole")
    assert again.dtype == torch.float32
    assert torch.equal(again(**DRAWN).images, whole(**DRAWN).images)


def test_a_cast_and_back_is_the_pipeline_that_was_trained(saved, tmp_path, recwarn):
    pipe = ImageGenerationPipeline.from_pretrained(saved).to(torch.float64).to(torch.float32)
    pipe.save_pretrained(tmp_path / "again")
    assert not [str(one.message) for one in recwarn if "other codes" in str(one.message)]
    assert ImageGenerationPipeline.from_pretrained(tmp_path / "again").weights_hashes() == pipe.weights_hashes()


def test_a_folder_of_shards(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "p", max_shard_size="5KB", safe_serialization=True)
    for part in ("tokenizer", "generator", "text_encoder"):
        assert (tmp_path / "p" / part / "model.safetensors.index.json").is_file()
        assert not (tmp_path / "p" / part / "model.safetensors").exists()
    again = ImageGenerationPipeline.from_pretrained(tmp_path, subfolder="p")
    assert again.weights_hashes() == pipe.weights_hashes()
    shard = min((tmp_path / "p" / "generator").glob("*-00002-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{shard.name} is not the file that was saved"):
        ImageGenerationPipeline.from_pretrained(tmp_path / "p")


# ---- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"wieghts": "int8"},
            r'Pipeline.from_pretrained takes no "wieghts" \(did you mean "weights"\?\)',
        ),
        ({"variant": "fp16"}, "variant='fp16' is not possible here: one set of weights is saved; .* dtype="),
        ({"safety_checker": object()}, "safety_checker=.* is not possible here: a pipeline has no such part"),
        ({"tokenizer": object()}, "tokenizer=.*: make ImageGenerationPipeline\\(tokenizer, generator, text_encoder\\)"),
        ({"custom_pipeline": "x"}, "custom_pipeline='x' is not possible here: no code that comes with a model is run"),
        ({"quantization_config": {}}, 'quantization_config={} is not possible here: a pipeline takes weights="int8"'),
        ({"proxies": {"https": "x"}}, "proxies=.*: set HTTPS_PROXY"),
        ({"device_map": "abacus"}, 'device_map "abacus" cannot be used here'),
        ({"torch_dtype": "bf16"}, r'torch_dtype must be one of .* \(did you mean "bfloat16"\?\)'),
        ({"torch_dtype": "bfloat16", "weights": "int8"}, "only a float32 model can be reduced"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(options, message, saved):
    with pytest.raises(ConfigError, match=message) as caught:
        ImageGenerationPipeline.from_pretrained(saved, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_options_that_ask_for_what_is_done_anyway_are_accepted(saved, pipe):
    hub = {"revision": "main", "use_auth_token": True, "cache_dir": None, "local_files_only": True}
    nothing = {"use_safetensors": True, "low_cpu_mem_usage": False, "trust_remote_code": False, "variant": None}
    options = {**hub, **nothing, "safety_checker": None, "device_map": {"": "cpu"}, "torch_dtype": "auto"}
    again = ImageGenerationPipeline.from_pretrained(saved, **options)
    assert again.weights_hashes() == pipe.weights_hashes()


def test_a_sub_folder_without_a_pipeline_is_one_line(saved):
    with pytest.raises(CheckpointError, match="holds no folder nowhere; check subfolder"):
        ImageGenerationPipeline.from_pretrained(saved, subfolder="nowhere")
    with pytest.raises(CheckpointError, match=r"model_index\.json is missing"):
        ImageGenerationPipeline.from_pretrained(saved, subfolder="generator")


def test_parts_by_name_make_the_same_pipeline(saved):
    pipe = ImageGenerationPipeline.from_pretrained(saved)
    assert list(pipe.components) == ["tokenizer", "generator", "text_encoder"]
    again = ImageGenerationPipeline(**pipe.components, sampling=pipe.sampling)
    assert torch.equal(again(**DRAWN).codes, pipe(**DRAWN).codes)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((torch.float16, torch.bfloat16), {}, r"to\(\) takes one dtype, got torch.float16 and torch.bfloat16"),
        (("cpu",), {"device": "cpu"}, r"to\(\) takes one device, got 'cpu' and 'cpu'"),
        (("abacus",), {}, 'device "abacus" cannot be used here'),
        ((torch.int8,), {}, "dtype must be one of float32, .*, got torch.int8"),
    ],
)
def test_a_wrong_device_or_dtype_is_one_line(given, options, message, saved):
    with pytest.raises(ConfigError, match=message):
        ImageGenerationPipeline.from_pretrained(saved).to(*given, **options)


def test_reduced_weights_are_not_cast(saved):
    pipe = ImageGenerationPipeline.from_pretrained(saved, weights="bf16")
    with pytest.raises(ConfigError, match="bf16 weights cannot be cast; load the pipeline without weights"):
        pipe.to(dtype=torch.float16)


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


class Api:
    """In place of the Hub client: records its calls, and looks at what is uploaded."""

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def create_branch(self, repo_id, **options):
        self.calls.append(("branch", repo_id, options))

    def upload_folder(self, repo_id, folder_path, **options):
        folder = Path(folder_path)
        self.calls.append(("upload", repo_id, options))
        self.files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        self.uploaded(ImageGenerationPipeline.from_pretrained(folder), self.files)
        return "https://huggingface.co/someone/pipeline/commit/1"


@pytest.fixture
def hub(monkeypatch):
    """The calls of the Hub client, and the pipeline and the files that were uploaded."""
    record = SimpleNamespace(calls=[], pipeline=None, files={})

    def uploaded(pipeline, files):
        record.pipeline, record.files = pipeline, files

    api = type("RecordingApi", (Api,), {"calls": record.calls, "uploaded": staticmethod(uploaded)})
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    return record


def test_push_uploads_the_pipeline_and_nothing_else(pipe, saved, hub):
    address = pipe.push_to_hub("someone/pipeline", private=True, token="secret")
    assert address == "https://huggingface.co/someone/pipeline/commit/1"
    assert hub.calls == [
        ("token", "secret"),
        ("create", "someone/pipeline", {"private": True, "exist_ok": True}),
        ("upload", "someone/pipeline", {"revision": None}),
    ]
    assert torch.equal(hub.pipeline(class_labels=0, seed=0).codes, pipe(class_labels=0, seed=0).codes)
    assert set(hub.files) == {p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()}
    assert b'from_pretrained("someone/pipeline")' in hub.files["README.md"]


def test_push_passes_on_the_options_of_the_commit(pipe, hub, tmp_path):
    commit = {"commit_message": "First", "commit_description": "Drawn", "create_pr": True}
    options = {"repo_id": "mine", "revision": "dev", "token": "t", "max_shard_size": "5KB", **commit}
    pipe.save_pretrained(tmp_path / "p", push_to_hub=True, **options)
    assert (tmp_path / "p" / "model_index.json").is_file()
    assert hub.calls == [
        ("token", "t"),
        ("create", "mine", {"private": None, "exist_ok": True}),
        ("branch", "me/mine", {"branch": "dev", "exist_ok": True}),
        ("upload", "me/mine", {"revision": "dev", **commit}),
    ]
    assert "generator/model.safetensors.index.json" in hub.files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"safe_serialization": False}, "safe_serialization=False is not possible here"),
        ({"max_shard_size": "5 apples"}, "max_shard_size must be a number of bytes"),
        ({"commit_mesage": "x"}, r'takes no "commit_mesage" \(did you mean "commit_message"\?\)'),
        ({"private": True}, "private is of the upload; give push_to_hub=True too, or leave it out"),
    ],
)
def test_a_wrong_option_of_saving_is_one_line_and_writes_nothing(options, message, pipe, hub, tmp_path):
    with pytest.raises(ConfigError, match=message):
        pipe.save_pretrained(tmp_path / "p", **options)
    assert not (tmp_path / "p").exists()
    assert not hub.calls


def test_a_wrong_option_of_a_push_is_one_line(pipe, hub):
    with pytest.raises(ConfigError, match=r'push_to_hub takes no "comit_message" \(did you mean "commit_message"\?\)'):
        pipe.push_to_hub("someone/pipeline", comit_message="x")
    assert not hub.calls


def test_a_pushed_pipeline_keeps_the_card_of_its_folder(copied, hub):
    card = model_card(ImageGenerationPipeline.from_pretrained(copied), data="Shapes, drawn.", licence="mit")
    (copied / "README.md").write_text(card)
    ImageGenerationPipeline.from_pretrained(copied).push_to_hub("someone/pipeline")
    pushed = ModelCard(hub.files["README.md"].decode())
    assert pushed.data.license == "mit"
    assert "Shapes, drawn." in pushed.text


# ---- model card


def test_the_card_is_read_by_the_hub_client(saved):
    card = ModelCard.load(saved / "README.md")
    assert card.data.library_name == "wvq"
    assert card.data.pipeline_tag == "text-to-image"
    for text in ("class and text-conditional", "0: circle, 1: cross, 2: square", "K = 32", '"guidance_scale": 1.5'):
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
