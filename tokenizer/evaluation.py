"""Held-out measurement of a tokenizer: E, U, C over one histogram of the whole set, PSNR on RGB and Y, SSIM."""

from __future__ import annotations

import warnings
from collections.abc import Sized
from typing import Any

import torch
from tqdm import tqdm

from wvq.data.loading import share_of
from wvq.data.pixels import to_uint8
from wvq.data.stream import Pictures
from wvq.data.unreadable import Reading, join_left_out, summary
from wvq.distributed import gather_objects, process_rank, sum_over_processes, world_size
from wvq.errors import DataError
from wvq.interruption import StopRequest
from wvq.settings.size import height_width
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.picture_metrics import luma, psnr, ssim
from wvq.tokenizer.quantizers.statistics import CodeStatistics


@torch.no_grad()
def evaluate_tokenizer(
    model: WassersteinVQModel,
    dataset: Pictures,
    batch_size: int = 64,
    progress: bool = False,
    statistics: CodeStatistics | None = None,
    lpips: torch.nn.Module | None = None,
    stop: StopRequest | None = None,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Measure reconstructions of all pictures of a set; under several processes each measures its share.

    Pictures that cannot be read are left out, with a warning. However many there are, this is no error as long as one
    can be read: the measurement may stand at the end of a long run.

    Args:
        model: in eval mode.
        dataset: held-out pictures of the tokenizer's size.
        batch_size: pictures at once.
        progress: show a progress bar.
        statistics: the accumulator to use, for callers that want its histogram afterwards.
        lpips: distance of two batches in [-1, 1], to 0-d, for the figure of that name; not measured if None.
        stop: ends the measurement early.
        num_workers: loader processes of each process; :func:`wvq.hardware.loader_processes` decides if None.

    Returns:
        The figures of :meth:`CodeStatistics.compute` over one histogram of the whole set, psnr_rgb and psnr_y (dB, mean
        over pictures of the 8-bit reconstruction), ssim (RGB; absent under 11 pixels), lpips if given,
        num_images, and num_unreadable, the pictures left out; of several scales also alignment and alignment_per_scale
        (:class:`ScaleAlignment`).

    Raises:
        DataError: none of the pictures can be read; or one cannot, where the data set refuses that.
        PassInterrupted: ``stop`` was set in one of the processes.
    """
    device = model.device
    rank, world = process_rank(), world_size()
    visible = progress and rank == 0
    keys = share_of(dataset, rank, world)
    share = Reading(dataset, keys, num_workers=num_workers)
    config = model.config
    statistics = statistics or CodeStatistics(config.num_codes, config.num_groups, device, config.scale_shapes)
    measurements = model.quantizer.measurements(device)
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    total = -(-len(keys) // batch_size) if isinstance(keys, Sized) else None
    # On a terminal alone: within the bar of a run it moves the cursor, which leaves codes in a log.
    hidden = None if visible else True
    bar = tqdm(share.batches(batch_size, device), "evaluating", total, unit="batch", disable=hidden, leave=False)
    for batch in (stop or StopRequest()).until_set(bar):
        pixels = batch["pixel_values"]
        output = model.encode(pixels)
        statistics.update(output.codes, (output.features - output.quantized).square().sum(1).mean())
        for measurement in measurements:
            measurement.update(output.features.permute(0, 2, 3, 1), output.codes)
        pictures, originals = to_uint8(model.decode(output.quantized)), to_uint8(pixels)
        sums += _picture_sums(pictures, originals, lpips)
    statistics.reduce()
    for measurement in measurements:
        measurement.reduce()
    sum_over_processes(sums)
    left_out = join_left_out(gather_objects(share.left_out))
    count, rgb, y, similarity, distance = sums.tolist()
    looked_at = int(count) + len(left_out)
    if not count:
        raise DataError(f"{summary(left_out.values(), looked_at)}: nothing is left to measure")
    if left_out and rank == 0:
        warnings.warn(f"{summary(left_out.values(), looked_at)} and are left out of evaluation", stacklevel=2)
    figures: dict[str, Any] = statistics.compute() | {"psnr_rgb": rgb / count, "psnr_y": y / count}
    for measurement in measurements:
        figures |= measurement.compute()
    if min(height_width(config.image_size)) >= 11:
        figures["ssim"] = similarity / count
    if lpips is not None:
        figures["lpips"] = distance / count
    return figures | {"num_images": int(count), "num_unreadable": len(left_out)}


def _picture_sums(pictures: torch.Tensor, originals: torch.Tensor, lpips: torch.nn.Module | None) -> torch.Tensor:
    x, y = pictures.float(), originals.float()
    distance = x.new_zeros(()) if lpips is None else lpips(x / 127.5 - 1, y / 127.5 - 1) * len(x)
    similarity = ssim(x, y).sum() if min(x.shape[-2:]) >= 11 else x.new_zeros(())
    count = torch.tensor(float(len(x)), device=x.device)
    return torch.stack([count, psnr(x, y).sum(), psnr(luma(x), luma(y)).sum(), similarity, distance]).double()
