"""A command that cannot read its pictures ends with one line and leaves no folder and no file behind."""

import shutil

import pytest


@pytest.fixture
def unreadable(tmp_path, picture_folder):
    """The pictures of which one has a name that is not UTF-8."""
    folder = tmp_path / "pictures"
    shutil.copytree(picture_folder, folder)
    (folder / "circle" / "00.png").rename(folder / "circle" / "caf\udce9.png")
    return folder


def commands(tokenizer, pipeline):
    return {
        "train-tokenizer": ["train-tokenizer", "--data.path={data}"],
        "export-codes": ["export-codes", "--data.path={data}", "--data.image_size=16", f"--tokenizer={tokenizer}"],
        "quickstart": ["quickstart", "--data={data}"],
        "reconstruction": ["evaluate", "reconstruction", tokenizer, "--data.path={data}", "--data.image_size=16"],
        "generation": ["evaluate", "generation", pipeline, "--data.path={data}", "--num_images=6"],
    }


@pytest.mark.parametrize("name", commands("", ""))
def test_nothing_is_left_behind(name, unreadable, tmp_path, tiny_tokenizer_dir, pipeline_dir, fails):
    command = [str(part).format(data=unreadable) for part in commands(tiny_tokenizer_dir, pipeline_dir)[name]]
    before = sorted(tmp_path.rglob("*"))
    line = fails(*command, f"--out={tmp_path / 'new' / 'out.json'}")
    assert r"circle/caf\xe9.png: this name is not UTF-8 text" in line
    assert sorted(tmp_path.rglob("*")) == before
