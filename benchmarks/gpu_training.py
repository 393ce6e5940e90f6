"""Training on a GPU: steps of both stages against loops by hand, memory against its estimates, loading of pictures.

Parts of `python -m benchmarks.gpu`. Each takes a device, whether sizes are tiny (for a CPU, to see that the part runs)
and its seconds, after which no case begins; each gives its rows one by one, those of most value first.

ours: a step of the Trainer as the commands run it. hand: forward, loss, backward, clipping, a fused AdamW step and the
average of the weights over the same network, compiled in the same parts. llama: the same loop over transformers'
LlamaForCausalLM of the same sizes, each layer compiled. `model_share` is the operations of a step, as torch counts them
(attention over all pairs), without what is computed again, over 989 TFLOP/s, an H100's and H200's dense bfloat16 rate
by the maker's data sheet.
"""

from __future__ import annotations

import copy
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.models.vgg import cfgs, make_layers

from benchmarks.cost import GPUS, Operations, random_networks
from benchmarks.generator import Codes
from benchmarks.gpu_steps import Step, cost_of, peak_bytes, rows_in_time, wait_for
from benchmarks.sampling import CLASSES, build_llama
from benchmarks.training import Noise
from wvq.data.pictures import EncodedStore
from wvq.data.pixels import random_crop, to_pixels
from wvq.generator.configuration import ImageCodeTransformerConfig
from wvq.generator.memory import training_bytes, whole_pass_bytes
from wvq.generator.modeling import ImageCodeTransformer
from wvq.generator.recipes import ConditionConfig, ObjectiveConfig
from wvq.generator.task import GeneratorTask
from wvq.memory import GIB, available_memory
from wvq.settings.parser import load_recipe
from wvq.settings.train import TrainConfig
from wvq.tokenizer.adversarial import Adversary, build_adversary
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.losses import FeatureDistance, ReconstructionLoss
from wvq.tokenizer.memory import decoding_bytes
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import TokenizerRecipe
from wvq.tokenizer.task import TokenizerTask
from wvq.training.acceleration import build_accelerator, enable_checkpointing
from wvq.training.task import Task
from wvq.training.trainer import Trainer

Row = dict[str, Any]
PEAK = GPUS["H100"]
DECAY = 0.9999  # of the average, as the recipes have it
WORKERS = 4  # loader processes, where there is a GPU to keep at work
ROOM = 0.9  # share of the free memory that a step may take by its estimate
TINY_GENERATOR = {"num_layers": 2, "hidden_size": 64, "num_heads": 2, "grid": [4, 4], "num_codes": 256}
TINY_TOKENIZER = {"base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1, "num_codes": 64}


def trainer_step(task: Task, model: nn.Module, data: torch.utils.data.Dataset) -> Step:
    """A step of the Trainer, with what its loop keeps for the log."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(task, model, data, task.config, Path(folder), build_accelerator(task.config))
    batches = iter(trainer._loader())
    trainer.progress.start_clock()
    return lambda: trainer.window.add(trainer._step(batches))


class Hand:
    """What a loop by hand has beside its loss: the average, clipping, and a fused AdamW, all on the device."""

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]]):
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.groups = [[p for p in group["params"] if p.requires_grad] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def update(self) -> None:
        """Clip, step, and move the average."""
        for parameters in self.groups:
            nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - DECAY)


# ---- the generator


def build_generator(size: str, device: str, tiny: bool, **fields: Any) -> ImageCodeTransformer:
    """A generator of a named size, without dropout if none is given, made on the device."""
    sizes = TINY_GENERATOR if tiny else {"size": size}
    fields = {"dropout": 0.0, "token_dropout": 0.0, "head": "normal", **fields}
    torch.manual_seed(0)
    with torch.device(device):
        return ImageCodeTransformer(ImageCodeTransformerConfig(**sizes, num_classes=CLASSES, **fields))


def operations(size: str, tiny: bool) -> float:
    """Operations of a step with one picture, forward and backward."""
    model = build_generator(size, "meta", tiny)
    codes = torch.zeros(1, model.config.sequence_length, dtype=torch.int64, device="meta")
    with Operations() as counted:
        model(codes, torch.zeros(1, dtype=torch.int64, device="meta")).loss.backward()
    return counted.total


def estimate(model: ImageCodeTransformer, batch: int, checkpointing: bool, **settings: Any) -> int:
    """The trainer's own estimate of a step in bfloat16 with an average of the weights."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return training_bytes(model.config, parameters, batch, True, checkpointing, mixed=True, **settings)


def most_pictures(size: str, device: str, tiny: bool, checkpointing: bool, most: int) -> int:
    """The most pictures at once, by halves of ``most``, that fit by the estimate."""
    model, batch = build_generator(size, "meta", tiny), most
    free = available_memory(torch.device(device)) or 0
    while batch > 1 and estimate(model, batch, checkpointing) > ROOM * free:
        batch //= 2
    return batch


def our_generator_step(model: ImageCodeTransformer, batch: int, device: str, compiled: bool, again: bool) -> Step:
    """A step of the Trainer, as `wvq train-generator` runs it."""
    loop = {"batch_size": batch, "learning_rate": 1e-4, "mixed_precision": "bf16", "ema_decay": DECAY}
    loop |= {"num_workers": WORKERS if device != "cpu" else 0}
    config = TrainConfig(**loop, compile=compiled, gradient_checkpointing=again)
    task = GeneratorTask(None, None, ConditionConfig(), ObjectiveConfig(), config, {})  # type: ignore[arg-type]
    return trainer_step(task, model, Codes(1024, model.config.sequence_length, model.config.num_codes))


def hand_step(model: nn.Module, loss: Callable[[], torch.Tensor], device: str) -> Step:
    """A step by hand of a model with one group of parameters."""
    hand = Hand(model, [{"params": list(model.parameters()), "lr": 1e-4}])

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            value = loss()
        value.backward()
        hand.update()

    return step


def hand_generator_step(model: ImageCodeTransformer, batch: int, device: str, compiled: bool, again: bool) -> Step:
    """A step by hand over the same module."""
    codes = torch.randint(model.config.num_codes, (batch, model.config.sequence_length), device=device)
    labels = torch.randint(CLASSES, (batch,), device=device)
    if again:
        enable_checkpointing(model)
    step = hand_step(model.train(), lambda: model(codes, labels).loss, device)
    if compiled:
        model.compile()
    return step


def llama_step(like: ImageCodeTransformer, batch: int, device: str, compiled: bool, again: bool) -> Step:
    """A step by hand over a Llama of the same sizes; the last code is a target only, as in ours."""
    with torch.device(device):
        model = build_llama(like).train()
        tokens = torch.randint(like.config.num_codes, (batch, like.config.sequence_length + 1))
    if again:
        enable_checkpointing(model)

    def loss() -> torch.Tensor:
        logits = model(tokens[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    step = hand_step(model, loss, device)
    if compiled:
        for layer in model.model.layers:
            layer.compile()
    return step


GENERATOR_STEPS = {"ours": our_generator_step, "hand": hand_generator_step, "llama": llama_step}
# Kind of step, size, pictures at once at most, whether it is compiled, whether blocks are computed again.
GENERATOR_CASES = (
    ("ours", "L", 128, True, False),
    ("hand", "L", 128, True, False),
    ("llama", "L", 128, True, False),
    ("ours", "B", 256, True, False),
    ("ours", "3B", 32, True, True),
    ("ours", "L", 128, False, False),
    ("llama", "B", 256, True, False),
    ("hand", "B", 256, True, False),
    ("ours", "B", 256, False, False),
    ("hand", "3B", 32, True, True),
    ("ours", "3B", 32, False, True),
)


def generator_training(device: str, tiny: bool, seconds: float) -> Iterator[Row]:
    """Steps of the generator in bfloat16, 256 codes a picture, K = 16,384: tokens a second and share of the peak."""

    def measure(kind: str, size: str, most: int, compiled: bool, again: bool) -> Row:
        batch = 4 if tiny else most_pictures(size, device, tiny, again, most)

        def build() -> Step:
            # Llama takes the sizes alone: what is not there takes no memory.
            model = build_generator(size, "meta" if kind == "llama" else device, tiny)
            expected.append(estimate(model, batch, again, compiled=compiled and not tiny))
            tokens.append(model.config.sequence_length)
            return GENERATOR_STEPS[kind](model, batch, device, compiled and not tiny, again)

        expected: list[int] = []
        tokens: list[int] = []
        row = cost_of(build, device)
        rate = batch / row["ms"] * 1e3
        figures = {"batch": batch, "tokens_a_second": rate * tokens[0]}
        figures["model_share"] = rate * operations(size, tiny) / PEAK
        if "peak_GiB" in row and kind == "ours":
            figures |= {"estimate_GiB": expected[0] / GIB, "peak_to_estimate": row["peak_GiB"] * GIB / expected[0]}
        return figures | row

    names = ("step", "size", "most", "compiled", "recomputed")
    cases = GENERATOR_CASES[:3] if tiny else GENERATOR_CASES
    return rows_in_time(((dict(zip(names, case, strict=True)), lambda c=case: measure(*c)) for case in cases), seconds)


# ---- the tokenizer


class VGGLayers(nn.Module):
    """Feature maps of VGG-16 at the five depths that LPIPS compares; with random weights, which cost as much."""

    def __init__(self) -> None:
        super().__init__()
        layers = list(make_layers(cfgs["D"]))  # without the classifier
        ends = (4, 9, 16, 23, 30)
        self.slices = nn.ModuleList(nn.Sequential(*layers[a:b]) for a, b in zip((0, *ends), ends, strict=False))

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) -> five feature maps."""
        return list(itertools.accumulate(self.slices, lambda x, layers: layers(x), initial=pictures))[1:]


def tokenizer_parts(
    name: str, device: str, tiny: bool, batch: int, compiled: bool
) -> tuple[TokenizerTask, WassersteinVQModel]:
    """Task and model of a recipe for ImageNet, on the device; networks that are downloads have random weights."""
    recipe = load_recipe(TokenizerRecipe, f"imagenet_256/{name}")
    size = 32 if tiny else 256
    fields = recipe.model | {"image_size": size} | (TINY_TOKENIZER if tiny else {})
    recipe.train.batch_size, recipe.train.compile = batch, compiled
    recipe.train.num_workers = WORKERS if device != "cpu" else 0
    judge = recipe.discriminator
    judge.start_images = judge.generator_start_images = judge.ramp_images = 0
    if tiny and judge.network != "none":
        judge.network, judge.base_channels, judge.num_layers = "patchgan", 8, 1
    perceptual, recipe.loss.perceptual_weight = recipe.loss.perceptual_weight, 0.0
    torch.manual_seed(0)
    with random_networks(recipe):
        adversary = build_adversary(judge, size)
    loss = ReconstructionLoss(recipe.loss)
    if perceptual:
        recipe.loss.perceptual_weight, layers = perceptual, VGGLayers()
        loss.config, loss.perceptual = recipe.loss, FeatureDistance(layers, layers)
    with torch.device(device):
        model = WassersteinVQModel(WassersteinVQConfig(**fields))
    if adversary is not None:
        adversary.to(device)
    return TokenizerTask(loss.to(device), None, recipe.train, adversary), model  # type: ignore[arg-type]


def our_tokenizer_step(task: TokenizerTask, model: WassersteinVQModel, device: str) -> Step:
    """A step of the Trainer, as `wvq train-tokenizer` runs it."""
    return trainer_step(task, model, Noise(model.config.image_size))


def hand_tokenizer_step(task: TokenizerTask, model: WassersteinVQModel, device: str) -> Step:
    """A step by hand over the same networks, in channels_last; the adaptive weight as Esser et al. 2021 take it."""
    loss_of, adversary, config = task.reconstruction_loss, task.adversary, task.config
    for module in (model, loss_of, *([adversary] if adversary else [])):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    codebook = {id(p) for p in model.codebook_parameters()}
    network = [p for p in model.parameters() if id(p) not in codebook]
    hand = Hand(model, [{"params": network, "lr": 1e-4}, {"params": model.codebook_parameters(), "lr": 0.02}])
    judge = Judge(adversary) if adversary is not None else None
    if config.compile:
        for part in task.compiled_parts(model):
            part.compile()
    size = model.config.image_size
    pictures = torch.rand(config.batch_size, 3, size, size, device=device) * 2 - 1
    pictures = pictures.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            output = model(pictures, update_statistics=True)
            loss, _ = loss_of(output.reconstruction, pictures)
            if judge is not None:
                loss = loss + judge.weighted(loss, output.reconstruction, model.last_layer)
        (loss + output.quantizer_loss).backward()
        hand.update()
        if judge is not None:
            judge.train(pictures, output.reconstruction.detach(), device)

    return step


class Judge:
    """The discriminator's side of a step by hand."""

    def __init__(self, adversary: Adversary):
        self.adversary = adversary
        self.parameters = [p for p in adversary.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, betas=(0.5, 0.9), fused=True)

    def weighted(self, loss: torch.Tensor, reconstruction: torch.Tensor, layer: nn.Parameter) -> torch.Tensor:
        """The adversarial loss times its adaptive weight."""
        verdict = self.adversary.generator_loss(reconstruction)
        (of_loss,) = torch.autograd.grad(loss, layer, retain_graph=True)
        (of_verdict,) = torch.autograd.grad(verdict, layer, retain_graph=True)
        ratio = (of_loss.norm() / (of_verdict.norm() + 1e-4)).clamp(0, 1e4).detach()
        return self.adversary.config.weight * ratio * verdict

    def train(self, real: torch.Tensor, fake: torch.Tensor, device: str) -> None:
        """One step of the discriminator."""
        self.optimizer.zero_grad(set_to_none=True)  # the generator's loss has left gradients there
        self.adversary.begin_step(1)
        with torch.autocast(device, torch.bfloat16):
            loss, _ = self.adversary(real, fake)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()


TOKENIZER_STEPS = {"ours": our_tokenizer_step, "hand": hand_tokenizer_step}
# Kind of step, recipe, pictures at once, whether it is compiled.
TOKENIZER_CASES = (
    ("ours", "tokenizer", 32, True),
    ("hand", "tokenizer", 32, True),
    ("ours", "tokenizer", 32, False),
    ("ours", "tokenizer_gan", 16, True),
    ("hand", "tokenizer_gan", 16, True),
    ("ours", "tokenizer_gan", 16, False),
)


def tokenizer_training(device: str, tiny: bool, seconds: float) -> Iterator[Row]:
    """Steps of the recipes for ImageNet at 256 pixels in bfloat16 and channels_last: pictures a second."""

    def measure(kind: str, recipe: str, most: int, compiled: bool) -> Row:
        batch = 2 if tiny else most

        def build() -> Step:
            task, model = tokenizer_parts(recipe, device, tiny, batch, compiled and not tiny)
            return TOKENIZER_STEPS[kind](task, model, device)

        row = cost_of(build, device)
        return {"batch": batch, "pictures_a_second": batch / row["ms"] * 1e3, **row}

    names = ("step", "recipe", "most", "compiled")
    cases = TOKENIZER_CASES
    return rows_in_time(((dict(zip(names, case, strict=True)), lambda c=case: measure(*c)) for case in cases), seconds)


# ---- memory


def generator_memory(device: str, tiny: bool, size: str, batch: int, again: bool, fields: Mapping[str, Any]) -> Row:
    """Two steps of training: what is allocated at most, and the estimate."""
    expected: list[int] = []

    def train() -> None:
        model = build_generator(size, device, tiny, **fields)
        expected.append(estimate(model, batch, again, fused=device != "cpu"))
        step = our_generator_step(model, batch, device, False, again)
        for _ in range(2):
            step()

    return compared(peak_bytes(train, device), expected[0]) | {"batch": batch}


def pass_memory(device: str, tiny: bool, size: str, batch: int) -> Row:
    """Losses of whole pictures without gradients, beside the weights."""
    model = build_generator(size, device, tiny).eval()
    codes = torch.zeros(batch, model.config.sequence_length, dtype=torch.int64, device=device)
    with torch.no_grad():
        model(codes)  # tables that stay
        measured = peak_bytes(lambda: model(codes), device)
    return compared(measured, whole_pass_bytes(model.config, batch)) | {"batch": batch}


def decoding_memory(device: str, tiny: bool, batch: int) -> Row:
    """Decoding codes by the tokenizer of the recipe for ImageNet, beside the weights."""
    _, model = tokenizer_parts("tokenizer", device, tiny, batch, False)
    codes = torch.zeros(batch, *model.config.grid, dtype=torch.int64, device=device)
    model.eval().requires_grad_(False)
    model.decode_codes(codes)
    measured = peak_bytes(lambda: model.decode_codes(codes), device)
    return compared(measured, decoding_bytes(model.config, batch)) | {"batch": batch}


def compared(measured: int, expected: int) -> Row:
    """Both in GiB, and their ratio."""
    return {"peak_GiB": measured / GIB, "estimate_GiB": expected / GIB, "peak_to_estimate": measured / expected}


MEMORY_CASES = (
    ("L", 32, False, {}),
    ("L", 32, True, {}),
    ("L", 32, False, {"dropout": 0.1, "token_dropout": 0.1}),
    ("B", 64, False, {}),
    ("B", 64, True, {"dropout": 0.1, "token_dropout": 0.1}),
    ("B", 32, False, {"num_kv_heads": 4, "qk_norm": True}),
    ("B", 64, False, {"num_codes": 65_536}),
)


def memory(device: str, tiny: bool, seconds: float) -> Iterator[Row]:
    """What steps allocate at most, and the estimates by which runs are refused."""
    cases: list[tuple[Row, Callable[[], Row]]] = []
    for size, pictures, again, fields in MEMORY_CASES[: 2 if tiny else None]:
        batch = 4 if tiny else pictures
        names = {"memory": f"training {size}", "recomputed": again, "changes": str(fields or "")}
        cases.append((names, lambda a=(size, batch, again, fields): generator_memory(device, tiny, *a)))
    batch = 4 if tiny else 64
    cases.append(({"memory": "losses B"}, lambda: pass_memory(device, tiny, "B", batch)))
    cases.append(({"memory": "decoding"}, lambda: decoding_memory(device, tiny, batch)))
    return rows_in_time(cases, seconds)


# ---- loading


def jpegs(count: int, height: int, width: int) -> list[bytes]:
    """JPEG files of blurred noise, which compresses about as pictures of things do."""
    generator, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        fine = generator.normal(0, 6, (height, width, 3))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + fine
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


class Encoded:
    """A picture by its bytes, for :class:`EncodedStore`."""

    name = "noise"

    def __init__(self, content: bytes):
        self.encoded: dict[str, Any] = {"bytes": content, "path": None}


def rate(work: Callable[[], object], pictures: int, device: str, seconds: float) -> float:
    """Pictures a second, of repetitions for some seconds."""
    work()
    wait_for(device)
    start, done = time.perf_counter(), 0
    while not done or time.perf_counter() - start < seconds:
        work()
        done += pictures
    wait_for(device)
    return done / (time.perf_counter() - start)


def loader(device: str, tiny: bool, seconds: float) -> Iterator[Row]:
    """JPEGs of 500 x 375 to crops of 256 pixels: pictures a second on one core, and decoded on the GPU."""
    files = jpegs(4 if tiny else 32, 375, 500)
    most = 0.1 if tiny else 1.5
    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    generator = np.random.default_rng(0)

    def ours() -> None:
        store = EncodedStore(256)
        for file in files:
            to_pixels(random_crop(store.prepared(Encoded(file)), 256, 0.8, generator))

    def decoding() -> None:
        for file in files:
            Image.open(io.BytesIO(file)).load()

    def torchvision_decoding(where: str) -> None:
        if where == "cpu":
            for tensor in tensors:
                decode_jpeg(tensor, ImageReadMode.RGB)
        else:
            decode_jpeg(tensors, ImageReadMode.RGB, device=where)

    works: dict[str, tuple[str, Callable[[], None]]] = {
        "decoded, cropped, as a tensor (ours)": ("cpu", ours),
        "decoded by Pillow": ("cpu", decoding),
        "decoded by torchvision": ("cpu", lambda: torchvision_decoding("cpu")),
    }
    if device != "cpu":
        works["decoded by torchvision on the GPU"] = (device, lambda: torchvision_decoding(device))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cases = (
            ({"loading": name}, lambda w=work, on=where: {"pictures_a_second": rate(w, len(files), on, most)})
            for name, (where, work) in works.items()
        )
        yield from rows_in_time(cases, seconds)
    finally:
        torch.set_num_threads(threads)
