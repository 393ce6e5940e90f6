"""Trains tiny models through the command line alone, and keeps what a later version must load, repeat and continue.

    python tests/former/write.py FOLDER

`tests/former/saved` was written so by version 0.1.0 as it stood before its modules were moved into rooms. It is not
written again: what another version writes would prove nothing.
"""

import json
import os
import platform
import shutil
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

DATA = ["--data.image_size=16", "--data.validation_fraction=0.2"]
TRAIN = ["--train.images=320", "--train.batch_size=16", "--train.log_every=16"]
SIZES = ["--model.patch_size=2", "--model.base_channels=4", "--model.channel_multipliers=[1,2]"]
SIZES += ["--model.num_res_blocks=1", "--model.attention=false", "--train.learning_rate=0.002"]
CODES = ["--model.num_codes=32", "--model.code_dim=4"]
GENERATOR = ["--model.hidden_size=32", "--model.num_layers=1", "--model.num_heads=2", "--train.learning_rate=0.005"]
ADVERSARY = ["--discriminator.network=patchgan", "--discriminator.base_channels=4", "--discriminator.num_layers=2"]
ADVERSARY += ["--discriminator.start_images=64", "--discriminator.generator_start_images=128"]
ADVERSARY += ["--discriminator.augment=true", "--discriminator.lecam_weight=0.01", "--discriminator.r1_weight=0.1"]

# Options of the tokenizers whose first losses are kept, by name.
TOKENIZERS = {
    name: [*CODES, f"--model.quantizer={name}"]
    for name in ("sliced", "wasserstein", "vanilla", "ema", "online", "linear", "mmd", "affine")
} | {
    "fsq": ["--model.quantizer=fsq", "--model.levels=[4,4,2]", "--model.code_dim=3", "--model.num_codes=32"],
    "lfq": ["--model.quantizer=lfq", "--model.code_dim=5", "--model.num_codes=32"],
    "product": [*CODES, "--model.quantizer=sliced", "--model.num_groups=2"],
    "multiscale": [*CODES, "--model.quantizer=wasserstein", "--model.scales=[1,2,4]"],
    "rotation": [*CODES, "--model.quantizer=vanilla", "--model.gradient_estimator=rotation"],
    "adversarial": [*CODES, "--model.quantizer=sliced", *ADVERSARY],
    "in parts": [
        *CODES,
        "--model.quantizer=sliced",
        "--train.gradient_accumulation_steps=2",
        "--train.ema_decay=0.9",
        "--train.codebook_learning_rate=0.02",
        "--train.warmup_images=64",
        "--train.final_alignment=0.5",
    ],
}
EXPORT = ["--data.crop=random", "--num_crops=2"]
SAMPLES = {"samples": [], "samples_in_windows": ["--window=4"]}
# Those of the generators.
GENERATORS = {
    "class": [],
    "text": ["--condition.text=true", "--condition.text_encoder=encoder", "--condition.text_length=5"],
    "unconditional": ["--condition.classes=false"],
    "random order": ["--objective.random_order=1.0", "--objective.label_smoothing=0.1", "--model.dropout=0.1"],
}


def train_tokenizer(name: str, out: Path, *options: str) -> None:
    """Train one tokenizer of the table for 20 steps on the pictures of the current folder."""
    run("train-tokenizer", "--data.path=pictures", *DATA, *SIZES, *TRAIN, *TOKENIZERS[name], f"--out={out}", *options)


def train_generator(name: str, out: Path, *options: str) -> None:
    """Train one generator of the table for 20 steps over the codes of the current folder."""
    stages = ["--codes=codes", "--tokenizer=tokenizer"]
    run("train-generator", *stages, *GENERATOR, *TRAIN, *GENERATORS[name], f"--out={out}", *options)


def losses(folder: Path) -> dict[str, list[float]]:
    """The losses of each step that a log holds, by name; of the discriminator from its first step on."""
    rows = [json.loads(line) for line in (folder / "training" / "log.jsonl").read_text().splitlines()]
    names = ("loss", "discriminator_loss")
    return {name: found for name in names if (found := [row[name] for row in rows if name in row])}


def machine() -> dict[str, str]:
    """What losses depend on to the last bit."""
    import torch

    return {
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }


def run(*arguments: str) -> None:
    """Run a command of this version."""
    from wvq.app.cli import main as command

    if code := command(list(arguments)):
        raise SystemExit(f"wvq {' '.join(arguments)} ended with {code}")


def export(out: Path) -> None:
    """Codes of the pictures of the current folder, by its tokenizer."""
    run("export-codes", "--data.path=pictures", *DATA, *EXPORT, "--tokenizer=tokenizer", f"--out={out}")


def sample(out: Path, *options: str) -> None:
    """Six pictures by the pipeline of the current folder."""
    prompts = ["--prompt", "red circle", "blue cross"]
    run("sample", "pipeline", *prompts, "--guidance_scale=1.5", "--num_images=6", f"--out={out}", *options)


def main(saved: Path) -> None:
    """Write everything into ``saved``, which holds pictures/ and encoder/ already."""
    os.chdir(saved)
    scratch, found = Path("scratch"), {"machine": machine(), "tokenizers": {}, "generators": {}}
    for name in TOKENIZERS:
        train_tokenizer(name, scratch / name)
        found["tokenizers"][name] = losses(scratch / name)
    train_tokenizer("adversarial", Path("tokenizer"), "--train.save_every=160")
    export(Path("codes"))
    for name in GENERATORS:
        train_generator(name, scratch / name)
        found["generators"][name] = losses(scratch / name / "generator")
    train_generator("text", Path("pipeline"), "--train.save_every=160")
    for name, options in SAMPLES.items():
        sample(Path(name), *options)
    Path("losses.json").write_text(json.dumps(found, indent=1) + "\n")
    for stage in (
        Path("tokenizer"),
        Path("pipeline/generator"),
    ):  # what a resumed run goes on from is the middle of the run
        shutil.rmtree(stage / "training" / "checkpoints" / "000000000320")
        shutil.rmtree(stage / "training" / "tensorboard")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
