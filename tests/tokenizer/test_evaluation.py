"""Measuring a tokenizer on a set with unreadable pictures: they are left out, as if they had never been there."""

import shutil

import pytest
from tqdm import tqdm

from wvq.data.dataset import load_images
from wvq.errors import DataError
from wvq.tokenizer.evaluation import evaluate_tokenizer
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.task import reconstruction_sheet


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir):
    return WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)


@pytest.fixture
def pictures(tmp_path, picture_folder, tiny_data):
    """A function that breaks some files of a copy of the pictures, or removes them, and reads it whole."""

    def read(*names, remove=False):
        folder = tmp_path / ("removed" if remove else "broken")
        shutil.copytree(picture_folder, folder / "train")
        shutil.copytree(picture_folder, folder / "validation")
        for name in names:
            file = folder / "validation" / name
            file.unlink() if remove else file.write_bytes(file.read_bytes()[:60])
        return load_images(tiny_data(folder)).validation

    return read


BROKEN = ("circle/02.png", "circle/03.png", "cross/11.png")


def test_figures_are_those_of_the_set_without_them(tokenizer, pictures):
    with pytest.warns(UserWarning, match=r"3 of 60 pictures cannot be read: .*02\.png .* left out of evaluation"):
        broken = evaluate_tokenizer(tokenizer, pictures(*BROKEN), batch_size=7)
    removed = evaluate_tokenizer(tokenizer, pictures(*BROKEN, remove=True), batch_size=7)
    assert (broken["num_images"], broken["num_unreadable"]) == (57, 3)
    assert broken | {"num_unreadable": 0} == removed


def test_a_log_gets_no_codes_that_move_the_cursor(tokenizer, pictures, capfd):
    dataset = pictures()
    capfd.readouterr()
    with tqdm(total=1, desc="tokenizer"):
        evaluate_tokenizer(tokenizer, dataset, progress=True)
    shown = capfd.readouterr().err
    assert "tokenizer" in shown
    assert "\x1b" not in shown


def test_no_error_at_the_end_of_a_run_unless_nothing_is_left(tokenizer, pictures, monkeypatch):
    monkeypatch.setattr("wvq.data.dataset.probe", lambda dataset: None)
    dataset = pictures(*(f"{shape}/{i:02d}.png" for shape in ("circle", "cross", "square") for i in range(1, 20)))
    with pytest.warns(UserWarning, match="57 of 60 pictures cannot be read"):
        assert evaluate_tokenizer(tokenizer, dataset)["num_images"] == 3
    dataset.store._failures = dict.fromkeys(range(60), ("x.png", "gone"))
    with pytest.raises(DataError, match=r"60 of 60 pictures cannot be read: x.png \(gone\), .*nothing is left"):
        evaluate_tokenizer(tokenizer, dataset)


def test_the_sheet_shows_the_others(tokenizer, pictures):
    dataset = pictures("circle/00.png", "circle/07.png")
    assert (
        reconstruction_sheet(tokenizer, dataset, 8).width == reconstruction_sheet(tokenizer, dataset, 60).width * 6 // 8
    )
    dataset.store._failures = dict.fromkeys((0, 30), ("x.png", "gone"))
    assert reconstruction_sheet(tokenizer, dataset, 2).width > 0  # neither of the two that it would show
