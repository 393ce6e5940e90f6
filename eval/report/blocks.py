"""The pictures of an evaluation's page: samples, their nearest real pictures, codes, curves, reconstructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from wvq.data.dataset import ImageDataset
from wvq.data.pixels import to_pil, to_uint8
from wvq.data.sheets import image_grid, labelled_rows
from wvq.data.stream import Pictures, StreamedImages, numbered_pictures
from wvq.data.unreadable import Reading
from wvq.eval.features.networks import FeatureNetwork
from wvq.eval.features.pictures import PictureFeatures, evaluation_view
from wvq.eval.figures.distances import nearest_neighbours
from wvq.eval.real.references import Reference
from wvq.eval.report.page import Block
from wvq.eval.report.plots import code_histogram, metric_curves
from wvq.eval.report.sheets import enlargement, neighbour_sheets, sample_sheet
from wvq.eval.samples.conditions import condition_plan
from wvq.eval.samples.drawing import resized
from wvq.settings.size import height_width

if TYPE_CHECKING:
    from wvq.pipelines.image_generation import ImageGenerationPipeline
    from wvq.tokenizer.modeling import WassersteinVQModel

CLASSES, PER_CLASS = 16, 8  # rows and columns of the sheet of samples
PROMPTED = 16  # samples on a sheet with prompts
NEIGHBOURS, QUERIES = 4, 8
TRIPLES = 8


def generation_blocks(
    pipeline: ImageGenerationPipeline,
    result: dict[str, Any],
    network: FeatureNetwork,
    reference: Reference | None = None,
    sampling: dict[str, Any] | None = None,
) -> list[Block]:
    """Samples by class or prompt, their nearest real pictures, the codes they use, and the curves of a sweep.

    Args:
        pipeline: the pipeline that was measured.
        result: its result.
        network: the feature network.
        reference: what it was compared with, for the nearest pictures and for prompts that come from there.
        sampling: fields of SamplingSettings; the pipeline's own where None or left out.
    """
    settings, sampling = result["settings"], sampling or {}
    dataset = None if reference is None else reference.dataset
    pool = None
    if reference is not None and dataset is not None:
        pool = reference.pool(network, result["num_images"], progress=False)
    if settings["prompts"]:
        images, codes, sheet = _by_prompt(pipeline, result, dataset, pool, sampling)
        text = "The first samples under their prompts, none picked."
    else:
        by_class = settings["classes"] is not None
        num_classes = min(CLASSES, pipeline.generator.config.num_classes) if by_class else 0
        images, codes, sheet = sample_sheet(pipeline, num_classes, PER_CLASS, settings["seed"], **sampling)
        text = "One class a row, the first seeds, none picked." if by_class else "The first seeds, none picked."
    blocks = [Block("Samples", text, [(sheet, "samples")])]
    if dataset is not None and pool is not None:
        samples = images[:: max(1, len(images) // QUERIES)][:QUERIES]
        blocks.append(_neighbour_block(resized(samples, settings["resize"]), network, dataset, pool))
    counts = np.bincount(codes.flatten().numpy(), minlength=pipeline.generator.config.num_codes)
    text = f"How often the {len(images)} samples above use each code; so few cannot use all of a large codebook."
    blocks.append(Block("Codes", text, [(code_histogram(counts), "codes")]))
    if sweep := result.get("sweep"):
        keys = [name for name in sweep["rows"][0] if name != sweep["field"]]
        text = f"All but {sweep['field']} is as in the protocol. Its best value here was found on this very reference."
        blocks.append(Block("Sweep", text, [(metric_curves(sweep["rows"], keys, sweep["field"]), sweep["field"])]))
    return blocks


def _by_prompt(
    pipeline: ImageGenerationPipeline,
    result: dict[str, Any],
    dataset: ImageDataset | None,
    pool: PictureFeatures | None,
    sampling: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, Image.Image]:
    """Pictures, codes and sheet of the first samples that were measured, each over its prompt."""
    settings, count = result["settings"], result["num_images"]
    indices = [] if pool is None else pool.indices[:count]
    classes, prompts = settings["classes"], settings["prompts"]
    plan = condition_plan(pipeline.generator.config, dataset, indices, classes, prompts, count)
    conditions = plan.part(range(min(PROMPTED, count)))
    output = pipeline(**conditions, seed=settings["seed"], output_type="pt", **sampling)
    scale = 2 * enlargement(max(output.images.shape[-2:]))
    return output.images, output.codes, image_grid(output.images, PER_CLASS // 2, scale, captions=conditions["prompt"])


def _neighbour_block(
    samples: torch.Tensor, network: FeatureNetwork, dataset: ImageDataset, real: PictureFeatures
) -> Block:
    features = network(to_uint8(samples)).features.cpu()
    order, _ = nearest_neighbours(features, real.features, min(NEIGHBOURS, real.num_images))
    view = evaluation_view(dataset)
    nearest = [
        torch.stack([view[real.indices[number]]["pixel_values"] for number in numbers]) for numbers in order.tolist()
    ]
    text = (
        f"First in each row a sample, then those of {real.num_images:,} real pictures (the reference and its floor) "
        "that are nearest to it in the features. Copies of them would show here."
    )
    return Block("Nearest real pictures", text, neighbour_sheets(samples, nearest))


@torch.inference_mode()
def reconstruction_blocks(tokenizer: WassersteinVQModel, dataset: Pictures) -> list[Block]:
    """Originals, reconstructions and their differences."""
    view = evaluation_view(numbered_pictures(dataset, TRIPLES))
    count = min(TRIPLES, len(view))
    items = list(Reading(view, [number * len(view) // count for number in range(count)]))
    items = items or list(Reading(view, limit=count))  # none of those can be read
    originals = torch.stack([item["pixel_values"] for item in items])
    drawn = tokenizer.decode_codes(tokenizer.encode(originals.to(tokenizer.device)).codes).float().cpu()
    difference = ((drawn - originals).abs() * 2 - 1).clamp(-1, 1)
    rows: list[tuple[str, list[Image.Image]]] = [
        ("original", to_pil(originals)),
        ("reconstruction", to_pil(drawn)),
        ("difference x 2", to_pil(difference)),
    ]
    sheet = labelled_rows(rows, enlargement(max(height_width(view.image_size)), 96))
    text = "The first pictures." if isinstance(dataset, StreamedImages) else "Pictures from all over the set."
    return [Block("Reconstructions", text, [(sheet, "originals, reconstructions")])]
