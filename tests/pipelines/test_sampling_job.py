"""Jobs of many pictures: whole files with their settings inside, taken up where they stopped, never mixed up."""

import json
import os
import re
import signal
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from tests.processes import run_ranks
from wvq.app.describe import describe
from wvq.errors import ConfigError, UnreadablePictureError
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.interruption import RunInterrupted
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.memory import drawing_bytes
from wvq.pipelines.sampling_job import read_settings, sample_to_folder

ASKED = {"class_labels": ["circle", "cross"], "num_images": 6, "seed": 3, "guidance_scale": 2.0, "progress": False}


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def finished(class_pipe, tmp_path_factory):
    """Files of a job that was not stopped."""
    folder = tmp_path_factory.mktemp("finished") / "samples"
    sample_to_folder(class_pipe, folder, batch_size=4, **ASKED)
    return contents(folder)


def test_pictures_are_those_of_a_call(class_pipe, tmp_path):
    files = sample_to_folder(class_pipe, tmp_path / "s", batch_size=4, **ASKED)
    call = {name: value for name, value in ASKED.items() if name != "progress"}
    expected = class_pipe(**call).images
    assert [file.name for file in files] == [f"{seed:06d}.png" for seed in range(3, 9)]
    for file, picture in zip(files, expected, strict=True):
        assert Image.open(file).tobytes() == picture.tobytes()
    assert {file.name for file in (tmp_path / "s").iterdir()} == {f.name for f in files} | {"job.json", "sheet.png"}


def test_each_picture_tells_how_it_was_made(class_pipe, tmp_path):
    files = sample_to_folder(class_pipe, tmp_path / "s", source="runs/shapes", top_k=7, **ASKED)
    settings = read_settings(files[4])
    expected = {"pipeline": "runs/shapes", "class_label": 1, "class_name": "cross", "seed": 7}
    expected |= {"guidance_scale": 2.0, "top_k": 7, "temperature": 1.0}
    assert expected.items() <= settings.items()
    assert "prompt" not in settings
    again = {name: settings[name] for name in ("class_name", "seed", "guidance_scale", "top_k")}
    picture = class_pipe(again.pop("class_name"), **again).images[0]
    assert Image.open(files[4]).tobytes() == picture.tobytes()


def test_prompts_of_any_script_are_kept(pipe, tmp_path):
    (file,) = sample_to_folder(pipe, tmp_path / "s", prompt="赤い円 – rouge", progress=False)
    assert read_settings(file)["prompt"] == "赤い円 – rouge"


@pytest.mark.parametrize("other", [b"", b"nothing", "plain"])
def test_other_files_have_no_settings(other, tmp_path):
    file = tmp_path / "a.png"
    if other == "plain":
        Image.new("RGB", (4, 4)).save(file)
    else:
        file.write_bytes(other)
    assert read_settings(file) is None


def test_a_stopped_job_goes_on_with_what_is_missing(class_pipe, finished, tmp_path, monkeypatch):
    draw, drawn = ImageGenerationPipeline.draw, []

    def watched(self, wanted, seeds, *rest, **given):
        drawn.append(seeds)
        if len(drawn) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, wanted, seeds, *rest, **given)

    monkeypatch.setattr(ImageGenerationPipeline, "draw", watched)
    with pytest.raises(RunInterrupted, match="stopped by SIGTERM; 2 of 6 pictures are in"):
        sample_to_folder(class_pipe, tmp_path / "s", batch_size=2, **ASKED)
    before = contents(tmp_path / "s")
    assert len(before) == 3
    (tmp_path / "s" / "000003.png").unlink()  # and one lost later
    sample_to_folder(class_pipe, tmp_path / "s", batch_size=3, resume=True, **ASKED)
    assert drawn == [[3, 4], [3, 5, 6], [7, 8]]
    assert contents(tmp_path / "s") == finished


def test_a_picture_of_another_make_in_the_folder_is_named(class_pipe, tmp_path):
    sample_to_folder(class_pipe, tmp_path / "s", **ASKED)
    picture = next((tmp_path / "s").glob("0*.png"))
    content = bytearray(picture.read_bytes())
    content[16:24] = (50_000).to_bytes(4, "big") * 2  # width and height
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    picture.write_bytes(bytes(content))
    with pytest.raises(UnreadablePictureError, match=rf"{picture.name} cannot be read as a picture \(more than 178"):
        sample_to_folder(class_pipe, tmp_path / "s", resume=True, **ASKED)


def test_a_picture_that_was_being_written_is_drawn_again(class_pipe, finished, tmp_path, monkeypatch):
    save, count = Image.Image.save, []

    def cut(self, file, *rest, **options):
        count.append(file)
        if len(count) == 3:
            file.write_bytes(b"\x89PNG half")
            raise OSError(28, "No space left on device")
        return save(self, file, *rest, **options)

    monkeypatch.setattr(Image.Image, "save", cut)
    with pytest.raises(OSError, match="No space left"):
        sample_to_folder(class_pipe, tmp_path / "s", **ASKED)
    assert [file for file in (tmp_path / "s").glob("*.png") if read_settings(file) is None] == []
    monkeypatch.setattr(Image.Image, "save", save)
    sample_to_folder(class_pipe, tmp_path / "s", resume=True, **ASKED)
    assert contents(tmp_path / "s") == finished


def test_processes_share_a_job(class_pipe, finished, tmp_path, monkeypatch):
    class Process:
        num_processes = 2

        def __init__(self, rank):
            self.process_index = rank

    drawn, draw = [], ImageGenerationPipeline.draw
    monkeypatch.setattr(
        ImageGenerationPipeline, "draw", lambda self, *a, **b: drawn.append(a[1]) or draw(self, *a, **b)
    )
    monkeypatch.setattr("wvq.pipelines.sampling_job._sheet", lambda *_: Image.new("RGB", (8, 8)))
    for rank in (0, 1):  # the second starts when the first has drawn its share
        monkeypatch.setattr("wvq.pipelines.sampling_job.processes", lambda rank=rank: Process(rank))
        monkeypatch.setattr("wvq.pipelines.sampling_job.is_main_process", lambda rank=rank: rank == 0)
        decided = (lambda decide: decide()) if rank == 0 else (lambda _: None)
        monkeypatch.setattr("wvq.pipelines.sampling_job.decided_by_first_process", decided)
        sample_to_folder(class_pipe, tmp_path / "s", batch_size=2, **ASKED)
    assert sorted(seed for seeds in drawn for seed in seeds) == list(range(3, 9))
    pictures = {name: data for name, data in contents(tmp_path / "s").items() if name != "sheet.png"}
    assert pictures == {name: data for name, data in finished.items() if name != "sheet.png"}


def test_a_finished_job_draws_nothing(class_pipe, finished, tmp_path, monkeypatch):
    sample_to_folder(class_pipe, tmp_path / "s", **ASKED)
    monkeypatch.setattr(ImageGenerationPipeline, "draw", lambda *_, **__: pytest.fail("drawn again"))
    sample_to_folder(class_pipe, tmp_path / "s", resume=True, **ASKED)
    assert contents(tmp_path / "s") == finished


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seed", {"seed": 4}),
        ("num_images", {"num_images": 8}),
        ("class_labels", {"class_labels": ["circle", "square"]}),
        ("sampling", {"guidance_scale": 3.0}),
    ],
)
def test_another_job_does_not_go_on_in_its_place(name, change, class_pipe, tmp_path):
    sample_to_folder(class_pipe, tmp_path / "s", **ASKED)
    with pytest.raises(ConfigError, match=f"was started with another {name}; resume with"):
        sample_to_folder(class_pipe, tmp_path / "s", resume=True, **{**ASKED, **change})


def test_other_weights_do_not_go_on_in_their_place(class_pipe, tmp_path):
    sample_to_folder(class_pipe, tmp_path / "s", **ASKED)
    job = json.loads((tmp_path / "s" / "job.json").read_text())
    (tmp_path / "s" / "job.json").write_text(json.dumps(job | {"weights": {"generator": "0", "tokenizer": "0"}}))
    with pytest.raises(ConfigError, match="was started with another weights"):
        sample_to_folder(class_pipe, tmp_path / "s", resume=True, **ASKED)


def test_occupied_and_empty_folders(class_pipe, tmp_path):
    sample_to_folder(class_pipe, tmp_path / "s", **ASKED)
    with pytest.raises(ConfigError, match="already holds a job; pass --resume"):
        sample_to_folder(class_pipe, tmp_path / "s", **ASKED)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="already holds files"):
        sample_to_folder(class_pipe, tmp_path / "t", **ASKED)
    with pytest.raises(ConfigError, match=r"holds no job to resume \(job.json is missing\)"):
        sample_to_folder(class_pipe, tmp_path / "u", resume=True, **ASKED)
    assert not (tmp_path / "u").exists()


def test_a_batch_beyond_the_memory_is_refused_before_it_starts(class_pipe, tmp_path, monkeypatch):
    one, many = (drawing_bytes(class_pipe, batch, SamplingSettings(guidance_scale=2.0)) for batch in (1, 64))
    monkeypatch.setattr("wvq.memory.available_memory", lambda _: (one + many) // 2)
    class_pipe(num_images=64, batch_size=1, guidance_scale=2.0, seed=0)
    message = r"^sampling with batch_size 64 needs about 0\.0 GiB of memory where 0\.0 GiB are free; take a smaller"
    call = {"class_labels": [0], "num_images": 64, "batch_size": 64, "guidance_scale": 2.0}
    with pytest.raises(ConfigError, match=message):
        class_pipe(**call, seed=0)
    with pytest.raises(ConfigError, match=message):
        sample_to_folder(class_pipe, tmp_path / "s", **call)
    assert not (tmp_path / "s").exists()
    with pytest.raises(ConfigError, match=r"^log_likelihood with batch_size 4000 needs about"):
        class_pipe.log_likelihood(torch.zeros(4000, 4, 4, dtype=torch.int64), batch_size=4000)
    monkeypatch.setattr("wvq.memory.available_memory", lambda _: None)
    assert torch.is_tensor(class_pipe(num_images=64, batch_size=64, seed=0).codes)


def test_a_job_draws_as_many_at_once_as_it_is_told(class_pipe, tmp_path, monkeypatch):
    batches, run = [], type(class_pipe.tokenizer).decode_codes

    def watched(self, codes):
        batches.append(len(codes))
        return run(self, codes)

    monkeypatch.setattr(type(class_pipe.tokenizer), "decode_codes", watched)
    call = {"class_labels": [0], "num_images": 45, "seed": 0, "progress": False}
    sample_to_folder(class_pipe, tmp_path / "s", batch_size=40, **call)
    assert batches == [40, 5]


def test_deterministic_files_are_the_same_for_any_batch_and_say_so(class_pipe, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, batch_size in ((whole, 32), (parts, 1)):
        sample_to_folder(class_pipe, folder, batch_size=batch_size, deterministic=True, **ASKED)
    assert contents(whole) == contents(parts)
    assert read_settings(whole / "000003.png")["deterministic"] is True
    assert json.loads((whole / "job.json").read_text())["sampling"]["deterministic"] is True
    with pytest.raises(ConfigError, match="was started with another sampling"):
        sample_to_folder(class_pipe, whole, resume=True, **ASKED)


def test_a_job_that_does_not_know_the_setting_goes_on(class_pipe, finished, tmp_path):
    sample_to_folder(class_pipe, tmp_path / "s", batch_size=4, **ASKED)
    assert "deterministic" not in json.loads((tmp_path / "s" / "job.json").read_text())["sampling"]
    (tmp_path / "s" / "000004.png").unlink()
    sample_to_folder(class_pipe, tmp_path / "s", resume=True, **ASKED)
    assert contents(tmp_path / "s") == finished


# ---- pictures that are kept in part, and previews


@pytest.fixture
def edit(tmp_path):
    """Arguments of a job that draws the left half of a picture anew; both are files."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:, :8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return {"image": str(tmp_path / "a.png"), "mask_image": str(tmp_path / "mask.png")}


@pytest.mark.parametrize("kind", ["grid", "scales"])
def test_a_job_keeps_a_part_of_a_picture_and_says_of_which(kind, class_pipe, scale_pipe, edit, tmp_path):
    pipe = class_pipe if kind == "grid" else scale_pipe
    asked = ASKED | edit | {"deterministic": True}  # a batch of another size rounds differently
    files = sample_to_folder(pipe, tmp_path / "s", batch_size=4, **asked)
    expected = pipe(**{name: value for name, value in asked.items() if name != "progress"}).images
    assert [Image.open(file).tobytes() for file in files] == [picture.tobytes() for picture in expected]
    assert edit.items() <= read_settings(files[4]).items()
    assert "keep_scales" not in read_settings(files[4])
    assert re.search(r"kept in part +what a mask leaves of 1 given picture", describe(tmp_path / "s"))
    files[4].unlink()
    sample_to_folder(pipe, tmp_path / "s", resume=True, **asked)
    assert Image.open(files[4]).tobytes() == expected[4].tobytes()


def test_a_job_with_another_picture_or_mask_does_not_go_on(scale_pipe, edit, tmp_path):
    sample_to_folder(scale_pipe, tmp_path / "s", keep_scales=1, **ASKED, **edit)
    others = {
        "image": {**edit, "image": edit["mask_image"]},
        "mask_image": {**edit, "mask_image": edit["image"]},
        "keep_scales": {**edit, "keep_scales": 2},
    }
    for name, other in others.items():
        with pytest.raises(ConfigError, match=f"was started with another {name}; resume with"):
            sample_to_folder(scale_pipe, tmp_path / "s", resume=True, **ASKED, **{"keep_scales": 1, **other})
    assert "the first 1 scale(s) and what a mask leaves of 1 given" in describe(tmp_path / "s")
    moved = tmp_path / "moved.png"
    os.rename(edit["image"], moved)  # the same picture under another name goes on
    sample_to_folder(scale_pipe, tmp_path / "s", keep_scales=1, resume=True, **ASKED, **edit | {"image": moved})


def test_a_picture_that_does_not_fit_leaves_no_folder(class_pipe, edit, tmp_path):
    with pytest.raises(ConfigError, match="keep_scales needs a generator that draws scale by scale"):
        sample_to_folder(class_pipe, tmp_path / "s", keep_scales=1, **ASKED, **edit)
    with pytest.raises(ConfigError, match="previews need a generator that draws scale by scale"):
        sample_to_folder(class_pipe, tmp_path / "s", preview=True, **ASKED)
    assert not (tmp_path / "s").exists()


def test_a_preview_shows_the_batch_while_it_is_drawn(scale_pipe, tmp_path, monkeypatch):
    saved, save = [], Image.Image.save
    monkeypatch.setattr(
        Image.Image,
        "save",
        lambda self, file, **options: saved.append((file.name, self.copy())) or save(self, file, **options),
    )
    files = sample_to_folder(scale_pipe, tmp_path / "s", batch_size=4, preview=True, **ASKED)
    plain = sample_to_folder(scale_pipe, tmp_path / "plain", batch_size=4, **ASKED)
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in plain]
    assert not (tmp_path / "s" / "preview.png").exists()
    sheets = [picture for name, picture in saved if "preview.png" in name]
    assert len(sheets) == 3 * 2  # scales and batches
    assert sheets[0].size == sheets[2].size != sheets[3].size
    drawn = np.asarray(Image.open(files[0]).resize((128, 128), Image.Resampling.NEAREST))
    assert np.array_equal(np.asarray(sheets[2])[2:130, 2:130], drawn)  # the last scale's is the picture itself
    assert not np.array_equal(np.asarray(sheets[0])[2:130, 2:130], drawn)


def test_no_preview_is_left_where_a_job_was_stopped(scale_pipe, tmp_path, monkeypatch):
    def stop(self, *arguments, callback, **others):
        callback(0, [Image.new("RGB", (16, 16))])
        assert (tmp_path / "s" / "preview.png").exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ImageGenerationPipeline, "draw", stop)
    with pytest.raises(OSError, match="No space left"):
        sample_to_folder(scale_pipe, tmp_path / "s", preview=True, **ASKED)
    assert {file.name for file in (tmp_path / "s").iterdir()} == {"job.json"}


def test_two_processes_share_a_job_of_scales(scale_pipe, edit, tmp_path):
    plain = {**ASKED, "class_labels": None, "prompt": ["red circle", ""]}
    scale_pipe.save_pretrained(tmp_path / "pipeline")
    expected = sample_to_folder(scale_pipe, tmp_path / "s", batch_size=2, keep_scales=1, **plain, **edit)
    command = ["-m", "wvq", "sample", tmp_path / "pipeline", "--prompt", "red circle", "", "--num-images=6", "--seed=3"]
    command += ["--guidance-scale=2", "--batch-size=2", "--image", edit["image"], "--mask-image", edit["mask_image"]]
    command += ["--keep-scales=1", "--preview", f"--out={tmp_path / 'two'}"]
    ranks = run_ranks(command, 2)
    assert [done.returncode for done in ranks] == [0, 0], ranks[0].stderr
    for file in expected:
        assert Image.open(tmp_path / "two" / file.name).tobytes() == Image.open(file).tobytes()
    names = {file.name for file in (tmp_path / "two").iterdir()}
    assert names == {file.name for file in expected} | {"job.json", "sheet.png"}
