"""A real run for one GPU, in parts of some minutes: tokenizers of CIFAR-10, then a generator over the best of them.

    python -m benchmarks.gpu_run --minutes 7 --data cifar10.parquet --out runs/gpu_run
    python -m benchmarks.gpu_run --minutes 7 --data cifar10.parquet --state runs/gpu_run --out runs/gpu_run_2 --last

Tokenizers as published for CIFAR-10 (arXiv 2506.15078; the recipe cifar10_32/tokenizer): 50 epochs, batch 128,
K = 16,384, raw weights of the last step, measured on the tenth of the pictures that is held out. Then a generator of
size S over the one with the best PSNR, its samples, and their distances to real pictures beside their floors.

Each run goes on from what ``--state`` holds, which is ``--out`` itself if not given: to the step where a run was cut
within a training, if the checkpoint fits into ``--state_mib`` (a tokenizer's does, the generator's does not), or else
from the start of that training. ``results.json`` holds what is done and what is left, with the time that this takes at
the speed measured so far. A run leaves the generator to the next one until all tokenizers are trained; with ``--last``
it leaves out the tokenizers that would not leave the time for it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from torch.utils.data import DataLoader

from benchmarks import generation, gpu_state
from benchmarks.cells import goes_on
from benchmarks.gpu_machine import versions
from wvq.data.dataset import load_images
from wvq.devices import usable_device
from wvq.errors import ConfigError, DataError
from wvq.eval.features.networks import FeatureNetwork, load_feature_network
from wvq.eval.reconstruction import evaluate_reconstruction
from wvq.files.atomic import read_json, write_json
from wvq.files.names import TRAINING
from wvq.files.stage_folder import differences
from wvq.generator.recipes import GeneratorRecipe
from wvq.hardware import hardware
from wvq.interruption import PassInterrupted, RunInterrupted, StopRequest
from wvq.pipelines.assemble import train_pipeline
from wvq.settings.data import DataConfig
from wvq.settings.parser import load_recipe
from wvq.tokenizer.evaluation import evaluate_tokenizer
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import ExportRecipe, TokenizerRecipe
from wvq.tokenizer.train import train_tokenizer
from wvq.training.checkpoints import find_checkpoints
from wvq.training.order import RunSampler

# In the order in which they are trained, with the learning rate of the codebook: vanilla has the network's.
METHODS = {"wasserstein": 0.02, "sliced": 0.02, "linear": 0.02, "vanilla": None}
GENERATOR = "generator"
RESULTS = "results.json"
ENDING = 20.0  # seconds that are kept for the state, and for the end of the step and the process
AFTER_GENERATOR = 45.0  # seconds for samples and their distances
LEAST_FOR_GENERATOR = 120.0  # seconds, with those, without which its training does not start
LOADED = 100  # batches, of a measurement of the loader alone


@dataclass(frozen=True)
class Sizes:
    """What a tiny run has smaller.

    Args:
        epochs: passes of a tokenizer over the training pictures.
        generator_epochs: passes of the generator.
        num_samples: of the generator's evaluation.
        tokenizer, generator: fields of the recipes, by dotted name.
        workers: loader processes.
    """

    epochs: int = 50
    generator_epochs: int = 40
    num_samples: int = generation.NUM_SAMPLES
    tokenizer: dict[str, Any] = field(default_factory=dict)
    generator: dict[str, Any] = field(default_factory=dict)
    workers: int = 6


_SMALL = {"train.batch_size": 16, "train.log_every": 32, "train.num_workers": 0}
TINY = Sizes(
    epochs=2,
    generator_epochs=1,
    num_samples=12,
    tokenizer={
        **_SMALL,
        "data.image_size": 16,
        "model.base_channels": 8,
        "model.channel_multipliers": [1, 2],
        "model.num_codes": 32,
    },
    generator={
        **_SMALL,
        "model.size": None,
        "model.hidden_size": 32,
        "model.num_layers": 1,
        "model.num_heads": 2,
        "train.mixed_precision": "no",
    },
    workers=0,
)


class Study:
    """The stages of the run, and their figures.

    Args:
        data: parquet file or folder of pictures with classes.
        out: where results, samples and state go.
        work: folder of the trained models and their checkpoints.
        seconds: stages end, or are cut, within them.
        sizes: how large it all is.
        overrides: further fields of the tokenizers' recipe, by dotted name.
        last: whether no other run follows.
        limit: bytes of the state.
    """

    def __init__(
        self,
        data: str,
        out: Path,
        work: Path,
        seconds: float,
        sizes: Sizes = Sizes(),
        overrides: dict[str, Any] | None = None,
        last: bool = False,
        limit: int = 61 * 2**20,
    ):
        self.data, self.out, self.work, self.sizes, self.last, self.limit = data, out, work, sizes, last, limit
        self.overrides = overrides or {}
        self.seconds, self.start = seconds, time.monotonic()
        self.device = usable_device()
        self.images = load_images(self.data_config(crop="center"))
        protocol = {"pictures": len(self.images.train), "held_out": len(self.images.validation), "set": self.overrides}
        protocol |= {"epochs": sizes.epochs, "generator_epochs": sizes.generator_epochs}
        self.results: dict[str, Any] = {"protocol": protocol, "tokenizers": {}, "runs": []}

    def data_config(self, **changes: Any) -> DataConfig:
        """The pictures, a tenth of each class held out."""
        size = self.sizes.tokenizer.get("data.image_size", 32)
        return DataConfig(path=self.data, image_size=size, validation_fraction=0.1, **changes)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.start)

    # ---- the run

    def run(self, state: Path) -> dict[str, Any]:
        """Go on from the state in a folder as far as the time allows; returns the results.

        Raises:
            ConfigError: the state is that of another data set or of other settings.
        """
        if (state / RESULTS).exists():
            before = read_json(state / RESULTS, DataError, f"{state / RESULTS} is missing")
            for name, (old, new) in differences(before["protocol"], self.results["protocol"]).items():
                raise ConfigError(f"{state} was made with another {name} ({old!r}, now {new!r}); give another --state")
            self.results = before
            gpu_state.unpack(state, self.work)
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        facts = {"date": date, "seconds": 0.0, **hardware(self.device), **versions()}
        self.results["runs"].append(facts)
        try:
            with stopped_after(self.left) as request:
                self.stages(request)
        except (RunInterrupted, PassInterrupted) as stop:
            print(stop, flush=True)
        facts["seconds"] = round(time.monotonic() - self.start, 1)
        self.keep_state()
        return self.results

    def stages(self, request: StopRequest) -> None:
        """The stages that are not done yet."""
        network = load_feature_network("efficientnet_lite0", device=self.device)
        for method in METHODS:
            if method in self.results["tokenizers"]:
                continue
            if self.last and self.tokenizers_done and self.left < self.tokenizer_seconds + LEAST_FOR_GENERATOR:
                break
            request.raise_if_set(lambda: "the next stage is left")
            self.results["tokenizers"][method] = self.train_tokenizer(method, network)
            self.keep_results()
        if not self.last and len(self.tokenizers_done) < len(METHODS):
            return
        if GENERATOR not in self.results and self.left >= LEAST_FOR_GENERATOR:
            request.raise_if_set(lambda: "the generator is left")
            self.results[GENERATOR] = self.train_generator(network, request)
            self.keep_results()

    @property
    def tokenizers_done(self) -> list[str]:
        """Methods whose tokenizers are trained and measured."""
        return list(self.results["tokenizers"])

    @property
    def best(self) -> str | None:
        """The method whose reconstructions have the highest PSNR."""
        return max(self.tokenizers_done, key=lambda name: self.results["tokenizers"][name]["psnr_rgb"], default=None)

    @property
    def tokenizer_seconds(self) -> float:
        """Seconds that a tokenizer takes at the speed of the last one, its evaluation not counted."""
        rate = self.results["tokenizers"][self.tokenizers_done[-1]]["images_per_second"]
        return self.tokenizer_images / rate

    @property
    def tokenizer_images(self) -> int:
        """Pictures that a tokenizer is trained on, every repetition counted."""
        return self.sizes.epochs * len(self.images.train)

    # ---- the stages

    def tokenizer_recipe(self, method: str) -> TokenizerRecipe:
        """The published recipe for these pictures."""
        images = self.tokenizer_images
        changes = {
            "out": str(self.work / method),
            "data.path": self.data,
            "data.validation_split": None,
            "data.validation_fraction": 0.1,
            "model.quantizer": method,
            "train.images": images,
            "train.warmup_images": images // 40,
            "train.codebook_learning_rate": METHODS[method],
            "train.ema_decay": 0.0,
            "train.evaluate_every": 0,
            "train.save_every": 0,  # a run that is cut saves its checkpoint itself
            "train.num_workers": self.sizes.workers,
        }
        return load_recipe(TokenizerRecipe, "cifar10_32/tokenizer", changes | self.sizes.tokenizer | self.overrides)

    def train_tokenizer(self, method: str, network: FeatureNetwork) -> dict[str, Any]:
        """Train and measure a tokenizer; the folder of the best so far stays."""
        recipe, before = self.tokenizer_recipe(method), self.best
        folder = Path(recipe.out)
        run = train_tokenizer(recipe, resume=goes_on(folder))
        tokenizer = WassersteinVQModel.from_pretrained(folder).to(self.device)
        measured = evaluate_reconstruction(tokenizer, self.images.validation, network, 256, progress=False)
        usage = evaluate_tokenizer(tokenizer, self.images.train, 256)
        row = {name: run[name] for name in ("images", "seconds", "images_per_second", "skipped_steps", "parameters")}
        row |= measured["metrics"] | {"num_tokens": measured["num_tokens"], "floor": measured["floor"]}
        row["in_training"] = {name: usage[name] for name in ("utilization", "perplexity", "num_tokens")}
        row["loader_images_per_second"] = self.loader_rate(recipe)
        if before is not None:
            worse = min(method, before, key=lambda name: {**self.results["tokenizers"], method: row}[name]["psnr_rgb"])
            shutil.rmtree(self.work / worse)
        shutil.rmtree(folder / TRAINING, ignore_errors=True)
        return row

    def loader_rate(self, recipe: TokenizerRecipe) -> float:
        """Pictures a second of the training loader alone, without its first batches."""
        size, train = recipe.train.batch_size, self.images.train
        sampler = RunSampler(len(train), size, recipe.train.seed, 0, 1, 0)
        batches = iter(DataLoader(train, size, sampler=sampler, num_workers=self.sizes.workers))
        number = min(LOADED, len(train) // size)
        for _ in range(number):
            next(batches)
        start = time.perf_counter()
        for _ in range(number):
            next(batches)
        return number * size / (time.perf_counter() - start)

    def train_generator(self, network: FeatureNetwork, request: StopRequest) -> dict[str, Any]:
        """Train a generator over the best tokenizer's codes, draw its samples and measure them."""
        best = self.best
        assert best is not None
        codes, out = self.work / "codes", self.work / "pipeline"
        tokenizer = str(self.work / best)
        if not codes.exists():
            data = self.data_config(crop="center", flip=True)
            export_codes(ExportRecipe(str(codes), tokenizer, data, num_crops=2, batch_size=256))
        images = self.sizes.generator_epochs * len(self.images.train)
        changes = {
            "out": str(out),
            "codes": str(codes),
            "tokenizer": tokenizer,
            "train.images": images,
            "train.warmup_images": images // 20,
            "train.ema_decay": 0.999,
            "train.max_minutes": max(self.left - AFTER_GENERATOR, 1.0) / 60,
            "train.evaluate_every": 0,
            "train.save_every": 0,
        }
        recipe = load_recipe(GeneratorRecipe, "cifar10_32/generator", changes | self.sizes.generator)
        run, pipe = train_pipeline(recipe, resume=goes_on(out / GENERATOR))
        measure = generation.Measure(self.images.train, network, self.sizes.num_samples)
        row = {name: value for name, value in run.items() if name not in ("warnings", "unreadable_pictures")}
        row |= {"over": best, "num_samples": self.sizes.num_samples, "floor": measure.floor}
        row["decoded"] = measure(measure.decoded(pipe.tokenizer))
        row["guidance"] = generation.guided(pipe, measure, request)
        generation.sheet(pipe).save(self.out / "samples.png")
        return row

    # ---- what stays

    def keep_results(self) -> None:
        """Write the results, and what is left at the measured speed."""
        left: list[dict[str, Any]] = []
        for method in METHODS:
            if method not in self.tokenizers_done:
                seen = max((int(c.name) for c in find_checkpoints(self.work / method / TRAINING)), default=0)
                row = {"stage": method, "images": seen, "of": self.tokenizer_images}
                if self.tokenizers_done:
                    share = 1 - seen / self.tokenizer_images
                    row["seconds_left"] = round(self.tokenizer_seconds * share, 1)
                left.append(row)
        if GENERATOR not in self.results:
            left.append({"stage": GENERATOR})
        self.results["left"] = left
        write_json(self.out / RESULTS, self.results)

    def keep_state(self) -> None:
        """Write the results, and pack what the next run needs: the best tokenizer, and what is in training."""
        best = self.best
        folders = [name for name in METHODS if name != best]
        packed = gpu_state.pack(self.work, [*([best] if best else []), *folders], self.out, self.limit)
        self.results["packed"] = packed
        for method in METHODS:
            if method not in packed and method not in self.tokenizers_done:
                shutil.rmtree(self.work / method, ignore_errors=True)  # it starts anew
        self.keep_results()


@contextmanager
def stopped_after(seconds: float) -> Iterator[StopRequest]:
    """Within the block this process gets a SIGTERM after so many seconds, and again each second from then on.

    It is noted in the request, or by what runs in the block and stops for such a signal: a training saves its
    checkpoint. One that starts after the first is stopped by the next.
    """
    request, over = StopRequest(), threading.Event()

    def note(number: int, _: object) -> None:
        request.signal = number

    def remind() -> None:
        wait = max(seconds, 0.0)
        while not over.wait(wait):
            os.kill(os.getpid(), signal.SIGTERM)
            wait = 1.0

    before = signal.signal(signal.SIGTERM, note)
    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield request
    finally:
        over.set()
        reminder.join()
        signal.signal(signal.SIGTERM, before)


def overrides_of(words: Sequence[str]) -> dict[str, Any]:
    """Fields of a recipe from words such as ``train.compile=true``.

    Raises:
        ConfigError: a word has no value.
    """
    pairs = [word.partition("=") for word in words]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise ConfigError(f"--set {wrong[0]} lacks a value; give it as NAME=VALUE")
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.0, help="the run ends within about this time")
    parser.add_argument("--data", required=True, help="parquet file or folder of pictures with classes")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_run"))
    parser.add_argument("--state", type=Path, help="folder of the run that this one goes on from; OUT if not given")
    parser.add_argument("--state_mib", type=float, default=61.0, help="most MiB that the state in OUT takes")
    parser.add_argument("--last", action="store_true", help="no other run follows: the generator must be trained")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="fields of the tokenizers' recipe")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, to see that it runs")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as work:
            study = Study(
                arguments.data,
                arguments.out,
                Path(work),
                60 * arguments.minutes - ENDING,
                TINY if arguments.tiny else Sizes(),
                overrides_of(arguments.set),
                arguments.last,
                int(arguments.state_mib * 2**20),
            )
            results = study.run(arguments.state or arguments.out)
    except (ConfigError, DataError) as error:
        parser.error(str(error))
    for name, row in results["tokenizers"].items():
        figures = {key: row[key] for key in ("psnr_rgb", "utilization", "perplexity", "images_per_second")}
        print(name, ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    if GENERATOR in results:
        print(GENERATOR, {name: results[GENERATOR][name] for name in ("over", "guidance", "floor")})
    print("left:", results["left"] or "nothing")


if __name__ == "__main__":
    main()
