"""Options of the training loop that change how a step is computed and not what: checkpointing, compilation, scaling."""

from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.utils.data import Dataset
from tqdm import tqdm

from wvq.errors import ConfigError
from wvq.settings.train import TrainConfig
from wvq.tokenizer.adversarial import Adversary
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.networks import ResBlock
from wvq.tokenizer.recipes import DiscriminatorConfig, LossConfig, TokenizerTrainConfig
from wvq.tokenizer.task import TokenizerTask
from wvq.training.acceleration import build_accelerator
from wvq.training.tracking import read_log
from wvq.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


class Noise(Dataset):
    """Pictures in memory; the pictures at the positions named are NaN."""

    def __init__(self, spoiled=()):
        self.pictures = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.spoiled = set(spoiled)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, key):
        position, index = key if isinstance(key, tuple) else (-1, key)
        return {"pixel_values": self.pictures[index] * (float("nan") if position in self.spoiled else 1.0)}


def make_trainer(folder, data=None, scale=None, judge=None, freeze=(), multipliers=(1,), **settings):
    config = TokenizerTrainConfig(
        **{"images": 48, "batch_size": 8, "learning_rate": 1e-3, "log_every": 8, "ema_decay": 0.5, **settings}
    )
    torch.manual_seed(0)
    shape = {"image_size": 16, "patch_size": 2, "base_channels": 8, "num_res_blocks": 1}
    shape |= {"channel_multipliers": list(multipliers)}
    model = WassersteinVQModel(WassersteinVQConfig(**shape, num_codes=16, code_dim=3, dropout=0.1))
    model.freeze(freeze)
    sizes = {"network": "patchgan", "base_channels": 8, "num_layers": 1}
    adversary = Adversary(DiscriminatorConfig(**sizes, lecam_weight=0.1, **(judge or {})))
    task = TokenizerTask(ReconstructionLoss(LossConfig()), Noise(), config, adversary)
    accelerator = build_accelerator(config)
    if scale is not None:  # accelerate makes one on GPUs only
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return Trainer(task, model, data or Noise(), config, folder, accelerator)


def figures(folder, *names):
    return [[row[name] for name in names] for row in read_log(folder) if row["kind"] == "train"]


def test_recomputed_activations_change_nothing(tmp_path):
    plain, other = (
        make_trainer(tmp_path / str(flag), gradient_checkpointing=flag, save_every=0) for flag in (False, True)
    )
    assert not any(m.gradient_checkpointing for m in plain.raw_model.modules() if isinstance(m, ResBlock))
    assert all(m.gradient_checkpointing for m in other.raw_model.modules() if isinstance(m, ResBlock))
    plain.run()
    other.run()
    names = ("loss", "adversarial_weight", "discriminator_loss", "gradient_norm_network")
    assert figures(tmp_path / "True", *names) == figures(tmp_path / "False", *names)


@pytest.mark.parametrize("scale", [2.0**4, 2.0**12])
def test_scaled_gradients_give_the_same_steps_of_both_optimisers(tmp_path, scale):
    plain, scaled = make_trainer(tmp_path / "plain"), make_trainer(tmp_path / "scaled", scale=scale)
    plain.run()
    scaled.run()
    for a, b in ((plain.raw_model, scaled.raw_model), (plain.task.adversary, scaled.task.adversary)):
        for x, y in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [None, 2.0**4])
def test_both_optimisers_skip_a_step_that_is_not_finite_and_count_it(tmp_path, scale):
    run = make_trainer(tmp_path, data=Noise(spoiled=[17]), scale=scale)
    result = run.run()
    assert result["skipped_steps"] == 1
    assert result["skipped_discriminator_steps"] == 1
    for module in (run.raw_model, run.task.adversary, run.ema.model):
        assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    if scale is not None:
        assert run.accelerator.scaler.get_scale() == scale / 2


def test_a_weight_of_the_adversary_that_is_not_finite_skips_the_step_of_the_model(tmp_path, monkeypatch):
    run, losses = make_trainer(tmp_path, judge={"generator_start_images": 16}), []
    generator_loss = run.task.adversary.generator_loss

    def overflowing(reconstruction):
        losses.append(generator_loss(reconstruction))
        return losses[-1] * (1e30 if len(losses) == 2 else 1)  # a finite gradient whose norm is not

    monkeypatch.setattr(run.task.adversary, "generator_loss", overflowing)
    result = run.run()
    assert result["skipped_steps"] == 1
    assert result["skipped_discriminator_steps"] == 0
    assert all(torch.isfinite(value).all() for value in run.raw_model.state_dict().values())


@pytest.fixture
def captured(monkeypatch):
    """torch.compile that traces forward and backward as ever, but runs the traced operations without a compiler."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("captured")
def test_compilation_leaves_names_and_average_alone(tmp_path):
    run = make_trainer(tmp_path, compile=True)
    model, average = run.raw_model, run.ema.model
    assert model.encoder._compiled_call_impl is not None
    assert model.decoder._compiled is not None
    assert average.encoder._compiled_call_impl is None
    assert average.decoder._compiled is None
    assert model.state_dict().keys() == average.state_dict().keys()


@pytest.mark.usefixtures("captured")
def test_an_evaluation_compiles_nothing(tmp_path):
    run = make_trainer(tmp_path, compile=True, ema_decay=0.0, images=24, evaluate_every=16)
    run.run()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 2  # encoder and decoder
    run._evaluate(None, tqdm(disable=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_without_a_compiler_training_goes_on_and_says_so(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("Cannot find a working triton installation.\nMore")

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    with pytest.warns(UserWarning, match="train.compile: torch.compile fails here .*; training goes on without it"):
        run = make_trainer(tmp_path, compile=True, images=16)
    assert run.raw_model.decoder._compiled is None
    (warning,) = run.run()["warnings"]
    assert "working triton" in warning
    assert "\n" not in warning


# Nothing of the adversary in the first two steps; two in which it trains alone; two of the ramp; two at full weight. R1
# falls on every second one.
PHASES = {"start_images": 16, "generator_start_images": 32, "ramp_images": 16, "r1_weight": 0.1, "r1_interval": 2}
PHASES |= {"consistency_weight": 0.1}


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize(
    ("judge", "freeze", "settings"),
    [
        ({}, [], {}),
        ({"augment": True}, [], {"channels_last": True, "gradient_checkpointing": True, "multipliers": (1, 2)}),
        ({"max_adaptive_weight": 0.01}, ["encoder", "quantizer"], {"gradient_accumulation_steps": 2}),
        ({"adaptive_weight": False}, ["decoder"], {}),
    ],
)
def test_a_compiled_run_goes_through_every_phase_of_the_adversary(judge, freeze, settings, tmp_path):
    settings |= {"images": 72, "evaluate_every": 24, "judge": {**PHASES, **judge}, "freeze": freeze}
    for flag in (False, True):
        make_trainer(tmp_path / str(flag), compile=flag, **settings).run()
    logs = [read_log(tmp_path / name) for name in ("False", "True")]
    rows, compiled = ([row for row in log if row["kind"] == "train"] for log in logs)
    assert ["adversarial_weight" in row for row in rows] == [False, False, *[True] * 7]
    assert [row.get("adversarial_weight", 0.0) > 0 for row in rows] == [*[False] * 5, *[True] * 4]
    assert ["r1" in row for row in rows] == [i >= 2 and i % 2 == 0 for i in range(9)]
    for row, other in zip(rows, compiled, strict=True):
        assert row.keys() == other.keys()
        names = ("loss", "l2", "adversarial_weight", "discriminator_loss", "gradient_norm_network")
        for name in row.keys() & set(names):
            assert other[name] == pytest.approx(row[name], rel=1e-3), (name, row["images"])


@pytest.mark.study
def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path):
    for flag in (False, True):
        make_trainer(tmp_path / str(flag), compile=flag).run()
    plain, compiled = (torch.tensor(figures(tmp_path / str(flag), "loss", "l2")) for flag in (False, True))
    torch.testing.assert_close(compiled, plain, rtol=1e-2, atol=1e-3)


def test_too_little_memory_is_one_line(tmp_path, monkeypatch):
    def fill(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")

    run = make_trainer(tmp_path, gradient_accumulation_steps=2)
    monkeypatch.setattr(run.task, "loss", fill)
    with pytest.raises(ConfigError, match=r"4 pictures at once does not fit .* 2.00 GiB.\); raise train"):
        run.run()


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_ways_of_training_that_are_not_supported_are_refused(kind, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda _: kind))
    with pytest.raises(ConfigError, match=f"the launcher requests {kind.value}; give --multi_gpu, or --use_fsdp with"):
        build_accelerator(TrainConfig())


def test_a_process_may_train_two_stages_in_two_precisions():
    assert build_accelerator(TrainConfig(mixed_precision="bf16")).mixed_precision == "bf16"
    assert build_accelerator(TrainConfig(mixed_precision="no")).mixed_precision == "no"
