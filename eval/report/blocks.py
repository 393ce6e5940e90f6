"""A result of an evaluation for people: a Markdown text, and a page with pictures beside the figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from wvq.data.dataset import ImageDataset
from wvq.data.pixels import to_pil, to_uint8
from wvq.data.sheets import image_grid, labelled_rows
from wvq.data.unreadable import Reading
from wvq.errors import ConfigError
from wvq.eval.features.networks import FeatureNetwork
from wvq.eval.features.pictures import PictureFeatures, evaluation_view
from wvq.eval.figures.distances import AT_FLOOR_N, nearest_neighbours
from wvq.eval.real.references import RealPictures
from wvq.eval.report.markdown import markdown_table
from wvq.eval.report.page import Report
from wvq.eval.report.plots import code_histogram, metric_curves
from wvq.eval.report.results import is_result
from wvq.eval.samples.conditions import condition_plan
from wvq.eval.samples.drawing import resized
from wvq.files.atomic import read_json, write_text
from wvq.plain_output import one_line

if TYPE_CHECKING:
    from wvq.pipelines.image_generation import ImageGenerationPipeline
    from wvq.tokenizer.modeling import WassersteinVQModel

CLASSES, PER_CLASS = 16, 8  # rows and columns of the sheet of samples
PROMPTED = 16  # samples on a sheet with prompts
NEIGHBOURS, QUERIES = 4, 8
TRIPLES = 8
_TITLE = "Evaluation"


def metric_rows(result: dict) -> list[tuple[str, float, float | None, int]]:
    """Name, value, floor at the same N where there is one, and N of each metric."""
    rows = []
    for name, value in result["metrics"].items():
        plain = name.removesuffix(AT_FLOOR_N)
        count = result["num_floor"] if plain != name else result["num_images"]
        floor = result["floor"].get(plain) if count == result["num_floor"] else None
        rows.append((name, value, floor, count))
    return rows


def setting_rows(result: dict) -> list[tuple[str, str]]:
    """Every setting on a line of its own, nested ones by dotted names."""

    def flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
        rows = []
        for name, value in values.items():
            if isinstance(value, dict):
                rows += flat(value, f"{prefix}{name}.")
            elif value is not None:
                rows.append((f"{prefix}{name}", str(value)))
        return rows

    return [
        *flat(result["settings"]),
        *flat(result["versions"], "versions."),
        *flat(result["hardware"], "hardware."),
        ("date", result["date"]),
    ]


def markdown(result: dict) -> str:
    """The result as Markdown: figures with their floors, warnings, and everything that they depend on."""

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"

    figures = [[name, shown(value), shown(floor), f"{count:,}"] for name, value, floor, count in metric_rows(result)]
    parts = [
        f"# {_TITLE} of {result['kind']}",
        f"{result['num_images']:,} pictures against {result['num_reference']:,}.",
        markdown_table(["metric", "value", "real against real", "N"], figures),
        *(f"Warning: {one_line(warning)}." for warning in result["warnings"]),
        *_sweep_table(result),
        markdown_table(["setting", "value"], setting_rows(result)),
    ]
    return "\n\n".join(parts) + "\n"


def _sweep_table(result: dict) -> list[str]:
    rows = result.get("sweep", {}).get("rows", [])
    names = list(rows[0]) if rows else []
    shown = [[f"{row[name]:.4f}" if isinstance(row[name], float) else str(row[name]) for name in names] for row in rows]
    return [markdown_table(names, shown)] if rows else []


def _beside(file: str | Path) -> list[Path]:
    file = Path(file)
    stem = file.with_suffix("") if file.suffix == ".json" else file
    return [stem.with_name(stem.name + ending) for ending in (".md", ".html")]


def refuse_foreign_files(file: str | Path) -> None:
    """Refuse a result file where it, or the text and page beside it, would take the place of something else.

    Raises:
        ConfigError: the file there is no result, or one beside it is not what was written with one.
    """
    file = Path(file)
    if file.exists() and not is_result(read_json(file, ConfigError, f"{file} is gone")):
        raise ConfigError(f"out: {file} is no result of wvq evaluate and would be written over; choose another name")
    for other in filter(Path.exists, _beside(file)):
        if not re.search(rf"(^# |<title>){_TITLE} of ", other.read_text(encoding="utf-8", errors="replace")):
            raise ConfigError(f"out: {other} would be written over, and no evaluation wrote it; choose another name")


def write_summary(file: str | Path, result: dict, blocks: list[tuple[str, str, list]]) -> list[Path]:
    """Write ``<file>.md`` and ``<file>.html`` beside a result's JSON.

    Args:
        file: of the JSON.
        result: the result.
        blocks: title, text and (picture, caption) pairs of each section of pictures.

    Returns:
        The two files.
    """
    written = _beside(file)
    write_text(written[0], markdown(result))
    report = Report(f"{_TITLE} of {result['kind']}", f"{result['num_images']:,} pictures; {result['date']}")
    rows = metric_rows(result)
    report.cards(
        [
            (name, value, f"N = {count:,}" + (f", real against real {floor:.4g}" if floor is not None else ""))
            for name, value, floor, count in rows
            if not name.endswith(AT_FLOOR_N)
        ]
    )
    for warning in result["warnings"]:
        report.warning(f"{warning[0].upper()}{warning[1:]}.")
    for title, text, pictures in blocks:
        report.section(title, text).figures(pictures)
    report.section(
        "Figures",
        "The floor holds real pictures against other real pictures at the same N: nothing better can be expected. "
        f"Figures that end in `{AT_FLOOR_N}` were taken at the floor's N.",
    )
    report.table(rows, ["metric", "value", "real against real", "N"])
    report.section("Protocol", "Everything that the figures depend on.")
    report.table(setting_rows(result), ["setting", "value"])
    report.save(written[1])
    return written


def generation_blocks(
    pipeline: ImageGenerationPipeline,
    result: dict,
    network: FeatureNetwork,
    reference: RealPictures | None = None,
    sampling: dict | None = None,
) -> list[tuple[str, str, list]]:
    """Samples by class or prompt, their nearest real pictures, the codes they use, and the curves of a sweep.

    Args:
        pipeline: the pipeline that was measured.
        result: its result.
        network: the feature network.
        reference: what it was measured against, for the nearest pictures and for prompts that come from there.
        sampling: fields of SamplingSettings; the pipeline's own where None or left out.
    """
    settings, dataset = result["settings"], reference and reference.dataset
    pool = None if dataset is None else reference.pool(network, result["num_images"], progress=False)
    if settings["prompts"]:
        images, codes, sheet = _by_prompt(pipeline, result, dataset, pool, sampling or {})
        said = "The first samples under their prompts, none picked."
    else:
        by_class = settings["classes"] is not None
        images, codes, sheet = _by_class(pipeline, settings["seed"], sampling or {}, by_class)
        said = "One class a row, the first seeds, none picked." if by_class else "The first seeds, none picked."
    blocks = [("Samples", said, [(sheet, "samples")])]
    if pool is not None:
        samples = images[:: max(1, len(images) // QUERIES)][:QUERIES]
        blocks.append(_neighbour_block(resized(samples, settings["resize"]), network, dataset, pool))
    counts = np.bincount(codes.flatten().numpy(), minlength=pipeline.generator.config.num_codes)
    said = f"How often the {len(images)} samples above use each code; so few cannot use all of a large codebook."
    blocks.append(("Codes", said, [(code_histogram(counts), "codes")]))
    if sweep := result.get("sweep"):
        keys = [name for name in sweep["rows"][0] if name != sweep["field"]]
        text = f"All but {sweep['field']} is as in the protocol. Its best value here was found on this very reference."
        blocks.append(("Sweep", text, [(metric_curves(sweep["rows"], keys, sweep["field"]), sweep["field"])]))
    return blocks


def _by_class(
    pipeline: ImageGenerationPipeline, seed: int, sampling: dict, by_class: bool
) -> tuple[torch.Tensor, torch.Tensor, Image.Image]:
    """Pictures, codes and sheet of the first seeds of each class; without classes, of the first seeds."""
    names = list(pipeline.class_names)[:CLASSES] or list(range(min(CLASSES, pipeline.generator.config.num_classes)))
    names = names if by_class else []
    # Without classes one call after the other, each with the next seeds.
    calls = [{"class_labels": name, "seed": seed} for name in names]
    calls = calls or [{"seed": seed + PER_CLASS * row} for row in range(4)]
    drawn = [pipeline(**call, num_images=PER_CLASS, output_type="pt", **sampling) for call in calls]
    labels = [str(name) for name in names] or [""] * len(drawn)
    rows = [(label, to_pil(output.images)) for label, output in zip(labels, drawn, strict=True)]
    sheet = labelled_rows(rows, _scale(drawn[0].images), label_width=110 if names else 0)
    return torch.cat([output.images for output in drawn]), torch.cat([output.codes for output in drawn]), sheet


def _by_prompt(
    pipeline: ImageGenerationPipeline,
    result: dict,
    dataset: ImageDataset | None,
    pool: PictureFeatures | None,
    sampling: dict,
) -> tuple[torch.Tensor, torch.Tensor, Image.Image]:
    """Pictures, codes and sheet of the first samples that were measured, each over its prompt."""
    settings, count = result["settings"], result["num_images"]
    indices = [] if pool is None else pool.indices[:count]
    labels, _, texts = condition_plan(pipeline, dataset, indices, settings["classes"], settings["prompts"], count)
    texts = texts[:PROMPTED]
    conditions = {} if labels is None else {"class_labels": labels[: len(texts)]}
    output = pipeline(**conditions, prompt=texts, seed=settings["seed"], output_type="pt", **sampling)
    sheet = image_grid(output.images, PER_CLASS // 2, scale=2 * _scale(output.images), captions=texts)
    return output.images, output.codes, sheet


def _scale(images: torch.Tensor) -> int:
    """How many times small pictures are enlarged."""
    return max(1, 64 // images.shape[-1])


def _neighbour_block(
    samples: torch.Tensor, network: FeatureNetwork, dataset: ImageDataset, real: PictureFeatures
) -> tuple[str, str, list]:
    found = network(to_uint8(samples)).features.cpu()
    order, _ = nearest_neighbours(found, real.features, min(NEIGHBOURS, real.num_images))
    view = evaluation_view(dataset)
    rows = []
    for sample, nearest in zip(samples, order.tolist(), strict=True):
        pictures = [view[real.indices[number]]["pixel_values"] for number in nearest]
        rows.append(("", [*to_pil(sample), *to_pil(torch.stack(pictures))]))
    middle = -(-len(rows) // 2)
    halves = [labelled_rows(part, _scale(samples), label_width=8) for part in (rows[:middle], rows[middle:]) if part]
    text = (
        f"First in each row a sample, then those of {real.num_images:,} real pictures (the reference and its floor) "
        "that are nearest to it in the features. Copies of them would show here."
    )
    return "Nearest real pictures", text, [(half, "sample, then its nearest real pictures") for half in halves]


@torch.inference_mode()
def reconstruction_blocks(tokenizer: WassersteinVQModel, dataset: ImageDataset) -> list[tuple[str, str, list]]:
    """Originals, reconstructions and what differs."""
    view = evaluation_view(dataset)
    count = min(TRIPLES, len(view))
    items = list(Reading(view, [number * len(view) // count for number in range(count)]))
    items = items or list(Reading(view, limit=count))  # none of those can be read
    originals = torch.stack([item["pixel_values"] for item in items])
    drawn = tokenizer.decode_codes(tokenizer.encode(originals.to(tokenizer.device)).codes).float().cpu()
    scale = max(1, 96 // view.image_size)
    difference = ((drawn - originals).abs() * 2 - 1).clamp(-1, 1)
    rows: list[tuple[str, list[Image.Image]]] = [
        ("original", to_pil(originals)),
        ("reconstruction", to_pil(drawn)),
        ("difference x 2", to_pil(difference)),
    ]
    sheet = labelled_rows(rows, scale)
    return [("Reconstructions", "Pictures from all over the set.", [(sheet, "originals, reconstructions")])]
