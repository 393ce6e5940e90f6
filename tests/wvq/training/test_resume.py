"""Exact resume with the real tokenizer task, the moment window, memory layout and bfloat16."""

import pickle
import shutil

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from wvq.errors import CheckpointError
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import LossConfig, TokenizerTrainConfig
from wvq.tokenizer.task import TokenizerTask
from wvq.training.acceleration import build_accelerator
from wvq.training.tracking import read_log
from wvq.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


# ---- exact resume, with the real task


class Noise(Dataset):
    """Pictures in memory, with an augmentation that follows the position."""

    def __init__(self, length=24):
        self.pictures = torch.rand(length, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, key):
        position, index = key if isinstance(key, tuple) else (0, key)
        return {"pixel_values": self.pictures[index].roll(position % 5, dims=2)}


def tokenizer_trainer(folder, quantizer, dropout=0.2, **settings):
    config = TokenizerTrainConfig(
        **{
            "images": 96,
            "batch_size": 8,
            "learning_rate": 2e-3,
            "codebook_learning_rate": 0.02,
            "weight_decay": 0.01,
            "log_every": 8,
            "ema_decay": 0.9,
            "save_every": 48,
            **settings,
        }
    )
    torch.manual_seed(0)
    shape = {"image_size": 16, "patch_size": 2, "base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1}
    model = WassersteinVQModel(
        WassersteinVQConfig(**shape, attention=False, dropout=dropout, num_codes=16, code_dim=3, quantizer=quantizer)
    )
    task = TokenizerTask(ReconstructionLoss(LossConfig()), Noise(8), config)
    return Trainer(task, model, Noise(), config, folder, build_accelerator(config))


def rows_without_clock(folder):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in read_log(folder)]


@pytest.mark.parametrize(
    ("quantizer", "workers", "parts", "log_every"),
    [
        ("vanilla", 0, 1, 8),
        ("wasserstein", 0, 1, 8),
        ("wasserstein", 0, 2, 8),
        ("ema", 0, 2, 8),
        ("sliced", 1, 1, 8),
        ("sliced", 0, 1, 32),
    ],
)
def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(tmp_path, quantizer, workers, parts, log_every):
    """Also with the checkpoint between two log lines: a row is the mean of all steps since the last one."""
    options = {"gradient_accumulation_steps": parts, "log_every": log_every}
    whole = tokenizer_trainer(tmp_path / "whole", quantizer, **options)
    result = whole.run()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "000000000096")
    torch.manual_seed(99)
    cut = tokenizer_trainer(tmp_path / "cut", quantizer, num_workers=workers, **options)
    resumed = cut.run(resume=True)
    assert rows_without_clock(tmp_path / "cut") == rows_without_clock(tmp_path / "whole")
    for a, b in ((whole.raw_model, cut.raw_model), (whole.ema.model, cut.ema.model)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    clock = ("seconds", "images_per_second")
    assert {k: v for k, v in result.items() if k not in clock} == {k: v for k, v in resumed.items() if k not in clock}


def test_a_resumed_run_gets_its_window_back(tmp_path):
    whole = tokenizer_trainer(tmp_path, "wasserstein")
    whole.run()
    cut = tokenizer_trainer(tmp_path, "wasserstein")
    assert len(cut.raw_model.quantizer.window) == 0
    cut.load_latest()
    window, expected = cut.raw_model.quantizer.window, whole.raw_model.quantizer.window
    assert len(window) == len(expected) == 96 * 16
    assert all(torch.equal(a, b) for a, b in zip(window.moments(), expected.moments(), strict=True))


def test_the_memory_layout_changes_rounding_only(tmp_path):
    plain, other = (
        tokenizer_trainer(tmp_path / str(flag), "sliced", dropout=0.0, channels_last=flag, images=32, save_every=0)
        for flag in (False, True)
    )
    convolution = next(m for m in other.raw_model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert other.run()["psnr_rgb"] == pytest.approx(plain.run()["psnr_rgb"], abs=0.05)
    first, second = (read_log(tmp_path / str(flag))[0] for flag in (False, True))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert second["gradient_norm_network"] == pytest.approx(first["gradient_norm_network"], rel=1e-4)


def test_bfloat16_trains_and_averages(tmp_path):
    run = tokenizer_trainer(tmp_path, "sliced", mixed_precision="bf16", save_every=0)
    result = run.run()
    rows = [row for row in read_log(tmp_path) if row["kind"] == "train"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(p.dtype == torch.float32 for p in run.averaged_model.parameters())
    run.averaged_model.save_pretrained(tmp_path / "model")
    loaded = WassersteinVQModel.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.quantizer.codebook, run.ema.model.quantizer.codebook)
    assert result["skipped_steps"] == 0


# ---- damaged checkpoints


class Payload:
    """Leaves a file behind if anything unpickles it."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_checkpoints_are_refused_and_their_pickles_run_nothing(tmp_path):
    tokenizer_trainer(tmp_path / "run", "sliced", images=48).run()
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    files = [file for file in sorted(checkpoint.iterdir()) if file.is_file()]
    assert {file.suffix for file in files} >= {".safetensors", ".bin", ".pkl"}
    for file in files:
        content, marker = file.read_bytes(), tmp_path / "executed"
        for damage in ("cut", "pickle", "payload"):
            if damage == "cut":
                file.write_bytes(content[: len(content) // 2])
            elif damage == "pickle":
                file.write_bytes(pickle.dumps(Payload(marker)))
            else:
                torch.save(Payload(marker), file)
            trainer = tokenizer_trainer(tmp_path / "run", "sliced", images=96)
            if file.name.startswith("random_states"):  # nothing follows from them: a step is seeded by its pictures
                trainer.load_latest()
            else:
                with pytest.raises(CheckpointError, match=rf"{checkpoint} cannot be read") as caught:
                    trainer.load_latest()
                assert "\n" not in str(caught.value), file
            assert not marker.exists(), file
        file.write_bytes(content)
    assert tokenizer_trainer(tmp_path / "run", "sliced", images=96).run(resume=True)["images"] == 96
