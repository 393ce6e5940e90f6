"""What dropping class and caption together does to a generator with both: losses and samples, with and without it.

    python -m benchmarks.joint_dropout --tokenizer runs/tokenizer --codes runs/codes --out runs/joint_dropout \
        [--images 12000] [--seeds 0 1] [--result docs/results/joint_dropout.json]

The generator of openmoji_32 over one tokenizer and one cache, with joint dropout 0 and .1 beside the recipe's dropout
of each condition; every run sees as many pictures. The held-out loss is measured with both conditions, with each alone
and with none; samples have the classes and captions of the training pictures that they are compared with.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from wvq.data.codes import CodeDataset
from wvq.data.dataset import load_images
from wvq.eval.features.networks import default_feature_network
from wvq.eval.generation import evaluate_generation
from wvq.eval.real.references import DatasetReference
from wvq.files.atomic import write_json
from wvq.generator.base.conditioning import Condition
from wvq.generator.conditioned_codes import ConditionedCodes
from wvq.generator.recipes import GeneratorRecipe
from wvq.hardware import hardware
from wvq.pipelines.assemble import train_pipeline
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.settings.data import DataConfig
from wvq.settings.parser import load_recipe

RECIPE = "openmoji_32/generator"
JOINT = (0.0, 0.1)
GUIDANCE = (1.0, 1.2, 2.0)
SAMPLES = 416
SAMPLING = {"temperature": 1.0, "top_k": 100}


def held_out_losses(pipeline: ImageGenerationPipeline, codes: Path) -> dict[str, float]:
    """Nats a code over the held-out pictures, by the conditions that are given."""
    model = pipeline.generator.eval()
    dataset = ConditionedCodes(CodeDataset(codes, "validation"), True, pipeline.text_encoder)
    sums, count = dict.fromkeys(("both", "class", "caption", "none"), 0.0), 0
    for batch in DataLoader(dataset, batch_size=64, collate_fn=dataset.collate_fn):
        batch = {name: value.to(model.device) for name, value in batch.items()}
        given = Condition(batch["class_labels"], batch["text_features"], batch["text_mask"])
        null = given.null()
        cases = {
            "both": given,
            "class": Condition(given.class_labels, null.text_features, null.text_mask),
            "caption": Condition(null.class_labels, given.text_features, given.text_mask),
            "none": null,
        }
        target = batch["codes"].flatten(1)
        for name, case in cases.items():
            with torch.no_grad():
                logits = model(target, case.class_labels, case.text_features, case.text_mask).logits.float()
            sums[name] += float(F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum"))
        count += target.numel()
    return {name: round(value / count, 4) for name, value in sums.items()}


def run(arguments: argparse.Namespace, joint: float, seed: int) -> dict:
    """Train one generator and measure it."""
    changes = {
        "out": str(arguments.out / f"{joint}-{seed}"),
        "tokenizer": str(arguments.tokenizer),
        "codes": str(arguments.codes),
        "condition.joint_dropout": joint,
        "train.images": arguments.images,
        "train.seed": seed,
        "train.evaluate_every": 0,
    }
    _, pipeline = train_pipeline(load_recipe(GeneratorRecipe, RECIPE, changes))
    figures: dict = {"losses": held_out_losses(pipeline, arguments.codes), "samples": {}}
    for scale in GUIDANCE:
        result = evaluate_generation(
            pipeline,
            arguments.real,
            SAMPLES,
            classes="reference",
            prompts="reference",
            feature_network=arguments.network,
            guidance_scale=scale,
            progress=False,
            **SAMPLING,
        )
        distances = {name: value for name, value in result["metrics"].items() if name.startswith(("fd_", "kd_"))}
        figures["samples"][f"{scale}"] = {name: round(value, 5) for name, value in distances.items()}
        figures["floor"] = result["floor"]
    return figures


def mean_of(values: list) -> dict | float:
    """The mean of nested dicts of numbers that have the same keys."""
    if isinstance(values[0], dict):
        return {name: mean_of([value[name] for value in values]) for name in values[0]}
    return round(statistics.mean(values), 5)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--codes", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--result", type=Path)
    arguments = parser.parse_args()
    classes = CodeDataset(arguments.codes).header.class_names
    arguments.real = DatasetReference(
        load_images(DataConfig(path="openmoji", classes=classes, image_size=32, seed=1)).train
    )
    arguments.network = default_feature_network()
    cells = {}
    for joint in JOINT:
        runs = [run(arguments, joint, seed) for seed in arguments.seeds]
        floors = [figures.pop("floor") for figures in runs]  # the same for all: no samples are in it
        seeds = dict(zip(map(str, arguments.seeds), runs, strict=True))
        cells[f"joint {joint}"] = {"joint_dropout": joint, "mean": mean_of(runs), "seeds": seeds}
        print(joint, cells[f"joint {joint}"]["mean"], flush=True)
        if arguments.result:
            protocol = {
                "recipe": RECIPE,
                "images": arguments.images,
                "samples": SAMPLES,
                "sampling": SAMPLING,
                "reference": "as many training pictures, whose classes and captions the samples have",
                "losses": "nats a code over the held-out pictures, last step, averaged weights",
                "floor": floors[0],
                "torch": torch.__version__,
                **hardware("cpu"),
            }
            write_json(arguments.result, {"protocol": protocol, "cells": cells})


if __name__ == "__main__":
    main()
