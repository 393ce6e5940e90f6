"""Weights that are cut, flipped, of other shapes or pickled: nothing is loaded, and one line says why."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import save_pipeline
from wvq.errors import CheckpointError
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.weight_files import CHECKSUMS_NAME, verify_weights, written_weights

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


@pytest.mark.parametrize("names", [{"../tokenizer/model.safetensors": "0"}, {"gone.safetensors": "0"}, {"": "0"}])
def test_checksums_of_files_that_are_not_there(names, copied):
    (copied / "generator" / CHECKSUMS_NAME).write_text(json.dumps(names))
    assert "of checksums.json, is missing" in refusal(copied)


def test_checksums_are_written_after_the_weights(tmp_path):
    with written_weights(tmp_path):
        save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    assert list(json.loads((tmp_path / CHECKSUMS_NAME).read_text())) == ["model.safetensors"]
    verify_weights(tmp_path)
    with pytest.raises(CheckpointError, match="could not be written"), written_weights(tmp_path):
        raise OSError(28, "No space left on device")


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
