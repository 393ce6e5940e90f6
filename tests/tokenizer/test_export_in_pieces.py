"""An export writes its cache in pieces: one that was stopped goes on, and nothing half-written is taken for a cache."""

import shutil
from pathlib import Path

import pytest

from tests.processes import run_ranks
from tests.tokenizer.exports import assert_nothing_left, assert_same_rows
from wvq.data.codes import CodeDataset
from wvq.errors import ConfigError
from wvq.tokenizer import export, export_work
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.export_work import ExportWork


@pytest.fixture
def small_files(monkeypatch):
    """Files of 8 pictures: 6 of training pictures, and 2 of held-out ones."""
    monkeypatch.setattr(export_work, "FEWEST", 8)


@pytest.fixture
def in_all(monkeypatch):
    """How many rows have been encoded."""
    rows, codes = [], export._codes

    def counted(batch, *args):
        rows.append(len(batch["label"]))
        return codes(batch, *args)

    monkeypatch.setattr(export, "_codes", counted)
    return lambda: sum(rows)


def break_off(settings, count):
    """Export until some batches have been encoded, and break off."""
    codes, left = export._codes, [count]

    def stopping(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return codes(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_codes", stopping)
        with pytest.raises(KeyboardInterrupt):
            export_codes(settings)


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()}


def test_many_files_hold_the_rows_of_one(export_recipe, monkeypatch):
    one, many = export_recipe(num_crops=3, crop="random"), export_recipe(num_crops=3, crop="random", batch_size=6)
    export_codes(one)
    monkeypatch.setattr(export_work, "FEWEST", 8)
    export_codes(many)
    assert len(list(Path(many.out, "train").glob("*.arrow"))) == 6
    assert_same_rows(one.out, many.out)


def test_an_export_that_was_stopped_goes_on(export_recipe, small_files, in_all):
    whole, stopped = export_recipe(num_crops=2, crop="random"), export_recipe(num_crops=2, crop="random", batch_size=16)
    whole.out += "-whole"
    export_codes(whole)
    before = in_all()
    break_off(stopped, 4)  # in the fifth file
    assert not Path(stopped.out).exists()
    stopped.batch_size, stopped.num_workers, stopped.data.unreadable = 7, 1, "refuse"  # may change in between
    export_codes(stopped)
    assert in_all() - before < 1.3 * before
    assert contents(stopped.out) == contents(whole.out)
    assert not [path for path in Path(stopped.out).parent.iterdir() if path.name.startswith(".")]


def test_a_crash_at_the_end_leaves_no_cache_and_the_same_call_ends_it(export_recipe, in_all, monkeypatch):
    settings = export_recipe()

    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export, "_self_check", fail)
        with pytest.raises(KeyboardInterrupt):
            export_codes(settings)
    assert not Path(settings.out).exists()
    assert in_all() == 60
    export_codes(settings)
    assert in_all() == 60
    assert len(CodeDataset(settings.out)) == 48


def test_what_an_export_with_other_settings_has_left_is_refused_and_kept(export_recipe, small_files):
    settings = export_recipe(num_crops=2, crop="random")
    break_off(settings, 3)
    (work,) = Path(settings.out).parent.glob(".*.export")
    before = contents(work)
    assert sum(name.endswith(".arrow") for name in before) == 3
    settings.data.min_crop_fraction = 0.7
    with pytest.raises(ConfigError, match=r"left by an export with another crop_recipe\.train .*finish that one"):
        export_codes(settings)
    assert contents(work) == before


def test_a_folder_of_somebody_elses_is_refused_and_kept(export_recipe):
    settings = export_recipe()
    other = Path(settings.out).with_name(f".{Path(settings.out).name}.export")
    other.mkdir()
    (other / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match="holds other files"):
        export_codes(settings)
    assert (other / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize("obstacle", ["claim", "check"])
def test_of_two_processes_both_end_with_the_first_ones_reason(obstacle, export_recipe, tmp_path):
    settings = export_recipe(num_crops=1)
    out = Path(settings.out)
    if obstacle == "claim":
        other = out.with_name(f".{out.name}.export")
        other.mkdir()
        (other / "notes.txt").write_text("keep")
    data = [f"--data.path={settings.data.path}", "--data.image_size=16", "--data.validation_fraction=0.2"]
    command = ["export-codes", f"--out={out}", f"--tokenizer={settings.tokenizer}", "--num_workers=0", *data]
    script = f"""
import sys
from wvq.app.cli import main
from wvq.errors import CacheError
from wvq.tokenizer import export
def out_of_order(*_):
    raise CacheError("the rows are out of order")
if {obstacle == "check"}:
    export._self_check = out_of_order
sys.exit(main({command}))
"""
    reason = {"claim": "holds other files", "check": "the rows are out of order"}[obstacle]
    for done in run_ranks(["-c", script]):
        assert done.returncode == 2, done.stderr
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
    assert not out.exists()


def test_nothing_is_left_where_nothing_was_whole(export_recipe):
    settings = export_recipe()
    break_off(settings, 0)
    assert_nothing_left(settings)


def test_another_picture_in_the_folder_is_another_export(export_recipe, caption_folder, small_files, tmp_path):
    settings = export_recipe(batch_size=8)
    settings.data.path = str(shutil.copytree(caption_folder, tmp_path / "pictures"))
    break_off(settings, 3)
    file = tmp_path / "pictures" / "metadata.jsonl"
    file.write_text(file.read_text().replace("red circle", "round", 1))
    with pytest.raises(ConfigError, match=r"another pictures\."):
        export_codes(settings)


def test_the_working_folder_goes_and_other_files_in_it_stay(export_recipe, tmp_path, monkeypatch):
    settings = export_recipe()
    work = tmp_path / f".{Path(settings.out).name}.export"
    claim = ExportWork.claim

    def with_a_file_of_the_users(self):
        claim(self)
        (work / "marks").mkdir()
        (work / "marks" / "mine.txt").write_text("a")

    monkeypatch.setattr(ExportWork, "claim", with_a_file_of_the_users)
    export_codes(settings)
    assert len(CodeDataset(settings.out, "train")) > 0
    assert [str(path.relative_to(work)) for path in sorted(work.rglob("*"))] == ["marks", "marks/mine.txt"]
