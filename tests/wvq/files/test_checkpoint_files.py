"""Checkpoints of other projects: every form that weights come in, nothing that is run, and a line for what is wrong."""

import argparse
import collections
import json
import os
import pathlib
import pickle
import sys
import types
import typing
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wvq.errors import CheckpointError, ConfigError
from wvq.files.checkpoint_files import read_checkpoint


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((2, 3), value), "b": torch.arange(4)}


def save(file: pathlib.Path, content: object, legacy: bool = False) -> pathlib.Path:
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file


def is_refused(file: pathlib.Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(file)
    line = str(caught.value)
    assert "\n" not in line
    for part in (str(file), *parts):
        assert part in line


def same(read: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in read)


# ---- what is read


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("level", [None, "model", "ema", "module", "state_dict"])
def test_weights_are_found_at_every_level(level, legacy, tmp_path):
    content = weights() if level is None else {"epoch": 3, level: weights(), "optimizer": {"state": {}}}
    read = read_checkpoint(save(tmp_path / "file.pt", content, legacy))
    same(read.weights, weights())
    assert (read.level, read.other_levels, read.files) == (level, (), (tmp_path / "file.pt",))


def test_of_weights_and_their_average_one_is_chosen(tmp_path):
    file = save(tmp_path / "file.pt", {"ema": weights(2), "model": weights(1)})
    read, averaged = read_checkpoint(file), read_checkpoint(file, ema=True)
    assert (read.level, read.other_levels) == ("model", ("ema",))
    same(read.weights, weights(1))
    assert (averaged.level, averaged.other_levels) == ("ema", ("model",))
    same(averaged.weights, weights(2))


def test_an_average_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ema: .*file\.pt holds no averaged weights"):
        read_checkpoint(save(tmp_path / "file.pt", weights()), ema=True)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_wraps_a_model_in_training_leaves_the_names(wrapper, tmp_path):
    wrapped = {wrapper + name: weight for name, weight in weights().items()}
    same(read_checkpoint(save(tmp_path / "file.pt", wrapped)).weights, weights())


def test_safetensors_in_one_file_and_in_shards(tmp_path):
    whole, first, second = (tmp_path / f"{name}.safetensors" for name in ("whole", "first", "second"))
    save_file(weights(), whole)
    same(read_checkpoint(whole).weights, weights())
    for file, name in ((first, "a.weight"), (second, "b")):
        save_file({name: weights()[name]}, file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": first.name, "b": second.name}}))
    read = read_checkpoint(index)
    same(read.weights, weights())
    assert read.files == (first, second)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"second\.safetensors: no such file"):
        read_checkpoint(index)


def test_safetensors_whose_header_begins_like_a_pickle(tmp_path):
    file = tmp_path / "file.safetensors"
    save_file({"a" * 70: torch.zeros(1)}, file)
    assert file.read_bytes()[0] == 0x80
    assert list(read_checkpoint(file).weights) == ["a" * 70]


def test_weights_are_mapped_and_not_read(tmp_path):
    """Pages of the file are no memory of the process's own."""
    file = save(tmp_path / "file.pt", {"model": weights(), "optimizer": torch.zeros(10)})
    storage = read_checkpoint(file).weights["a.weight"].untyped_storage()
    assert storage.nbytes() == 24
    mapped = torch.load(file, mmap=True, weights_only=True)["model"]["a.weight"]
    assert storage.data_ptr() % 64 == mapped.untyped_storage().data_ptr() % 64


# ---- what lies beside weights


@pytest.mark.parametrize("legacy", [False, True])
def test_arguments_callbacks_and_values_are_inert(legacy, tmp_path, monkeypatch):
    """Classes that are not there when the file is read: it was written where they were."""
    module = types.ModuleType("lightning_of_others")

    class ModelCheckpoint:
        def __init__(self):
            self.best = 1

        def __setstate__(self, state):
            raise AssertionError("it was run")

    class AttributeDict(dict):
        pass

    for kind in (ModelCheckpoint, AttributeDict):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    beside = {
        "args": argparse.Namespace(lr=1e-4, out=pathlib.Path("runs")),
        "callbacks": {ModelCheckpoint: {"score": np.float64(0.5)}, "last": ModelCheckpoint()},
        "hyper_parameters": AttributeDict(width=3, kinds=[dict, int, typing.Any]),
        "counts": collections.defaultdict(int, a=1),
    }
    file = save(tmp_path / "last.ckpt", {"state_dict": weights(), **beside}, legacy)
    monkeypatch.delitem(sys.modules, module.__name__)
    same(read_checkpoint(file).weights, weights())


def test_settings_and_arrays_are_inert(tmp_path, monkeypatch):
    """As OmegaConf's settings name types, and training states hold arrays of numpy."""
    module = types.ModuleType("settings_of_others")

    class Settings:
        def __init__(self):
            self.types = [typing.Any, dict, int, list]
            self.cache = collections.defaultdict(dict, {"lr": {}})

    Settings.__module__, Settings.__qualname__, module.Settings = module.__name__, "Settings", Settings
    monkeypatch.setitem(sys.modules, module.__name__, module)
    beside = {"hyper_parameters": Settings(), "rng": np.arange(3), "path": pathlib.Path("runs")}
    file = save(tmp_path / "last.ckpt", {"state_dict": weights(), **beside})
    same(read_checkpoint(file).weights, weights())


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "system": (os.system, "touch {mark}"),
    "eval": (eval, "open('{mark}', 'w')"),
    "exec": (exec, "open('{mark}', 'w')"),
    "torch.hub.load": (torch.hub.load, "{mark}", "model"),
    "torch.serialization.load": (torch.load, "{mark}"),
    "numpy": (np.fromfile, "{mark}"),  # of a library that may have stand-ins
    "getattr": (getattr, "{mark}", "write"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_hostile_file_is_refused_by_name_and_not_run(form, name, tmp_path):
    mark, file = tmp_path / "mark", tmp_path / "file.pt"
    function, *arguments = HOSTILE[name]
    content = {"model": weights(), "args": Call(function, *(text.format(mark=mark) for text in arguments))}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content["args"], protocol=4))
    else:
        save(file, content, legacy=form == "legacy")
    is_refused(file, name, "nothing of it was run")
    assert not mark.exists()


def test_a_class_of_python_or_torch_is_no_stand_in(tmp_path):
    is_refused(save(tmp_path / "file.pt", {"model": weights(), "net": torch.nn.Linear(2, 2)}), "torch.nn.modules")


# ---- what is no checkpoint


def test_files_that_are_not_what_they_should_be(tmp_path):
    pointer, page, empty, text = (tmp_path / name for name in ("lfs.pt", "page.pt", "empty.pt", "text.pt"))
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 281\n")
    page.write_text("\n<!DOCTYPE html><html>Sign in</html>")
    empty.touch()
    text.write_text("weights")
    is_refused(pointer, "Git LFS pointer", "git lfs pull")
    is_refused(page, "web page", "download")
    is_refused(empty, "empty", "download it again")
    is_refused(text, "no checkpoint of torch or safetensors")
    is_refused(tmp_path / "nothing.pt", "no such file")
    is_refused(tmp_path, "is a folder")
    half = tmp_path / "file.pt.incomplete"
    half.write_bytes(b"PK")
    is_refused(half, "has not ended")


@pytest.mark.parametrize("name", ["file.pt", "legacy.pt", "file.safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(name, share, tmp_path):
    file = tmp_path / name
    content = {"a": torch.randn(100, 100)}
    save_file(content, file) if "safe" in name else save(file, content, legacy="legacy" in name)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    is_refused(file, "download it again")


def test_a_compressed_archive_is_refused(tmp_path):
    stored, packed = save(tmp_path / "stored.pt", weights()), tmp_path / "packed.pt"
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    is_refused(packed, "compressed")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as other:
        other.writestr("readme.txt", "weights")
    is_refused(tmp_path / "other.pt", "it holds no data.pkl")


def test_an_archive_with_compressed_weights_is_refused(tmp_path):
    """They are mapped as they lie in the file."""
    stored, packed = save(tmp_path / "stored.pt", weights()), tmp_path / "packed.pt"
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(packed, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name), zipfile.ZIP_DEFLATED if "/data/" in name else zipfile.ZIP_STORED)
    is_refused(packed, "data/0 is compressed")


def test_a_pickle_that_torch_does_not_read_says_why(tmp_path):
    torch.save({"model": weights()}, tmp_path / "file.pt", pickle_protocol=4)
    is_refused(tmp_path / "file.pt", "cannot be read as weights alone (Unsupported operand", "nothing of it was run")


@pytest.mark.parametrize("name", [3, (1, 2), b"a", "a\nb", "a\x1b[31m"])
def test_weights_without_a_name_are_refused(name, tmp_path):
    is_refused(save(tmp_path / "file.pt", {"model": {name: torch.zeros(1)}}), "a weight by", "no name of one")


ODD = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(2, device="meta"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # files hold such tensors nonetheless
@pytest.mark.parametrize("kind", ODD)
def test_weights_that_are_no_plain_tensors_are_refused(kind, tmp_path):
    is_refused(save(tmp_path / "file.pt", {"a": ODD[kind]()}), "a is sparse, quantized or without values")


def test_a_file_that_says_more_numbers_than_it_holds_is_refused(tmp_path):
    file = save(tmp_path / "file.pt", {"a": torch.zeros(1).expand(10**9, 10**3)})
    is_refused(file, "holds fewer numbers than the 1,000,000,000,000 of a")


def test_other_contents_are_refused(tmp_path):
    is_refused(save(tmp_path / "list.pt", [torch.zeros(2)]), "no weights by name, but a list")
    is_refused(save(tmp_path / "other.pt", {"optimizer": {"lr": 1}}), "no weights", "model, ema, module, state_dict")
    index = tmp_path / "index.json"
    index.write_text('{"weight_map": {"a": "../a.safetensors"}}')
    is_refused(index, "no index of safetensors files")
