"""Commands on a disk that is full, and on one that cannot be written: one line, and what was whole stays whole."""

import subprocess

import pytest

from tests.tiny import save_pipeline
from wvq.app.cli import main


@pytest.fixture(scope="module")
def pipeline_dir(tiny_tokenizer_dir, tmp_path_factory):
    return save_pipeline(tiny_tokenizer_dir, tmp_path_factory.mktemp("disks"))


@pytest.fixture
def disk(tmp_path):
    """A function that makes a file system of its own, of some kB, and how to forbid writing to it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here ({done.stderr.decode().strip()}): this needs root")

    def make(kilobytes: int):
        mount("-o", f"size={kilobytes}k")
        return folder

    make.read_only = lambda: mount("-o", "remount,ro")
    make.grow = lambda kilobytes: mount("-o", f"remount,size={kilobytes}k")
    yield make
    subprocess.run(["umount", folder], capture_output=True, check=False)


@pytest.fixture
def commands(pipeline_dir, picture_folder):
    """A function of the output folder: the commands that write, by name."""

    def of(out) -> dict[str, list]:
        data = [f"--data.path={picture_folder}", "--data.image_size=16"]
        tiny = ["--model.patch_size=2", "--model.base_channels=8", "--model.channel_multipliers=[1, 2]"]
        tiny += ["--model.num_res_blocks=1", "--model.attention=false", "--model.num_codes=16", "--model.code_dim=3"]
        return {
            "train": ["train-tokenizer", *data, *tiny, "--train.images=32", f"--out={out / 'tokenizer'}"],
            "export": ["export-codes", *data, f"--tokenizer={pipeline_dir / 'tokenizer'}", f"--out={out / 'codes'}"],
            "sample": ["sample", pipeline_dir, "--num_images=64", f"--out={out / 'samples'}"],
            "evaluate": [
                "evaluate",
                "generation",
                pipeline_dir,
                *data,
                "--num_images=48",
                "--batch_size=6",
                f"--out={out / 'r.json'}",
            ],
        }

    return of


NAMES = ("train", "export", "sample", "evaluate")
WHOLE = {"export": "codes", "train": "tokenizer/model.safetensors", "evaluate": "r.json", "sample": "samples/sheet.png"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("fresh_accelerator")
def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_whole(name, disk, commands, fails):
    folder = disk(24)
    line = fails(*commands(folder)[name])
    assert "No space left on device" in line
    assert str(folder) in line
    assert not (folder / WHOLE[name]).exists()


@pytest.mark.usefixtures("fresh_accelerator")
def test_with_more_room_the_same_command_goes_on(disk, commands, fails, capsys):
    folder = disk(64)
    fails(*commands(folder)["evaluate"])
    kept = {file.name: file.read_bytes() for file in (folder / "r.json.partial").glob("*.safetensors")}
    assert kept  # batches that were whole
    disk.grow(4_000)
    assert main([str(argument) for argument in commands(folder)["evaluate"]]) == 0
    assert (folder / "r.html").exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("fresh_accelerator")
def test_a_read_only_disk_is_one_line(name, disk, commands, fails):
    folder = disk(64)
    disk.read_only()
    line = fails(*commands(folder)[name])
    assert "Read-only file system" in line
    assert str(folder) in line


@pytest.mark.usefixtures("fresh_accelerator")
def test_an_evaluation_needs_no_cache(disk, commands, tmp_path, monkeypatch, capsys):
    folder = disk(64)
    disk.read_only()
    monkeypatch.setenv("WVQ_CACHE", str(folder / "cache"))
    with pytest.warns(UserWarning, match=r"cache/references cannot be written .*; set WVQ_CACHE"):
        assert main([str(argument) for argument in commands(tmp_path)["evaluate"]]) == 0
    assert "result in" in capsys.readouterr().out
