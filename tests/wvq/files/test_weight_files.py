"""Weights that are cut, flipped, of other shapes or pickled: nothing is loaded, and one line says why."""

import json
import pickle
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import save_pipeline
from wvq.errors import CheckpointError
from wvq.files import atomic as outputs
from wvq.files import weight_files
from wvq.files.names import CHECKSUMS_NAME
from wvq.files.weight_files import written_weights
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.pipelines.image_generation import ImageGenerationPipeline

PARTS = ("tokenizer", "generator", "text_encoder")


class Payload:
    """Leaves a file behind if anything unpickles it."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture(scope="module")
def saved(tiny_tokenizer_dir, tmp_path_factory):
    return save_pipeline(tiny_tokenizer_dir, tmp_path_factory.mktemp("weights"))


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def refusal(folder) -> str:
    with pytest.raises(CheckpointError) as caught:
        ImageGenerationPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("place", [0.0, 0.01, 0.5, 1.0])
def test_a_flipped_bit_anywhere_is_found(part, place, copied):
    file = copied / part / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    file.write_bytes(content)
    assert f"{file} is not the file that was saved" in refusal(copied)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("listed", [True, False])
def test_a_wrong_shape_is_found_with_and_without_checksums(part, listed, copied):
    file = copied / part / "model.safetensors"
    tensors = load_file(file)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = torch.zeros(*tensors[name].shape[:-1], tensors[name].shape[-1] + 1)
    save_file(tensors, file, metadata={"format": "pt"})
    if not listed:
        (copied / part / CHECKSUMS_NAME).unlink()
    assert str(copied / part) in refusal(copied)


def test_a_flip_in_the_header_is_found_without_checksums(copied):
    (copied / "generator" / CHECKSUMS_NAME).unlink()
    file = copied / "generator" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[9] ^= 4
    file.write_bytes(content)
    assert str(copied / "generator") in refusal(copied)


@pytest.mark.parametrize("part", PARTS)
def test_pickled_weights_are_never_loaded(part, copied, tmp_path):
    """Neither in the place of the safetensors nor under their name."""
    marker, folder = tmp_path / "executed", copied / part
    (folder / CHECKSUMS_NAME).unlink()
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.pkl"):
        torch.save(Payload(marker), folder / name)
    assert str(folder) in refusal(copied)
    for write in (torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))):
        write(Payload(marker), folder / "model.safetensors")
        assert str(folder) in refusal(copied)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker))).close()
    assert marker.exists()  # the payload works


def test_weights_that_were_changed_on_purpose_load_without_checksums(copied):
    file = copied / "generator" / "model.safetensors"
    tensors = load_file(file)
    tensors["head.weight"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert "if it was changed on purpose, remove" in refusal(copied)
    (copied / "generator" / CHECKSUMS_NAME).unlink()
    assert torch.equal(ImageGenerationPipeline.from_pretrained(copied).generator.head.weight, tensors["head.weight"])


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("listed", [True, False])
def test_cut_weights_are_refused_with_and_without_checksums(part, listed, copied):
    file = copied / part / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    if not listed:
        (copied / part / CHECKSUMS_NAME).unlink()
    assert str(copied / part) in refusal(copied)


@pytest.mark.parametrize("name", ["../tokenizer/model.safetensors", "gone.safetensors", "", "x" * 300])
def test_checksums_of_files_that_are_not_there(name, copied):
    file = copied / "generator" / CHECKSUMS_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), name: "0"}))
    assert f"of {CHECKSUMS_NAME}, is missing" in refusal(copied)


def sharded(model, folder) -> None:
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_unlisted_weights_that_would_be_loaded_are_refused(name, copied):
    folder, other = copied / "generator", copied / "other"
    model = ImageCodeTransformer.from_pretrained(folder)
    if name == "model.safetensors":  # it comes before the index of shards
        sharded(model, folder)
        model.save_pretrained(other)
    else:
        sharded(model, other)
    shutil.copy(other / name, folder / name)
    assert f"{name} was not saved with the other files of {folder} and would be loaded" in refusal(copied)


def test_a_shard_that_the_checksums_leave_out_is_refused(copied):
    folder = copied / "generator"
    sharded(ImageCodeTransformer.from_pretrained(folder), folder)
    sums = json.loads((folder / CHECKSUMS_NAME).read_text())
    shard = next(name for name in sums if name.startswith("model-00001"))
    del sums[shard]
    (folder / CHECKSUMS_NAME).write_text(json.dumps(sums))
    assert f"{shard} was not saved with the other files" in refusal(copied)


def test_weights_that_the_config_names_are_refused_if_they_are_not_listed(copied):
    folder = copied / "text_encoder"
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    assert "other.safetensors was not saved with the other files" in refusal(copied)


def test_an_adapter_that_would_go_into_the_model_is_refused(copied, monkeypatch):
    (copied / "generator" / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(weight_files.importlib.util, "find_spec", lambda name: None)
    weight_files.verify_weights(copied / "generator")  # without peft it is a file like any other
    monkeypatch.setattr(weight_files.importlib.util, "find_spec", lambda name: name == "peft")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: transformers would put this adapter into"):
        weight_files.verify_weights(copied / "generator")


@pytest.mark.parametrize("part", PARTS)
def test_weights_of_others_beside_a_model_stay_and_are_in_nobodys_way(part, copied):
    folder = copied / part
    before = {}
    for name in ("lora.safetensors", "vae.safetensors", "vae.safetensors.index.json"):
        (folder / name).write_text(f"mine, {name}")
        before[name] = f"mine, {name}"
    pipe = ImageGenerationPipeline.from_pretrained(copied)
    saved = pipe.text_encoder if part == "text_encoder" else getattr(pipe, part)
    saved.save_pretrained(folder)
    if part != "text_encoder":
        sharded(saved, folder)
        saved.save_pretrained(folder)
    assert {name: (folder / name).read_text() for name in before} == before
    assert not before.keys() & json.loads((folder / CHECKSUMS_NAME).read_text()).keys()
    ImageGenerationPipeline.from_pretrained(copied)


def test_shards_of_a_model_without_checksums_go_by_its_index(copied):
    folder = copied / "generator"
    model = ImageCodeTransformer.from_pretrained(folder)
    sharded(model, folder)
    (folder / CHECKSUMS_NAME).unlink()
    (folder / "model-lora.safetensors").write_text("mine")
    model.save_pretrained(folder)
    assert sorted(file.name for file in folder.glob("*.safetensors*")) == [
        "model-lora.safetensors",
        "model.safetensors",
    ]


@pytest.mark.parametrize("name", ["../../kept.safetensors", "/kept.safetensors", "notes.txt", 3])
def test_damaged_checksums_remove_nothing_but_weights_of_the_folder(name, copied, tmp_path):
    folder = copied / "generator"
    model = ImageCodeTransformer.from_pretrained(folder)
    (tmp_path / "kept.safetensors").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    (folder / CHECKSUMS_NAME).write_text(json.dumps({name: "0"}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    model.save_pretrained(folder)
    assert (tmp_path / "kept.safetensors").exists()
    assert (folder / "notes.txt").exists()
    ImageCodeTransformer.from_pretrained(folder)


def test_a_file_that_cannot_be_read_is_one_of_our_errors(copied, monkeypatch):
    def broken(file):
        raise OSError(5, "Input/output error", str(file))

    monkeypatch.setattr(weight_files, "file_sha256", broken)
    assert "cannot be read (" in refusal(copied)


def test_saving_in_another_form_leaves_no_weights_of_the_old_one(copied, tmp_path):
    folder = copied / "generator"
    old = ImageCodeTransformer.from_pretrained(folder)
    with torch.no_grad():
        old.head.weight.add_(1)
    old.save_pretrained(save_directory=folder, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert (folder / "model.safetensors.index.json").name in json.loads((folder / CHECKSUMS_NAME).read_text())
    assert torch.equal(ImageCodeTransformer.from_pretrained(folder).head.weight, old.head.weight)
    old.save_pretrained(folder)
    assert [file.name for file in sorted(folder.glob("*.safetensors*"))] == ["model.safetensors"]
    old.save_pretrained(tmp_path / "second", is_main_process=False)
    assert not (tmp_path / "second").exists()


def test_a_save_that_fails_leaves_the_old_weights(copied, monkeypatch):
    folder = copied / "generator"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    model = ImageCodeTransformer.from_pretrained(folder)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(CheckpointError, match=r"could not be written .*No space left on device"):
        model.save_pretrained(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_pushed_model_has_its_checksums(copied, monkeypatch):
    pushed = []

    def push(self, repo_id, **options):  # as transformers does it
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size="50GB")
            pushed.append((repo_id, sorted(file.name for file in Path(folder).iterdir()), options))

    monkeypatch.setattr(ImageCodeTransformer, "push_to_hub", push)
    model = ImageCodeTransformer.from_pretrained(copied / "generator")
    model.save_pretrained(copied / "again", push_to_hub=True, repo_id="me/mine", private=True)
    assert pushed == [("me/mine", ["config.json", "model.safetensors", CHECKSUMS_NAME], {"private": True})]


def test_weights_are_named_by_their_checksums_last(tmp_path, monkeypatch):
    """A process that dies while files take their names leaves no checksums of other weights."""
    (tmp_path / CHECKSUMS_NAME).write_text("{}")
    order = []
    monkeypatch.setattr(outputs.os, "replace", lambda source, target: order.append(Path(target).name))
    with written_weights(tmp_path) as partial:
        save_file({"a": torch.ones(3)}, partial / "model.safetensors")
        (partial / "config.json").write_text("{}")
        monkeypatch.setattr(outputs, "write_text", lambda file, text: Path(file).write_text(text))
    assert order == ["config.json", "model.safetensors", CHECKSUMS_NAME]
    assert not (tmp_path / CHECKSUMS_NAME).exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer", ["wvq", "../../elsewhere"]),
        ("tokenizer", "../elsewhere/tokenizer"),
        ("generator", ["os", "system"]),
        ("generator", None),
        ("text_encoder", ["transformers", "/elsewhere"]),
        ("text_encoder", {"path": "/elsewhere"}),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(name, value, copied):
    file = copied / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    assert f"{file}: {name} is {value!r}" in refusal(copied)
