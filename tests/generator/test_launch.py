"""Training on two processes, plain and sharded: they learn what one process learns, and resume exactly."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.processes import run_ranks
from tests.tiny import index_captions, save_text_encoder
from wvq.generator.models import load_generator
from wvq.generator.text.encoder import TextEncoder
from wvq.generator.text.features import text_features
from wvq.training.checkpoints import find_checkpoints
from wvq.training.tracking import read_log

SIZES = ["--model.hidden_size=32", "--model.num_layers=2", "--model.num_heads=2", "--model.dropout=0"]
SIZES += ["--model.token_dropout=0", "--condition.class_dropout=0"]  # each process has random numbers of its own
LOOP = ["--train.images=96", "--train.batch_size=16", "--train.learning_rate=0.005", "--train.log_every=16"]
LOOP += ["--train.ema_decay=0.5", "--train.weight_decay=0.1"]
SHARDED = ["--use_fsdp", "--fsdp_version=2", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP"]
CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
LAUNCH = {"two": [f"--config_file={CONFIGS / 'two_cpu_processes.yaml'}"], "sharded": SHARDED}
WORKER = Path(__file__).with_name("sharded_worker.py")
TEXT_WORKER = Path(__file__).with_name("text") / "text_worker.py"


def launcher_variables(options: list[str]) -> dict[str, str]:
    """What `accelerate launch` with these options puts into the environment of the processes that it starts."""
    asked = launch.launch_command_parser().parse_args([*options, "--num_processes=2", "--main_process_port=0", "none"])
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "multi_gpu_launcher", read.append)
        launch.launch_command(asked)
    variables = prepare_multi_gpu_env(read[0])
    return {name: value for name, value in variables.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def launched(kind: str, program: list[str | Path], **variables: str) -> None:
    """Run a program as one process, or as two with the options of the launcher that ``kind`` names."""
    options = launcher_variables(LAUNCH[kind]) if kind in LAUNCH else {}
    for done in run_ranks(program, 2 if kind in LAUNCH else 1, variables={**options, **variables}):
        assert done.returncode == 0, done.stderr[-4000:]


def run(
    kind: str,
    out: Path,
    codes: Path,
    tokenizer: Path,
    *options: str,
    gradients: Path | None = None,
    sizes: Sequence[str] = SIZES,
) -> None:
    command = ["train-generator", f"--codes={codes}", f"--tokenizer={tokenizer}", f"--out={out}", *sizes, *LOOP]
    program = [WORKER] if kind == "sharded" or gradients else ["-m", "wvq"]
    variables = {"WVQ_TEST_GRADIENTS": str(gradients)} if gradients else {}
    launched(kind, [*program, *command, *options], **variables)


def losses(out: Path) -> list[tuple[int, float]]:
    return [(row["images"], row["loss"]) for row in read_log(out / "generator" / "training") if row["kind"] == "train"]


@pytest.fixture(scope="module", params=["tiny", "scale"])
def folders(request):
    """Codes and tokenizer of a layout: one code a position, or several scales."""
    return tuple(request.getfixturevalue(f"{request.param}_{part}_dir") for part in ("codes", "tokenizer"))


@pytest.fixture(scope="module")
def one(tmp_path_factory, folders):
    out = tmp_path_factory.mktemp("one") / "run"
    run("one", out, *folders)
    return out


@pytest.mark.parametrize("kind", ["two", "sharded"])
def test_two_processes_learn_what_one_learns_and_resume_exactly(kind, one, folders, tmp_path):
    out = tmp_path / "run"
    run(kind, out, *folders, "--train.save_every=32", "--train.keep_checkpoints=9")
    first, second = (json.loads((folder / "generator" / "result.json").read_text()) for folder in (one, out))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
    for (images, loss), (same, other) in zip(losses(one), losses(out), strict=True):
        assert images == same
        assert other == pytest.approx(loss, rel=1e-4)
    expected, trained = (load_generator(folder / "generator") for folder in (one, out))
    for (name, value), other in zip(expected.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(other, value, rtol=1e-2, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")

    whole = losses(out)
    for checkpoint in find_checkpoints(out / "generator" / "training")[1:]:
        shutil.rmtree(checkpoint)
    for name in ("model.safetensors", "result.json"):
        (out / "generator" / name).unlink()
    run(kind, out, *folders, "--train.save_every=32", "--train.keep_checkpoints=9", "--resume")
    assert losses(out) == whole
    again = json.loads((out / "generator" / "result.json").read_text())
    assert (again["loss"], again["loss_per_position"]) == (second["loss"], second["loss_per_position"])


def test_sharded_processes_start_from_the_same_weights_as_one(one, folders, tmp_path):
    for kind in ("one", "sharded"):
        run(kind, tmp_path / kind, *folders, f"--start={one}", "--train.images=48", sizes=SIZES[-1:])
    first, second = (losses(tmp_path / kind) for kind in ("one", "sharded"))
    assert first[0][1] < losses(one)[0][1] - 0.1
    assert [loss for _, loss in second] == pytest.approx([loss for _, loss in first], rel=1e-4)


def test_bfloat16_sharded_has_the_losses_and_gradients_of_plain(tmp_path, tiny_codes_dir, tiny_tokenizer_dir):
    gradients, logged = {}, {}
    for kind, precision in (("two", "no"), ("two", "bf16"), ("sharded", "bf16")):
        out, file = tmp_path / f"{kind}-{precision}", tmp_path / f"{kind}-{precision}.pt"
        run(kind, out, tiny_codes_dir, tiny_tokenizer_dir, f"--train.mixed_precision={precision}", gradients=file)
        gradients[kind, precision] = torch.load(file, weights_only=True)
        logged[kind, precision] = [loss for _, loss in losses(out)]
    assert logged["sharded", "bf16"] == pytest.approx(logged["two", "bf16"], rel=3e-4)
    exact, plain, sharded = gradients.values()
    assert sharded.keys() == plain.keys() == exact.keys()
    for name, expected in exact.items():
        norm = expected.norm()
        assert (sharded[name] - plain[name]).norm() < 0.05 * norm, name
        assert (sharded[name] - expected).norm() < 1.25 * (plain[name] - expected).norm() + 1e-3 * norm, name


def test_two_processes_share_the_encoding_of_captions(tmp_path):
    """Each encodes its parts once, both find the features of one process, and both learn of what fails in one."""
    encoder = save_text_encoder(tmp_path / "encoder")
    texts = [f"red {'circle ' * (i % 3)}{i}" for i in range(150)]
    settings = {"texts": texts, "encoder": str(encoder), "out": str(tmp_path)}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    launched("two", [TEXT_WORKER, tmp_path / "settings.json"])
    index = index_captions([(text,) for text in texts])
    features, mask = text_features("memory", tmp_path, index, TextEncoder(encoder, 5))[np.arange(150)]
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for saved in both:
        assert "No space left on device" in saved["error"]
        for kept in ("disk", "memory"):
            assert torch.equal(saved[kept][0][0], features)
            assert torch.equal(saved[kept][0][1], mask)
    for kept in ("disk", "memory"):
        assert [saved[kept][1] for saved in both] == [texts[:64] + texts[128:], texts[64:128]]


class Payload:
    """Leaves a file behind if anything unpickles it."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def test_pickles_of_a_sharded_checkpoint_run_nothing(tmp_path, tiny_codes_dir, tiny_tokenizer_dir):
    out, folders = tmp_path / "run", (tiny_codes_dir, tiny_tokenizer_dir)
    run("sharded", out, *folders, "--train.save_every=48")
    (checkpoint,) = find_checkpoints(out / "generator" / "training")[:1]
    for other in find_checkpoints(out / "generator" / "training")[1:]:
        shutil.rmtree(other)
    (out / "generator" / "model.safetensors").unlink()
    files = [file for file in checkpoint.rglob("*") if file.is_file() and file.suffix in (".bin", ".pt", ".pkl")]
    assert {file.name for file in files} >= {"pytorch_model_fsdp.bin", "optimizer.bin", "run.pt"}
    assert not list(checkpoint.rglob(".metadata"))  # of torch's sharded states, which would be unpickled
    for file in files:
        torch.save(Payload(tmp_path / "executed"), file)
    with pytest.raises(AssertionError, match=r"CheckpointError|cannot be read"):
        run("sharded", out, *folders, "--train.save_every=48", "--resume")
    assert not (tmp_path / "executed").exists()


def test_shipped_configurations_are_understood():
    files = sorted(CONFIGS.glob("*.yaml"))
    assert len(files) >= 6
    for file in files:
        config = load_config_from_file(str(file))
        assert config.num_processes % config.num_machines == 0, file
    sharded = yaml.safe_load((CONFIGS / "fsdp_8_gpus.yaml").read_text())
    said = {option.removeprefix("--").partition("=")[0]: option.partition("=")[2] for option in SHARDED[1:]}
    assert {name: str(sharded["fsdp_config"][name]) for name in said} == said  # what the test above has run
