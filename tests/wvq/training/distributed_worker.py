"""One process of the distributed tests: trains each quantizer for a few steps, exports codes, saves what it holds.

    python distributed_worker.py settings.json

Settings: ``out`` (folder for ``<case>-<rank>.pt``), ``world`` (processes there must be), ``export`` (fields of an
ExportRecipe, or null).
"""

import copy
import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import ViTConfig, ViTModel

from wvq.settings.data import DataConfig
from wvq.tokenizer import export_work
from wvq.tokenizer.adversarial import Adversary
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import DiscriminatorConfig, ExportRecipe, LossConfig, TokenizerTrainConfig
from wvq.tokenizer.task import TokenizerTask
from wvq.training.acceleration import build_accelerator
from wvq.training.trainer import Trainer

# name: fields of the tokenizer's config that differ from those of `train`
CASES = {
    "vanilla": {"quantizer": "vanilla"},
    "rotation": {"quantizer": "vanilla", "gradient_estimator": "rotation"},
    "ema": {"quantizer": "ema"},
    "online": {"quantizer": "online"},
    "linear": {"quantizer": "linear"},
    "fsq": {"quantizer": "fsq", "levels": [4, 2, 2]},
    "lfq": {"quantizer": "lfq", "code_dim": 4},
    "wasserstein": {"quantizer": "wasserstein"},
    "sliced": {"quantizer": "sliced"},
    "mmd": {"quantizer": "mmd", "num_samples": 12},
    "affine": {"quantizer": "affine"},
    "product": {"quantizer": "wasserstein", "code_dim": 4, "num_groups": 2},
    "multi-scale": {"quantizer": "wasserstein", "scales": [1, 2, 4], "scale_weights": [1, 2, 5]},
    "restored": {"quantizer": "wasserstein", "alignment_units": "absolute", "residual_projector": 8},
    "multi-scale-lfq": {"quantizer": "lfq", "code_dim": 4, "scales": [1, 3, 4], "num_scale_convs": 2},
}
# name: fields of the discriminator; these cases train against it from the first step
ADVERSARIES = {
    "patchgan": {"network": "patchgan", "base_channels": 8, "num_layers": 1, "r1_weight": 0.1, "r1_interval": 1},
    "dino": {"network": "dino", "loss": "non_saturating"},
    # Adaptive weight and consistency are taken in each part.
    "patchgan-linear": {"network": "patchgan", "base_channels": 8, "num_layers": 1, "r1_weight": 0.1, "r1_interval": 1}
    | {"adaptive_weight": False, "consistency_weight": 0.0},
}
CASES |= {name: {"quantizer": "sliced"} for name in ADVERSARIES}
CASES["lfq-linear"] = {**CASES["lfq"], "entropy_weight": 0.0}  # the entropy of a mean is taken in each part
ACCUMULATED = "accumulated-"  # before the name of a case: each of two processes in two parts
CASES |= {
    ACCUMULATED + name: fields
    for name, fields in CASES.items()
    if name not in ("rotation", "linear", "fsq", "lfq", "multi-scale-lfq", "patchgan", "dino")
}
STEPS = 3


class Pictures(Dataset):
    """Noise of 16 x 16 pixels, a little brighter with each index, so that processes see different distributions."""

    def __len__(self):
        return 20

    def __getitem__(self, key):
        index = key[1] if isinstance(key, tuple) else key
        noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(index)) * 2 - 1
        return {"pixel_values": (noise + index / 20).clamp(-1, 1)}


def train(case: str, folder: Path, world: int) -> dict:
    """Train one case; return the gradients of its first step, its weights, running statistics and figures.

    Of several processes also what each goes on with from the last checkpoint.
    """
    parts, case = (2 if case.startswith(ACCUMULATED) else 1), case.removeprefix(ACCUMULATED)
    config = TokenizerTrainConfig(
        images=8 * STEPS,
        batch_size=8,
        gradient_accumulation_steps=parts,
        learning_rate=1e-3,
        codebook_learning_rate=0.02,
        scale_conv_learning_rate=0.005,
        clip_norm=0.0,
        ema_decay=0.9,
        log_every=8,
        save_every=8 * STEPS,
        max_minutes=10.0,
    )
    accelerator = build_accelerator(config)
    assert accelerator.num_processes == world, f"{accelerator.num_processes} processes and not {world}"
    torch.manual_seed(0)
    shape = {"image_size": 16, "patch_size": 2, "base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1}
    shape |= {"attention": False, "num_codes": 16, "code_dim": 3, "window_size": 300, "affine_interval": 2}
    model = WassersteinVQModel(WassersteinVQConfig(**{**shape, **CASES[case]}))
    for name, codebook in model.state_dict().items():
        if name.endswith("codebook"):
            codebook.normal_(0, 0.3)
    trainer = Trainer(make_task(case, folder, config), model, Pictures(), config, folder, accelerator)
    gradients = []

    def keep_gradients(*_):
        trained = {name: p for name, p in trainer.raw_model.named_parameters() if p.requires_grad}
        gradients.append({name: p.grad.clone() for name, p in trained.items()})
        if trainer.task.adversary is not None:
            judge = trainer.task.adversary.named_parameters()
            gradients[-1] |= {f"adversary.{name}": p.grad.clone() for name, p in judge}

    trainer.optimizers[0].optimizer.register_step_pre_hook(keep_gradients)
    result = trainer.run()
    trained = trainer.raw_model
    held = {
        "gradients": gradients[0],
        "steps": len(gradients),
        "weights": {name: p.detach().clone() for name, p in trained.named_parameters()},
        "average": {name: p.clone() for name, p in trainer.ema.model.named_parameters()},
        "statistics": trained.quantizer.training_state(),
        "adversary": copy.deepcopy(trainer.task.adversary.state_dict()) if trainer.task.adversary is not None else {},
        "figures": {k: v for k, v in result.items() if k not in ("seconds", "images_per_second")},
    }
    if world == 1:
        return held
    task = make_task(case, folder, config)
    again = Trainer(task, WassersteinVQModel(model.config), Pictures(), config, folder, build_accelerator(config))
    again.load_latest()
    held["resumed_adversary"] = task.adversary.state_dict() if task.adversary is not None else {}
    held["resumed"] = {name: p.detach().clone() for name, p in again.raw_model.named_parameters()}
    held["resumed_statistics"] = again.raw_model.quantizer.training_state()
    return held


def make_task(case: str, folder: Path, config: TokenizerTrainConfig) -> TokenizerTask:
    adversary = None
    if case in ADVERSARIES:
        regularisers = {"lecam_weight": 0.1, "consistency_weight": 0.1}
        adversary = Adversary(
            DiscriminatorConfig(**{"backbone": str(backbone(folder)), **regularisers, **ADVERSARIES[case]})
        )
    return TokenizerTask(
        ReconstructionLoss(LossConfig(l1_weight=1.0, feature_weight=1.0)), Pictures(), config, adversary
    )


def backbone(folder: Path) -> Path:
    """A small random vision transformer, which the first process writes."""
    target, state = folder / "backbone", PartialState()
    if state.is_main_process and not target.exists():
        sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
        ViTModel(ViTConfig(**sizes, image_size=16, patch_size=4)).save_pretrained(target)
    state.wait_for_everyone()
    torch.manual_seed(6)
    return target


def main(settings: dict) -> None:
    out = Path(settings["out"])
    for case in CASES:
        if case.startswith(ACCUMULATED) and settings["world"] == 1:
            continue  # compared with the whole batch in one process
        held = train(case, out / case, settings["world"])
        torch.save(held, out / f"{case}-{PartialState().process_index}.pt")
    if settings["export"]:
        data = DataConfig(**settings["export"].pop("data"))
        export_work.FEWEST = 8  # pictures of a file: each process has some
        export_codes(ExportRecipe(data=data, **settings["export"]))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
