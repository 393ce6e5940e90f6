"""What the codebook does to generation: one small generator, one budget, over several tokenizers.

    python -m benchmarks.generation --data cifar10.parquet --out runs/generation [--tokenizers runs/comparison/cells]

A cell takes a tokenizer of the comparison in benchmarks/tokenizers.py (training it where it is not there yet), exports
the training pictures twice, the second time mirrored with probability 1/2, trains the generator of generation.yaml over
the codes, and compares samples with real training pictures. ``decoded`` beside a cell's figures is what a perfect
generator would reach: other training pictures than those of the reference, passed through the tokenizer. Several
processes may share a folder.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from typing_extensions import Unpack

from benchmarks import tokenizers
from benchmarks.cells import claimed, goes_on, run_cells
from benchmarks.tokenizers import cell_recipe, method_cells
from wvq.data.dataset import ImageDataset, load_images
from wvq.data.pixels import to_uint8
from wvq.data.sheets import image_grid
from wvq.data.unreadable import Reading
from wvq.errors import DataError
from wvq.eval.features.networks import FeatureNetwork, load_feature_network
from wvq.eval.features.pictures import PictureFeatures, evaluation_view
from wvq.eval.figures.metrics import DISTANCES, compare
from wvq.eval.real.cache import usable_cache
from wvq.eval.real.dataset import dataset_features
from wvq.eval.samples.conditions import Conditions
from wvq.eval.samples.drawing import Samples
from wvq.files.atomic import read_json
from wvq.generator.base.sampling_settings import SamplingOptions
from wvq.generator.recipes import GeneratorRecipe
from wvq.interruption import StopRequest
from wvq.pipelines.assemble import train_pipeline
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.settings.data import DataConfig
from wvq.settings.parser import load_recipe
from wvq.tokenizer.export import export_codes
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import ExportRecipe
from wvq.tokenizer.train import train_tokenizer

RECIPE = Path(__file__).with_suffix(".yaml")
NUM_SAMPLES = 5_000
GUIDANCE = (1.0, 1.5)


@dataclass
class Cell:
    """One generator: the tokenizer's method and K, and what differs from the shared recipe, by dotted field."""

    method: str
    num_codes: int
    changes: dict = field(default_factory=dict)


CELLS = {
    f"{method}-{size}": Cell(method, size)
    for size in (8_192, 1_024)
    for method in ("sliced", "vanilla", "vanilla_network_rate")
}
CELLS |= {f"sliced_indices-{size}": Cell("sliced", size, {"model.code_dim": 0}) for size in (1_024, 8_192)}
CELLS |= {
    f"sliced_random_order-{size}": Cell("sliced", size, {"objective.random_order": 1.0}) for size in (1_024, 8_192)
}


def compared_tokenizer(cell: Cell) -> tokenizers.Cell:
    """The comparison's tokenizer of a cell's method and K."""
    return next(c for c in method_cells(cell.num_codes) if c.name == f"{cell.method}-{cell.num_codes}-seed0")


def tokenizer_folder(cell: tokenizers.Cell, data: str, folder: Path) -> Path:
    """The tokenizer of a cell, in ``folder``, trained first where it is not there."""
    out = folder / cell.name
    with claimed(folder / f"{cell.name}.lock", wait=True):
        if not (out / "result.json").exists():
            train_tokenizer(cell_recipe(cell, data, out), resume=goes_on(out))
    return out


def code_folder(tokenizer: Path, data: str) -> Path:
    """Codes of all pictures in two versions, exported where they are not there."""
    out = tokenizer.parent.parent / "codes" / tokenizer.name
    with claimed(out.parent / f"{out.name}.lock", wait=True):
        if not out.exists():
            export_codes(ExportRecipe(str(out), str(tokenizer), data_config(data), num_crops=2, batch_size=64))
    return out


def data_config(data: str) -> DataConfig:
    """The pictures of the comparison, uncropped; a second version of each is mirrored with probability 1/2."""
    return DataConfig(path=data, image_size=32, crop="center", flip=True, validation_fraction=0.1)


@dataclass
class Measure:
    """Distances to ``num_samples`` real training pictures; ``floor``: those of as many other real pictures."""

    dataset: ImageDataset
    network: FeatureNetwork
    num_samples: int = NUM_SAMPLES

    def __post_init__(self):
        number = self.num_samples
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(0)).tolist()
        self.others = order[number : 2 * number]
        pool = dataset_features(self.dataset, self.network, "train", 64, order[: 2 * number], cache=usable_cache())
        self.real = pool.part(slice(number))
        self.floor = compare(self.network, self.real, pool.part(slice(number, None)), DISTANCES)

    def __call__(self, batches: Iterator[torch.Tensor]) -> dict[str, float]:
        """Figures of ``num_samples`` pictures, uint8 batches (B, 3, S, S)."""
        features = torch.cat([self.network(batch).features.cpu() for batch in batches])
        drawn = PictureFeatures(features, None, "", self.dataset.image_size, "none")
        return compare(self.network, drawn, self.real, DISTANCES)

    def decoded(self, tokenizer: WassersteinVQModel) -> Iterator[torch.Tensor]:
        """The other real pictures, through the tokenizer."""
        for batch in Reading(evaluation_view(self.dataset), self.others).batches(64, tokenizer.device):
            with torch.no_grad():
                yield to_uint8(tokenizer.decode_codes(tokenizer.encode(batch["pixel_values"]).codes))


def run_cell(cell: Cell, data: str, out: Path, folder: Path, measure: Measure) -> dict:
    """Train one generator, over a tokenizer of ``folder``, and measure it."""
    source = tokenizer_folder(compared_tokenizer(cell), data, folder)
    changes = {"out": str(out), "codes": str(code_folder(source, data)), "tokenizer": str(source)} | cell.changes
    recipe = load_recipe(GeneratorRecipe, RECIPE, changes)
    run, pipe = train_pipeline(recipe, resume=goes_on(out / "generator"))
    samples = guided(pipe, measure)
    sheet(pipe).save(out / "sheet.png")
    trained = read_json(source / "result.json", DataError, f"{source} holds no result.json")
    bits = run["loss"] * pipe.generator.config.sequence_length / math.log(2)
    return {
        "name": out.name,
        "cell": {"method": cell.method, "num_codes": cell.num_codes, **cell.changes},
        "tokenizer": {name: trained[name] for name in ("psnr_rgb", "utilization", "perplexity")},
        "run": run | {"bits_per_image": bits},
        "num_samples": measure.num_samples,
        "floor": measure.floor,
        "decoded": measure(measure.decoded(pipe.tokenizer)),
        "guidance": samples,
    }


def guided(
    pipe: ImageGenerationPipeline,
    measure: Measure,
    stop: StopRequest | None = None,
    **options: Unpack[SamplingOptions],
) -> dict[str, dict]:
    """Figures of samples, as many of each class, at each scale of ``GUIDANCE`` and with other sampling settings.

    Raises:
        PassInterrupted: ``stop`` was set.
    """
    number = measure.num_samples
    ids = [i % len(pipe.class_names) for i in range(number)]
    conditions = Conditions([*ids], ids, None, None)
    runs = [range(start, min(start + 250, number)) for start in range(0, number, 250)]
    samples = {}
    for scale in GUIDANCE:
        given: SamplingOptions = {**options, "guidance_scale": scale}
        drawn = Samples(pipe, number, conditions, pipe.sampling.updated(**given), batch_size=250)
        samples[f"{scale:g}"] = measure(drawn.draw(run).images for run in (stop or StopRequest()).until_set(runs))
    return samples


def sheet(pipe: ImageGenerationPipeline):
    """Ten pictures of each class, a class a row."""
    names = [name for name in pipe.class_names for _ in range(10)]
    return image_grid(pipe(class_labels=names, guidance_scale=1.5, seed=0, batch_size=100).images, 10, scale=2)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="parquet file or folder of pictures with classes")
    parser.add_argument("--out", type=Path, default=Path("runs/generation"))
    parser.add_argument("--tokenizers", type=Path, help="folder of the comparison's cells; OUT/tokenizers if not given")
    parser.add_argument("--only", nargs="+", choices=CELLS, default=list(CELLS), help="names of cells")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    images = load_images(data_config(arguments.data)).train
    measure = Measure(images, load_feature_network("efficientnet_lite0"))
    folder = arguments.tokenizers or arguments.out / "tokenizers"
    run_cells(
        arguments.only,
        arguments.out,
        lambda name, out: run_cell(CELLS[name], arguments.data, out, folder, measure),
    )


if __name__ == "__main__":
    main()
