"""Measures a quick-start run and writes its report.html and sample sheets."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path

import torch

from wvq.app.recipes import QuickstartRecipe
from wvq.data.codes import CodeDataset
from wvq.data.dataset import ImageDataset, ImageSplits
from wvq.data.sheets import labelled_rows
from wvq.data.unreadable import Reading
from wvq.eval.features.networks import FeatureNetwork
from wvq.eval.figures.comparison import AT_FLOOR_N
from wvq.eval.figures.distances import nearest_neighbours
from wvq.eval.generation import evaluate_generation
from wvq.eval.reconstruction import evaluate_reconstruction
from wvq.eval.report.page import Block, Report
from wvq.eval.report.plots import code_histogram, loss_curves, metric_curves
from wvq.eval.report.sheets import enlargement, neighbour_sheets, sample_sheet
from wvq.eval.report.summary import metric_rows
from wvq.eval.samples.conditions import reference_choice
from wvq.eval.tuning import MARGIN, TIE, SamplingSearch
from wvq.files.names import TRAINING
from wvq.generator.base.conditioning import class_list
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.settings.size import height_width
from wvq.tokenizer.quantizers.statistics import CodeStatistics
from wvq.tokenizer.task import reconstruction_sheet
from wvq.training.tracking import read_log

MOST_CLASSES = 16  # rows of the sheet
SAMPLES = 420  # for the distances; the floor needs as many pictures twice
FEWEST_PROMPTS = 8  # rows of the sheet, where there are as many captions
PROMPTS = (
    "red apple", "red heart", "blue heart", "thumbs up", "victory hand", "smiling face with sunglasses", "banana",
    "red circle", "keycap: 7", "three o'clock", "flag: Japan", "flag: France",
)  # fmt: skip


def measure(
    pipe: ImageGenerationPipeline,
    images: ImageSplits,
    codes: dict[str, CodeDataset],
    seed: int,
    network: FeatureNetwork | None,
) -> dict[str, dict]:
    """U and C over the whole data set; with a feature network, distances of reconstructions and samples too."""
    results = {"codes": whole_set_statistics(codes)}
    if network is None:
        return results
    results["reconstruction"] = evaluate_reconstruction(pipe.tokenizer, images.validation, network)
    count = min(SAMPLES, len(images.train) // 2)
    classes, prompts = reference_choice(pipe.generator.config)
    results["generation"] = evaluate_generation(
        pipe, images.train, count, classes, prompts, seed, feature_network=network, **vars(pipe.sampling)
    )
    return results


def whole_set_statistics(codes: dict[str, CodeDataset]) -> dict:
    """U and C over the centre crops of all pictures, training and held out."""
    header = codes["train"].header
    statistics = CodeStatistics(header.num_codes)
    for dataset in codes.values():
        rows = [index * dataset.num_crops for index in range(len(dataset))]  # each picture's centre crop
        statistics.update(dataset.codes(rows), torch.zeros(()))
    figures = statistics.compute()
    figures.pop("quantization_error")
    return figures | {"num_codes": header.num_codes, "counts": statistics.counts.tolist()}


def write_report(
    out: Path,
    pipe: ImageGenerationPipeline,
    images: ImageSplits,
    codes: dict[str, CodeDataset],
    results: dict,
    recipe: QuickstartRecipe,
    search: SamplingSearch | None,
) -> Path:
    """Write ``report.html`` beside ``samples.png``, ``prompts.png`` and ``reconstructions.png``.

    Args:
        out: folder of the run.
        pipe: what it trained.
        images: pictures that it trained on and held out.
        codes: their codes.
        results: its figures by stage.
        recipe: its settings.
        search: how the sampling settings were chosen; None if they are fixed.
    """
    tokenizer, generator = results["tokenizer"], results["generator"]
    usage = results["codes"]
    report = Report("wvq quick start", _subtitle(images, pipe, results))
    for stage in ("tokenizer", "generator"):
        if results[stage]["cut_short"]:
            report.warning(
                f"The clock ended the {stage}'s training after {results[stage]['images']:,} pictures, before the "
                f"recipe's end ({results[stage]['images_per_second']:.0f} pictures/s). On a faster or quieter machine, "
                "or with a larger `--minutes`, it comes out better."
            )
    report.cards(
        [
            (
                "Codebook utilization U",
                f"{usage['utilization']:.1%}",
                f"{usage['num_tokens']:,} tokens, whole data set",
            ),
            ("Perplexity C", f"{usage['perplexity']:,.0f}", f"of K = {usage['num_codes']:,}"),
            ("Quantization error E", f"{tokenizer['quantization_error']:.3f}", "held out"),
            ("PSNR, RGB", f"{tokenizer['psnr_rgb']:.2f} dB", f"Y {tokenizer['psnr_y']:.2f} dB, held out"),
            ("Generator loss", f"{generator['loss']:.2f}", f"nats a code; unigram {generator['unigram_entropy']:.2f}"),
        ]
    )
    for decision in results["decisions"]:
        report.text(f"{decision[0].upper()}{decision[1:]}.")
    _samples(report, out, pipe, recipe.seed)
    _prompts(report, out, pipe, images.train, recipe.seed)
    _reconstructions(report, out, pipe, images.validation)
    _neighbours(report, pipe, images.train, recipe.seed)
    _curves(report, out, results)
    _sampling(report, search)
    _distances(report, results)
    _next_commands(report, out, pipe, shown_prompts(images.train))
    file = out / "report.html"
    report.save(file)
    return file


def _subtitle(images: ImageSplits, pipe: ImageGenerationPipeline, results: dict) -> str:
    parameters = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (pipe.tokenizer, pipe.generator)]
    minutes = results["seconds"] / 60
    return (
        f"{images.source}: {len(images.train):,} training and {len(images.validation):,} held-out pictures. Tokenizer "
        f"{parameters[0]:.2f} M, generator {parameters[1]:.2f} M parameters. {minutes:.1f} minutes in all."
    )


def _samples(report: Report, out: Path, pipe: ImageGenerationPipeline, seed: int) -> None:
    settings = ", ".join(f"{name} {value}" for name, value in vars(pipe.sampling).items())
    num_classes = min(MOST_CLASSES, len(pipe.class_names))
    _, _, sheet = sample_sheet(pipe, num_classes, 12, seed)
    sheet.save(out / "samples.png")
    caption = "by class: one row each, no text given" if num_classes else "without a condition"
    text = f"What this model draws: the first seeds, none picked. Sampling: {settings}."
    if num_classes:
        text += f" Classes, by id: {', '.join(class_list(pipe.class_names))}."
    report.block(Block("Samples", text, [(sheet, caption)]))


def shown_prompts(train: ImageDataset) -> list[str]:
    """Captions of the training pictures to draw: well-known ones, filled up with the first of the others."""
    captions = list(dict.fromkeys(caption for caption in train.captions or () if caption))
    known = [prompt for prompt in PROMPTS if prompt in captions]
    others = [caption for caption in captions if caption not in known]
    return [*known, *others[: max(0, FEWEST_PROMPTS - len(known))]]


def _prompts(report: Report, out: Path, pipe: ImageGenerationPipeline, train: ImageDataset, seed: int) -> None:
    if not pipe.generator.config.text_dim:
        return
    rows = [(prompt, pipe(prompt=prompt, num_images=10, seed=seed).images) for prompt in shown_prompts(train)]
    sheet = labelled_rows(rows, enlargement(max(height_width(pipe.tokenizer.config.image_size))), label_width=210)
    sheet.save(out / "prompts.png")
    text = "Captions of the training set; the text alone is given, not the class."
    report.block(Block("Prompts", text, [(sheet, "by prompt: one row each")]))


def _reconstructions(report: Report, out: Path, pipe: ImageGenerationPipeline, validation: ImageDataset) -> None:
    sheet = reconstruction_sheet(pipe.tokenizer, validation, 24)
    sheet.save(out / "reconstructions.png")
    text = "Held-out pictures, and below each row what the tokenizer makes of their codes."
    report.block(Block("Reconstructions", text, [(sheet, "originals above, reconstructions below")]))


def _neighbours(report: Report, pipe: ImageGenerationPipeline, train: ImageDataset, seed: int) -> None:
    """Samples beside the training pictures that they resemble most: shows copies, if there are any."""
    num_classes = min(8, len(pipe.class_names))
    labels = [i % num_classes for i in range(8)] if num_classes else None
    samples = pipe(class_labels=labels, num_images=8, seed=seed, output_type="pt").images
    view = train.with_crop(crop="center", flip=False)
    real = torch.stack([item["pixel_values"] for item in Reading(view)])
    order, _ = nearest_neighbours(samples.flatten(1), real.flatten(1), 4)
    text = "First in each row a sample, then the four training pictures that are closest to it in pixels."
    sheets = neighbour_sheets(samples, [real[nearest] for nearest in order])
    report.block(Block("Nearest training pictures", text, sheets))


def _curves(report: Report, out: Path, results: dict) -> None:
    report.section("Training")
    logs = {stage: read_log(out / stage / TRAINING) for stage in ("tokenizer", "generator")}
    parts = {
        (stage, kind): [row for row in rows if row["kind"] == kind]
        for stage, rows in logs.items()
        for kind in ("train", "validation")
    }
    entropy = results["generator"]["unigram_entropy"]
    num_codes = results["codes"]["num_codes"]
    lines = {"ln K": math.log(num_codes), "unigram entropy": entropy}
    curves = []  # of the stages that trained long enough to log a row
    if parts["generator", "train"]:
        rows = parts["generator", "train"], parts["generator", "validation"]
        curves.append((loss_curves(*rows, reference_lines=lines, label="nats a code"), "generator"))
    if parts["tokenizer", "train"]:
        plot = loss_curves(parts["tokenizer", "train"], label="tokenizer loss")
        curves.append((plot, "tokenizer: reconstruction and quantizer terms"))
    if curves:
        report.figures(curves)
    names = {"psnr_rgb": "PSNR, RGB (dB)", "utilization": "utilization U", "perplexity": "perplexity C"}
    report.figures(
        [
            (metric_curves(parts["tokenizer", "validation"], list(names), labels=names), "tokenizer, held out"),
            (code_histogram(results["codes"]["counts"]), "codes of the whole data set"),
        ]
    )


def _sampling(report: Report, search: SamplingSearch | None) -> None:
    """How the sampling settings were chosen, with the figures of all that were tried."""
    if search is None:
        return
    report.section(
        "Sampling settings",
        f"{search.num_images} samples of each setting, under the same conditions and from the same seeds, were "
        f"compared with {search.num_reference} training pictures. Blank: nearly of one colour. Repeated: looks the "
        f"same as another one. A setting may draw {100 * MARGIN:g} points more blank samples than there are blank "
        f"training pictures; of such settings the lowest {search.metric} wins, and of those within {TIE:.0%} of it "
        "the one with the fewest blank and repeated samples, then the freest.",
    )
    head, rows = search.table()
    report.table(rows, [*head[:-1], "choice"])
    report.text(f"Chosen: {search.reason}. The pipeline keeps these settings; options of `wvq sample` replace them.")


def _distances(report: Report, results: dict) -> None:
    """Distribution distances, each beside its floor and with its N."""
    rows, notes = [], []
    for kind in ("reconstruction", "generation"):
        if kind not in results:
            continue
        result = results[kind]
        for name, value, floor, count in metric_rows(result):
            if name.startswith(("fd_", "kd_", "fid", "kid")):
                rows.append((kind, name.removesuffix(AT_FLOOR_N), value, floor, count))
        notes += result["warnings"]
    if not rows:
        return
    report.section(
        "Distances between distributions",
        "Lower is better. The floor is real pictures against other real pictures at the same N: nothing can be "
        "expected below it. These are not FID: the feature network is EfficientNet-Lite0, and N is small.",
    )
    report.table(rows, ["what", "metric", "value", "floor", "N"])
    for note in dict.fromkeys(notes):
        report.text(f"Note: {note}.")


def _short_path(path: Path) -> Path:
    """The path relative to the current folder, if it lies in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _next_commands(report: Report, out: Path, pipe: ImageGenerationPipeline, prompts: list[str]) -> None:
    name, path = pipe.class_names[0] if pipe.class_names else None, shlex.quote(str(out))
    condition = f"--class {shlex.quote(name)}" if name else ""
    lines = [] if sys.prefix == sys.base_prefix else [f"source {_short_path(Path(sys.prefix))}/bin/activate"]
    lines += [f"wvq sample {path} {condition} --num_images 16 --out samples".replace("  ", " ")]
    if pipe.generator.config.text_dim:
        quoted = " ".join(shlex.quote(prompt) for prompt in prompts[:2])
        lines.append(f"wvq sample {path} --prompt {quoted} --num_images 16 --out prompts")
    lines += [
        f"wvq info {path}",
        f"tensorboard --logdir {path}",
        "wvq quickstart --data path/to/your/pictures --out runs/mine",
    ]
    report.section("Next")
    report.code(lines, "in the shell:")
    call = f"class_labels={name!r}, num_images=4" if name else "num_images=4"
    report.code(
        [
            "from wvq import ImageGenerationPipeline",
            f"pipe = ImageGenerationPipeline.from_pretrained({str(out)!r})",
            f"images = pipe({call}, seed=0).images",
        ],
        "in Python:",
    )
