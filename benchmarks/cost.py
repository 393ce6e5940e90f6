"""What a training step of a recipe costs: floating-point operations and memory of one picture, measured, then scaled.

    python -m benchmarks.cost imagenet_256/tokenizer imagenet_256/tokenizer_gan [--num_codes 16384 65536]

Operations are counted in one real step with one picture (forward and backward of all networks in the loss, and of the
discriminator), the nearest-code search by formula. Memory is what autograd keeps for a picture at the
recipe's precision, and 20 bytes a trained parameter: weight, gradient, two moments, average. The values of weights do
not change the count: LPIPS and the DINO-S backbone get random ones. Hours assume a GPU's peak rate and a share of it.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from wvq.files.atomic import write_json
from wvq.settings.parser import load_recipe
from wvq.tokenizer.adversarial import build_adversary
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.losses import ReconstructionLoss
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import TokenizerRecipe
from wvq.tokenizer.task import TokenizerTask

GPUS = {"A100": 312e12, "H100": 989e12}  # dense bfloat16, by the maker's data sheets
UTILIZATION = 0.35  # assumed share of the peak
BYTES_A_PARAMETER = 20


class Operations(TorchDispatchMode):
    """Counts the operations of matrix products, convolutions and attention.

    torch's FlopCounterMode also follows modules, which fails under autograd.grad.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def step_parts(recipe: TokenizerRecipe) -> tuple[TokenizerTask, WassersteinVQModel]:
    """The task and the model of a recipe."""
    config = WassersteinVQConfig(**recipe.model, image_size=recipe.data.image_size)
    model = WassersteinVQModel(config)
    adversary = build_adversary(recipe.discriminator, recipe.data.image_size)
    return TokenizerTask(ReconstructionLoss(recipe.loss), None, recipe.train, adversary), model


@contextlib.contextmanager
def random_networks(recipe: TokenizerRecipe):
    """Replace downloads by random weights of the same shape."""
    from torchvision.models import vgg16
    from transformers import ViTConfig, ViTModel

    with tempfile.TemporaryDirectory() as folder:
        if recipe.loss.perceptual_weight and recipe.loss.perceptual_network == "lpips":
            file = Path(folder) / "vgg.pth"
            torch.save({f"features.{k}": v for k, v in vgg16(weights=None).features.state_dict().items()}, file)
            recipe.loss.perceptual_weights = str(file)
        if recipe.discriminator.network == "dino":
            sizes = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}  # ViT-S/16
            ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(Path(folder) / "dino")
            recipe.discriminator.backbone = str(Path(folder) / "dino")
        yield


class SavedBytes:
    """Bytes that autograd saves for the backward pass, without the weights; its ``hooks`` are a context."""

    def __init__(self, modules: list[nn.Module]):
        weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in weights}
        self.sizes: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor that autograd saves, once."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def take(self) -> int:
        """The bytes counted since the last call."""
        total, self.sizes = sum(self.sizes.values()), {}
        return total


def kept_bytes(task: TokenizerTask, model: WassersteinVQModel, pictures: int, precision: str | None) -> int:
    """The larger of what a tokenizer's and a discriminator's step keep; the first is freed before the second starts."""
    size, last = model.config.image_size, task.config.images
    activations = SavedBytes([model, task.reconstruction_loss, *([task.adversary] if task.adversary else [])])
    lower = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with activations.hooks, lower:
        step = task.loss(model, {"pixel_values": torch.rand(pictures, 3, size, size) * 2 - 1}, last, 1.0)
        bytes_kept = activations.take()
        if step.adversary_loss is not None:
            step.loss = None
            loss, _ = step.adversary_loss(task.adversary)
            bytes_kept = max(bytes_kept, activations.take())
            del loss
    return bytes_kept


def operations(task: TokenizerTask, model: WassersteinVQModel) -> tuple[int, int]:
    """Operations of a step with one picture, of the tokenizer's part and in all."""
    size, last = model.config.image_size, task.config.images
    with Operations() as counter:
        step = task.loss(model, {"pixel_values": torch.rand(1, 3, size, size) * 2 - 1}, last, 1.0)
        step.loss.backward()
        of_the_tokenizer = counter.total
        if step.adversary_loss is not None:
            step.adversary_loss(task.adversary)[0].backward()
    return of_the_tokenizer, counter.total


def measure(recipe: TokenizerRecipe) -> dict:
    """Operations and kept bytes of one picture, and parameters."""
    with random_networks(recipe):
        task, model = step_parts(recipe)
    of_the_tokenizer, in_all = operations(task, model)
    one, two = (kept_bytes(task, model, count, recipe.train.mixed_precision) for count in (1, 2))
    config = model.config
    search = 2 * config.grid[0] * config.grid[1] * config.num_codes * config.code_dim
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "discriminator_parameters": parameters(task.adversary),
        "gflops_per_image": (in_all + search) / 1e9,
        "gflops_of_the_tokenizer_step": (of_the_tokenizer + search) / 1e9,
        "gflops_of_the_search": search / 1e9,
        "kept_megabytes_per_image": (two - one) / 2**20,
        "kept_megabytes_per_step": (2 * one - two) / 2**20,  # copies of weights at the lower precision and the like
    }


def parameters(module: nn.Module | None) -> int:
    """Number of parameters; 0 without a module."""
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def cost(name: str, num_codes: int) -> dict:
    """Figures of a step of a recipe with K codes, and GPU hours of the whole run."""
    recipe = load_recipe(TokenizerRecipe, name, {"model.num_codes": num_codes})
    images = recipe.train.images
    figures = measure(recipe)
    trained = figures["parameters"] + figures["discriminator_parameters"]
    figures["gigabytes_of_weights"] = trained * BYTES_A_PARAMETER / 2**30
    megabytes = figures["kept_megabytes_per_step"] + 32 * figures["kept_megabytes_per_image"]
    figures["gigabytes_at_batch_32"] = figures["gigabytes_of_weights"] + megabytes / 1024
    needed = images * figures["gflops_per_image"] * 1e9
    hours = {gpu: needed / (peak * UTILIZATION) / 3600 for gpu, peak in GPUS.items()}
    return {
        "recipe": name,
        "num_codes": num_codes,
        "images": images,
        "batch_size": recipe.train.batch_size,
        **figures,
        "gpu_hours": hours,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--num_codes", type=int, nargs="+", default=[16_384, 65_536])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [cost(name, num_codes) for name in arguments.recipes for num_codes in arguments.num_codes]
    print(f"| recipe | K | parameters | GFLOP/image | GB at 32 a GPU | {' | '.join(f'{gpu} hours' for gpu in GPUS)} |")
    print("|---|---|---|---|---|" + "---|" * len(GPUS))
    for row in rows:
        hours = " | ".join(f"{value:,.0f}" for value in row["gpu_hours"].values())
        size = f"{row['parameters'] / 1e6:.1f}M | {row['gflops_per_image']:.0f} | {row['gigabytes_at_batch_32']:.1f}"
        print(f"| {row['recipe']} | {row['num_codes']:,} | {size} | {hours} |")
    if arguments.out:
        write_json(arguments.out, {"utilization": UTILIZATION, "peak_flops": GPUS, "rows": rows})


if __name__ == "__main__":
    main()
