"""Features of a numbered stream: any batches, stops and shares give those of one go, and nothing else is read."""

import hashlib
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from wvq.errors import ConfigError, DataError
from wvq.eval.features import shards as streaming
from wvq.eval.features.pictures import picture_digests
from wvq.eval.features.shards import Batch, FeatureShards, collected, remove_shards, stream_features, working_folder
from wvq.interruption import RunInterrupted

COUNT = 11


@pytest.fixture
def images(pictures):
    return pictures(COUNT)


def drawing(images, drawn=None):
    def draw(run):
        if drawn is not None:
            drawn.extend(run)
        return Batch(images[run.start : run.stop], list(run))

    return draw


def stream(images, network, folder, batch_size=4, drawn=None, identity=None, keep_pixels=False):
    shards = FeatureShards(folder, identity or {"seed": 0})
    stream_features(drawing(images, drawn), range(len(images)), network, shards, batch_size, keep_pixels=keep_pixels)
    return shards


def description(images):
    sha256 = hashlib.sha256(b"".join(picture_digests(images))).hexdigest()
    return {"sha256": sha256, "num_images": len(images), "image_size": 16, "crop": "none"}


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_stream_gives_what_one_pass_gives(images, projection_with_logits, tmp_path, batch_size):
    found = collected(stream(images, projection_with_logits, tmp_path / "s", batch_size), "none", COUNT)
    expected = projection_with_logits(images)
    torch.testing.assert_close(found.features, expected.features)
    torch.testing.assert_close(found.logits, expected.logits)
    assert found.description() == description(images)
    assert found.indices == list(range(COUNT))


def test_a_stopped_stream_goes_on_at_the_first_missing_picture(images, projection, tmp_path):
    drawn = []

    def draw(run):
        if run.start >= 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return drawing(images, drawn)(run)

    shards = FeatureShards(tmp_path / "s", {"seed": 0})
    with pytest.raises(RunInterrupted, match="stopped by SIGTERM; 9 of 11 pictures were measured; the same command"):
        stream_features(draw, range(COUNT), projection, shards, 3)
    assert drawn == list(range(9))
    again = []
    found = collected(stream(images, projection, tmp_path / "s", 64, again), "none", COUNT)
    assert again == [9, 10]
    whole = collected(stream(images, projection, tmp_path / "whole"), "none", COUNT)
    assert found.description() == whole.description()
    torch.testing.assert_close(found.features, whole.features)


def test_a_file_that_was_being_written_does_not_count(images, projection, tmp_path, monkeypatch):
    replace, calls = os.replace, []

    def killed(source, target):
        if str(target).endswith(".safetensors"):
            calls.append(target)
            if len(calls) == 2:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        stream(images, projection, tmp_path / "s")
    monkeypatch.undo()
    again = []
    found = collected(stream(images, projection, tmp_path / "s", 4, again), "none", COUNT)
    assert again == list(range(4, COUNT))
    assert found.num_images == COUNT


def test_processes_share_a_stream(images, projection, tmp_path, monkeypatch):
    drawn = {0: [], 1: []}
    there = set()
    for rank in (0, 1):  # one after the other; both are told what was missing when the first one looked
        process = SimpleNamespace(process_index=rank, num_processes=2)
        monkeypatch.setattr(streaming, "processes", lambda process=process: process)
        monkeypatch.setattr(streaming, "is_main_process", lambda rank=rank: rank == 0)
        monkeypatch.setattr(streaming, "gather_objects", lambda _: [sorted(set(range(COUNT)) - there)])
        stream(images, projection, tmp_path / "s", 3, drawn[rank])
    assert drawn == {0: [0, 1, 2, 6, 7, 8], 1: [3, 4, 5, 9, 10]}
    shards = FeatureShards(tmp_path / "s", {"seed": 0})
    assert collected(shards, "none", COUNT).description() == description(images)


def test_pixels_are_kept_where_asked_for(images, projection, tmp_path):
    shards = stream(images, projection, tmp_path / "s", keep_pixels=True)
    assert torch.equal(shards.read(("numbers", "pixels"))[0]["pixels"], images)


def test_another_evaluation_does_not_go_on_in_its_place(images, projection, tmp_path):
    stream(images, projection, tmp_path / "s")
    with pytest.raises(ConfigError, match=r"another seed \(0, now 1\); finish that one"):
        stream(images, projection, tmp_path / "s", identity={"seed": 1})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").touch()
    with pytest.raises(ConfigError, match="holds other files"):
        stream(images, projection, tmp_path / "other")


def test_a_damaged_file_is_one_line_that_names_it(images, projection, tmp_path):
    shards = stream(images, projection, tmp_path / "s")
    file = shards.files()[1]
    content = file.read_bytes()
    flipped = [bytearray(content) for _ in range(3)]
    for place, damaged in zip((10, len(content) // 2, -1), flipped, strict=True):
        damaged[place] ^= 4
    foreign = save({"numbers": torch.arange(3), "features": torch.zeros(3, 7)})
    for damaged in (content[:100], b"", foreign, *flipped):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{file.name} is damaged") as caught:
            collected(shards, "none", COUNT)
        assert "\n" not in str(caught.value)
    file.write_bytes(content)
    assert collected(shards, "none", COUNT).num_images == COUNT


def test_the_folder_goes_when_the_work_is_done(images, projection, tmp_path):
    stream(images, projection, tmp_path / "s")
    remove_shards(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_full_disk_is_one_line_and_the_rest_stays(images, projection, tmp_path, monkeypatch):
    save, calls = streaming.save_file, []

    def full(tensors, file, metadata):
        calls.append(file)
        if len(calls) == 2:
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, file, metadata)

    monkeypatch.setattr(streaming, "save_file", full)
    with pytest.raises(DataError, match=r"could not be written .*No space left on device.*; make room"):
        stream(images, projection, tmp_path / "s")
    assert len(list((tmp_path / "s").iterdir())) == 2  # the identity and the first batch
    monkeypatch.undo()
    assert collected(stream(images, projection, tmp_path / "s"), "none", COUNT).num_images == COUNT


def test_pixels_come_in_order_and_once_a_file_at_a_time(images, projection, tmp_path):
    shards = stream(images, projection, tmp_path / "s", batch_size=4, keep_pixels=True)
    for run in (range(2, 5), range(3, 8)):  # as two runs at once may leave
        batch = Batch(images[run.start : run.stop], list(run))
        shards.write(run, batch, projection(batch.images), keep_pixels=True)
    parts = list(shards.pictures())
    assert max(map(len, parts)) <= 4
    assert torch.equal(torch.cat(parts), images)
    shards.files()[0].write_bytes(b"cut")
    with pytest.raises(DataError, match="is damaged"):
        next(shards.pictures())


# ---- folders that hold other things


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def users_folder(tmp_path):
    folder = tmp_path / "mine"
    (folder / "deep").mkdir(parents=True)
    for name in ("thesis.txt", "deep/notes.txt", ".hidden"):
        (folder / name).write_text("mine")
    return folder


@pytest.mark.parametrize("marked", [False, True])
def test_a_refused_folder_keeps_all_that_it_holds(users_folder, marked):
    if marked:  # a file of the user's that is called as ours is
        (users_folder / "identity.json").write_text('{"name": "me"}')
    before = files_below(users_folder)
    with pytest.raises(ConfigError), working_folder(users_folder) as folder:
        FeatureShards(folder, {"seed": 0})
    assert files_below(users_folder) == before


def test_an_error_before_the_first_picture_frees_the_folder_for_other_settings(tmp_path):
    def begin(folder, seed):
        with working_folder(folder) as found:
            FeatureShards(found, {"seed": seed})
            raise DataError("no picture")

    for seed in (0, 1):
        with pytest.raises(DataError, match="no picture"):
            begin(tmp_path / "s", seed)
        assert not (tmp_path / "s").exists()
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".note").write_text("mine")
    with pytest.raises(DataError, match="no picture"):
        begin(tmp_path / "s", 2)
    assert files_below(tmp_path / "s") == {".note": b"mine"}


def test_removing_shards_leaves_the_files_of_others(images, projection, tmp_path):
    stream(images, projection, tmp_path / "s")
    (tmp_path / "s" / ".00000000-00000004.safetensors.77.partial").write_text("of a killed process")
    for name in ("notes.txt", "model.safetensors", "1-2.safetensors"):
        (tmp_path / "s" / name).write_text("mine")
    assert collected(FeatureShards(tmp_path / "s", {"seed": 0}), "none", COUNT).num_images == COUNT
    remove_shards(tmp_path / "s")
    assert sorted(files_below(tmp_path / "s")) == ["1-2.safetensors", "model.safetensors", "notes.txt"]
