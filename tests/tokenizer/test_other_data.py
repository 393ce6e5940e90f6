"""Stages on other pictures than those before them: what is said, what is refused, and what the folders keep of it."""

import shutil
import warnings
from dataclasses import replace

import pytest
import torch

from tests.drawings import write_pictures
from wvq.errors import ConfigError
from wvq.files.fingerprint import DataFingerprint, number_new
from wvq.settings.data import DataConfig
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.export_work import ExportWork
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import ExportRecipe, TokenizerRecipe
from wvq.tokenizer.train import train_tokenizer
from wvq.training.checkpoints import find_checkpoints


@pytest.fixture
def pictures(tmp_path):
    """60 training and 12 held-out pictures, in folders of their own."""
    write_pictures(tmp_path / "pictures" / "train")
    write_pictures(tmp_path / "pictures" / "val", per_class=4, seed=1)
    return tmp_path / "pictures"


@pytest.fixture
def make(tmp_path, pictures, tiny_tokenizer_recipe):
    """A function that makes the recipe of 3 steps, some fields of its data changed."""

    def recipe(name="tokenizer", start=None, **data) -> TokenizerRecipe:
        loop = {"images": 48, "log_every": 16, "save_every": 16, "keep_checkpoints": 9}
        whole = tiny_tokenizer_recipe(tmp_path / name, train=loop, data={"path": str(pictures), **data})
        return whole if start is None else replace(whole, start=str(start), model={})

    return recipe


@pytest.fixture
def export(tmp_path, pictures, tiny_data):
    """A function that makes the recipe of an export by the tokenizer, some fields of its data changed."""

    def recipe(**data) -> ExportRecipe:
        settings = tiny_data(pictures, **data)
        return ExportRecipe(out=str(tmp_path / "codes"), tokenizer=str(tmp_path / "tokenizer"), data=settings)

    return recipe


def stop_before_the_end(out):
    """What a run leaves that was stopped after its second step."""
    for name in ("result.json", "model.safetensors", "wvq_checksums.json"):
        (out / name).unlink()
    shutil.rmtree(find_checkpoints(out / "training")[-1])


def change(pictures):
    """Twelve training pictures are new, three are gone."""
    more = pictures.parent / "more"
    write_pictures(more, per_class=4, seed=2)
    for file in more.rglob("*.png"):
        file.rename(pictures / "train" / file.parent.name / f"new{file.name}")
    for file in pictures.glob("train/*/00.png"):
        file.unlink()


CHANGED = "was trained on other pictures: 12 of 69 training pictures are new, 3 are gone"


@pytest.fixture
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---- a tokenizer's own run


def test_a_run_keeps_its_fingerprint_beside_its_weights(make, tmp_path):
    train_tokenizer(make())
    kept = DataFingerprint.read(tmp_path / "tokenizer")
    assert (kept.train.count, kept.validation.count, kept.earlier) == (60, 12, None)
    assert WassersteinVQModel.from_pretrained(tmp_path / "tokenizer").data_fingerprint.summary() == kept.summary()


@pytest.mark.usefixtures("silent")
def test_a_run_goes_on_where_its_folder_of_pictures_has_moved(make, pictures, tmp_path):
    train_tokenizer(make())
    expected = WassersteinVQModel.from_pretrained(tmp_path / "tokenizer").state_dict()
    stop_before_the_end(tmp_path / "tokenizer")
    pictures.rename(tmp_path / "moved")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the run goes on with another data.path")
        train_tokenizer(make(path=str(tmp_path / "moved")), resume=True)
    resumed = WassersteinVQModel.from_pretrained(tmp_path / "tokenizer").state_dict()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_a_run_of_an_earlier_version_goes_on_in_its_own_folder_of_pictures_alone(make, pictures, tmp_path):
    train_tokenizer(make())
    stop_before_the_end(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "data_fingerprint.json").unlink()
    change(pictures)
    shutil.copytree(pictures, tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"was started with another data\.path"):
        train_tokenizer(make(path=str(tmp_path / "moved")), resume=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_tokenizer(make(), resume=True)
    assert DataFingerprint.read(tmp_path / "tokenizer").train.count == 69


def test_a_resumed_run_on_other_pictures_says_so_and_remembers_those_that_are_gone(make, pictures, tmp_path):
    train_tokenizer(make())
    before = DataFingerprint.read(tmp_path / "tokenizer")
    stop_before_the_end(tmp_path / "tokenizer")
    change(pictures)
    with pytest.warns(UserWarning, match=f"tokenizer {CHANGED}$"):
        train_tokenizer(make(), resume=True)
    kept = DataFingerprint.read(tmp_path / "tokenizer")
    assert (kept.train.count, kept.earlier.count, kept.trained_on.count) == (69, 60, 72)
    assert number_new(kept.trained_on, before.train) == 0


def test_a_run_that_has_ended_is_not_compared(make, pictures, tmp_path):
    train_tokenizer(make())
    before = (tmp_path / "tokenizer" / "data_fingerprint.json").read_bytes()
    change(pictures)
    with pytest.warns(UserWarning, match="has come to its end") as caught:
        train_tokenizer(make(), resume=True)
    assert len(caught) == 1
    assert (tmp_path / "tokenizer" / "data_fingerprint.json").read_bytes() == before


def test_a_resumed_run_whose_pictures_are_held_out_otherwise_is_refused(make, pictures, tmp_path):
    """The hold-out is drawn anew when pictures come: most of those that are held out now were trained on."""
    path = str(pictures / "train")
    train_tokenizer(make(path=path))
    stop_before_the_end(tmp_path / "tokenizer")
    change(pictures)
    before = (tmp_path / "tokenizer" / "data_fingerprint.json").read_bytes()
    mixed = (
        r"tokenizer was trained on \d+ of these 14 held-out pictures and held out \d+ of these 55 training pictures "
        r"\(12 of 69 pictures are new, 3 are gone\): restore the files, or accept it with "
        "--data.ignore_mixed_split true$"
    )
    with pytest.raises(ConfigError, match=mixed):
        train_tokenizer(make(path=path), resume=True)
    assert (tmp_path / "tokenizer" / "data_fingerprint.json").read_bytes() == before
    with pytest.warns(UserWarning, match=r"was trained on \d+ of these 14 held-out pictures and held out \d+ of these"):
        train_tokenizer(make(path=path, ignore_mixed_split=True), resume=True)


# ---- a start from another tokenizer


def test_a_tokenizer_that_starts_from_another_knows_the_pictures_of_both(make, pictures, tmp_path):
    train_tokenizer(make())
    change(pictures)
    with pytest.warns(UserWarning, match=f"tokenizer {CHANGED}$"):
        train_tokenizer(make("refined", start=tmp_path / "tokenizer"))
    kept = DataFingerprint.read(tmp_path / "refined")
    assert (kept.train.count, kept.earlier.count) == (69, 60)


def test_a_start_from_a_tokenizer_that_was_trained_on_what_is_held_out_is_refused(make, pictures, tmp_path):
    train_tokenizer(make(path=str(pictures / "train")))
    start = make("refined", start=tmp_path / "tokenizer", path=str(pictures / "train"), seed=1)
    otherwise = r"was trained on \d+ of these 12 held-out pictures \(the same pictures, held out otherwise\): set "
    with pytest.raises(ConfigError, match=f"{otherwise}--data.seed 0, or accept it with"):
        train_tokenizer(start)
    assert not (tmp_path / "refined").exists()
    start.data.ignore_mixed_split = True
    with pytest.warns(UserWarning, match="was trained on .* of these 12 held-out pictures"):
        train_tokenizer(start)


# ---- an export


@pytest.mark.usefixtures("silent")
def test_an_export_of_the_same_pictures_keeps_their_fingerprint(make, export, tmp_path):
    train_tokenizer(make())
    export_codes(export(crop="random", flip=True))
    kept = [DataFingerprint.read(tmp_path / name).summary() for name in ("tokenizer", "codes")]
    assert kept[0] == kept[1]


def test_an_export_of_other_pictures_says_so(make, export, pictures, tmp_path):
    train_tokenizer(make())
    change(pictures)
    with pytest.warns(UserWarning, match=f"tokenizer {CHANGED}$"):
        export_codes(export())
    assert DataFingerprint.read(tmp_path / "codes").train.count == 69


def test_an_export_that_holds_out_what_was_trained_on_is_refused(make, export, pictures, tmp_path):
    path = str(pictures / "train")
    train_tokenizer(make(path=path))
    with pytest.raises(ConfigError, match=r"\(the same pictures, held out otherwise\): set --data.seed 0, or accept"):
        export_codes(export(path=path, seed=5))
    assert [file.name for file in tmp_path.iterdir() if "codes" in file.name] == []
    with pytest.warns(UserWarning, match=r"tokenizer was trained on \d+ of these 12 held-out pictures$"):
        export_codes(export(path=path, seed=5, ignore_mixed_split=True))


def test_a_tokenizer_of_an_earlier_version_is_compared_by_its_recipe(make, export, pictures, tmp_path):
    path = str(pictures / "train")
    train_tokenizer(make(path=path))
    (tmp_path / "tokenizer" / "data_fingerprint.json").unlink()
    with pytest.warns(UserWarning, match="was trained with data.seed 0 and here it is 5: held-out pictures may have"):
        export_codes(export(path=path, seed=5))


def test_an_export_that_was_stopped_goes_on_when_it_is_accepted(make, export, pictures, tmp_path, monkeypatch):
    path = str(pictures / "train")
    train_tokenizer(make(path=path))
    with monkeypatch.context() as patch:
        patch.setattr(ExportWork, "join", lambda work: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            export_codes(export(path=path))
    with monkeypatch.context() as patch:
        patch.setattr(ExportWork, "write", lambda *_: pytest.fail("all files are there"))
        export_codes(export(path=path, ignore_mixed_split=True))
    assert DataFingerprint.read(tmp_path / "codes").train.count == 48


def test_the_override_is_a_flag():
    with pytest.raises(ConfigError, match=r"data\.ignore_mixed_split must be true or false"):
        DataConfig(ignore_mixed_split="yes").check()
