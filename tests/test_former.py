"""What the version before wrote is loaded, repeated and continued: codes, pictures, checkpoints and first losses.

To the last bit on a machine like the one it was written on; elsewhere, where sums are rounded in another order, as far
as the first steps go.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.former import write
from wvq import CodeDataset

SAVED = Path(__file__).parent / "former" / "saved"
LOSSES = json.loads((SAVED / "losses.json").read_text())
ALIKE = LOSSES["machine"] == write.machine()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A copy of what was saved, as the current folder."""
    shutil.copytree(SAVED, tmp_path / "saved")
    monkeypatch.chdir(tmp_path / "saved")
    return tmp_path / "saved"


def assert_repeated(found: dict[str, list[float]], before: dict[str, list[float]]) -> None:
    assert found.keys() == before.keys()
    for name, values in before.items():
        assert len(found[name]) == len(values)
        if ALIKE:
            assert found[name] == values, name
        else:
            np.testing.assert_allclose(found[name][:3], values[:3], rtol=1e-3, err_msg=name)


def assert_same_weights(folder: Path, before: Path) -> None:
    most = 0.0 if ALIKE else 0.1
    weights = load_file(folder / "model.safetensors")
    for name, value in load_file(before / "model.safetensors").items():
        torch.testing.assert_close(weights.pop(name), value, rtol=most, atol=most)
    assert not weights


@pytest.mark.parametrize("name", LOSSES["tokenizers"])
def test_tokenizers_have_the_same_first_losses(name, here):
    write.train_tokenizer(name, Path("again"))
    assert_repeated(write.losses(Path("again")), LOSSES["tokenizers"][name])


@pytest.mark.parametrize("name", LOSSES["generators"])
def test_generators_have_the_same_first_losses(name, here):
    write.train_generator(name, Path("again"))
    assert_repeated(write.losses(Path("again/generator")), LOSSES["generators"][name])


def test_every_method_and_layout_is_among_them():
    from wvq.tokenizer.quantizers.registry import METHODS

    assert {*(method.name for method in METHODS), "product", "multiscale"} <= set(LOSSES["tokenizers"])


def test_a_saved_tokenizer_gives_the_saved_codes(here):
    write.export(Path("again"))
    for split in ("train", "validation"):
        before, now = (CodeDataset(here / name, split) for name in ("codes", "again"))
        assert len(before) == len(now) > 0
        pairs = [(before[(0, i)], now[(0, i)]) for i in range(len(before))]
        same = torch.stack([(then["codes"] == found["codes"]).float().mean() for then, found in pairs]).mean()
        assert same == 1 if ALIKE else same > 0.95
        assert all(then.keys() == found.keys() for then, found in pairs)


@pytest.mark.parametrize("name", write.SAMPLES)
def test_a_saved_pipeline_draws_the_saved_pictures(name, here):
    write.sample(Path("again"), *write.SAMPLES[name])
    before = sorted((here / name).glob("0*.png"))
    assert len(before) == 6
    for file in before:
        then, now = (np.asarray(Image.open(found), int) for found in (file, here / "again" / file.name))
        assert then.shape == now.shape == (16, 16, 3)
        assert np.abs(then - now).mean() <= (0 if ALIKE else 40)


@pytest.mark.parametrize(
    ("train", "name", "folder"),
    [(write.train_tokenizer, "adversarial", "tokenizer"), (write.train_generator, "text", "pipeline/generator")],
)
def test_a_saved_checkpoint_is_gone_on_with(train, name, folder, here):
    run = Path(folder)
    (run / "result.json").unlink()
    shutil.copytree(run, "before")
    (run / "model.safetensors").unlink()
    train(name, Path(folder.split("/")[0]), "--train.save_every=160", "--resume")
    assert_repeated(write.losses(run), LOSSES[f"{folder.split('/')[-1]}s"][name])
    assert_same_weights(run, Path("before"))
