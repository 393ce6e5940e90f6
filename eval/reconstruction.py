"""Evaluation of a tokenizer on held-out pictures: E, U, C, PSNR, SSIM and the distance of the reconstructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from pathlib import Path

import torch

from wvq.checks import SAMPLE_SEED, integer, require
from wvq.data.loading import read_all
from wvq.data.pixels import to_uint8
from wvq.data.stream import Pictures
from wvq.distributed import gather_objects, is_main_process
from wvq.errors import DataError
from wvq.eval.features.networks import FeatureNetwork, default_feature_network, network_settings
from wvq.eval.features.pictures import PictureFeatures, evaluation_view
from wvq.eval.features.shards import Batch, FeatureShards, collected, stream_features, working_folder
from wvq.eval.figures.comparison import Comparison, at_floor_n
from wvq.eval.figures.distances import small_sample_warnings
from wvq.eval.figures.metrics import DISTANCES, compare
from wvq.eval.real.dataset import dataset_features
from wvq.eval.real.kinds import FEWEST, require_kind
from wvq.eval.report.results import make_result
from wvq.hardware import loader_processes
from wvq.models.pretrained import model_hash, weights_hash
from wvq.settings.size import Size, size_text
from wvq.tokenizer.evaluation import evaluate_tokenizer
from wvq.tokenizer.modeling import WassersteinVQModel


def evaluate_reconstruction(
    tokenizer: WassersteinVQModel,
    dataset: Pictures,
    feature_network: FeatureNetwork | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = True,
    seed: int = 0,
    *,
    lpips: torch.nn.Module | None = None,
    reference_kind: str = "validation",
    force_reference: bool = False,
    work: str | Path | None = None,
    cache: str | Path | None = None,
    num_workers: int | None = None,
) -> dict:
    """Measure a tokenizer on held-out pictures under the centre crop; several processes each measure their share.

    The Frechet and kernel distances compare the reconstructions with the same pictures they were made from (``rfid``
    as published, over Inception), so a perfect tokenizer scores 0 there and the floor is no lower bound. The floor
    compares one half of the real pictures with the other; the metrics that end in ``_at_floor_n`` put the
    reconstructions of the first half against the real second half: those are the ones to compare with the floor.

    Args:
        tokenizer: the model, put in eval mode.
        dataset: held-out pictures.
        feature_network: network of the distances; the default one if not given.
        batch_size: pictures in a batch.
        device: where the tokenizer runs; where it is if not given.
        progress: whether to show progress bars.
        seed: seed of the halves.
        lpips: :class:`wvq.tokenizer.losses.LPIPS`, for that figure; not measured if None.
        reference_kind: ``train`` or ``validation``: what the pictures are. A tokenizer is measured on held-out ones.
        force_reference: allow others; the result records that.
        work: folder for the features of the reconstructions made so far: an evaluation that was stopped goes on there.
            It can be removed when the result is kept. A temporary one if None; several processes need one.
        cache: folder of features of real pictures (:mod:`wvq.eval.real.cache`); none are kept if None.
        num_workers: loader processes of each process; :func:`wvq.hardware.loader_processes` decides if None.

    Returns:
        A result dict (see :mod:`wvq.eval.report.results`) with ``num_tokens``, the tokens that U and C were measured
        on, and ``num_unreadable``, pictures left out because they cannot be read.

    Raises:
        ConfigError: pictures of the other kind.
        DataError: fewer than four pictures, too many that cannot be read, or pictures of another size than the
            tokenizer's.
        RunInterrupted: SIGTERM or Ctrl-C came while features were taken; the same call goes on from ``work``.
            The pass before it, for E, U, C, PSNR and the like, is made again.
    """
    forced = require_kind("reconstruction", reference_kind, force_reference)
    seed, batch_size = require("seed", seed, SAMPLE_SEED), require("batch_size", batch_size, integer())
    _check_pictures(dataset, tokenizer.config.image_size)
    if device is not None:
        torch.nn.Module.to(tokenizer, device)
    tokenizer.eval()
    network = feature_network or default_feature_network(device=tokenizer.device)
    view = evaluation_view(dataset)
    workers = loader_processes(tokenizer.device.type, num_workers)
    with working_folder(work) as folder:
        figures, counts = _picture_figures(tokenizer, view, batch_size, progress, lpips, workers)
        real = dataset_features(
            view, network, reference_kind, batch_size, cache=cache, progress=progress, num_workers=workers
        )
        former = {"tokenizer_weights": weights_hash(tokenizer)}
        identity = _identity(tokenizer, former["tokenizer_weights"], real)
        shards = FeatureShards(folder, identity | network_settings(network, view.image_size), work is not None, former)
        _stream_reconstructions(tokenizer, view, real, network, shards, batch_size, progress, workers)
        result = None
        if is_main_process():
            drawn = collected(shards, view.crop_recipe, real.num_images)
            comparison = _compare(network, drawn, real, seed)
            comparison.metrics = figures | comparison.metrics
            settings = {
                "seed": seed,
                "batch_size": batch_size,
                **_tokenizer_settings(tokenizer, identity),
                **({} if lpips is None else {"lpips_sha256": weights_hash(lpips)}),
                "reference": {**real.description(), "kind": reference_kind, **forced},
                **network_settings(network, view.image_size),
            }
            warnings = _warnings(network, comparison, real, bool(forced))
            result = make_result("reconstruction", comparison, settings, warnings) | counts
        return gather_objects(result)[0]


def _check_pictures(dataset: Pictures, image_size: Size) -> None:
    """Refuse too few pictures, as far as their number is known, and those of another size than the tokenizer's."""
    if isinstance(dataset, Sized) and len(dataset) < FEWEST:
        raise DataError(f"reconstruction needs at least {FEWEST} held-out pictures, not {len(dataset)}")
    if dataset.image_size != image_size:
        sizes = size_text(dataset.image_size), size_text(image_size)
        raise DataError(f"image_size: the pictures have {sizes[0]} px, the tokenizer needs {sizes[1]}")


def _picture_figures(
    tokenizer: WassersteinVQModel,
    view: Pictures,
    batch_size: int,
    progress: bool,
    lpips: torch.nn.Module | None,
    workers: int,
) -> tuple[dict[str, float], dict[str, int]]:
    """Figures of codes and of pictures one by one, and what a result says of the counts behind them."""
    figures = dict(evaluate_tokenizer(tokenizer, view, batch_size, progress=progress, lpips=lpips, num_workers=workers))
    num_images = int(figures.pop("num_images"))
    if num_images < FEWEST:
        raise DataError(f"reconstruction needs at least {FEWEST} held-out pictures that can be read, not {num_images}")
    return figures, {name: int(figures.pop(name)) for name in ("num_tokens", "num_unreadable")}


def _stream_reconstructions(
    tokenizer: WassersteinVQModel,
    view: Pictures,
    real: PictureFeatures,
    network: FeatureNetwork,
    shards: FeatureShards,
    batch_size: int,
    progress: bool,
    workers: int,
) -> None:
    """Leave the features of the reconstructions of the real pictures that could be read."""

    def read(runs: list[range]) -> Iterator[torch.Tensor]:
        chunks = [[real.indices[number] for number in run] for run in runs]
        return read_all(view, chunks, tokenizer.device, workers)

    @torch.inference_mode()
    def draw(run: range, pixels: torch.Tensor) -> Batch:
        codes = tokenizer.encode(pixels).codes
        return Batch(to_uint8(tokenizer.decode_codes(codes)), list(run))

    label = "reconstructions" if progress else None
    stream_features(draw, range(real.num_images), network, shards, batch_size, label, read=read)


def _identity(tokenizer: WassersteinVQModel, weights: str, real: PictureFeatures) -> dict[str, str | int]:
    """All that the reconstructions depend on."""
    return {
        "tokenizer_weights": model_hash(tokenizer, weights=weights),
        "pictures": real.sha256,
        "num_images": real.num_images,
        "dtype": str(tokenizer.dtype).removeprefix("torch."),
    }


def _tokenizer_settings(tokenizer: WassersteinVQModel, identity: Mapping[str, str | int]) -> dict[str, object]:
    """The settings of a result that describe the tokenizer."""
    return {
        "num_codes": tokenizer.config.num_codes,
        "tokenizer_weights": identity["tokenizer_weights"],
        "dtype": identity["dtype"],
        "averaging_decay": tokenizer.config.averaging_decay,
        "device": tokenizer.device.type,
    }


def _warnings(network: FeatureNetwork, comparison: Comparison, real: PictureFeatures, forced: bool) -> list[str]:
    """Warnings for a reader of the figures, about the pictures and their numbers."""
    return [
        *(["the pictures are training pictures: not comparable with published figures"] if forced else []),
        *real.warnings,
        *network.warnings,
        *small_sample_warnings(network.dim, pictures=comparison.num_images, floor=comparison.num_floor),
    ]


def _compare(network: FeatureNetwork, drawn: PictureFeatures, real: PictureFeatures, seed: int) -> Comparison:
    """Reconstructions against their originals; the floor over two halves of these."""

    def distances(pictures: PictureFeatures, others: PictureFeatures) -> dict[str, float]:
        return _named(compare(network, pictures, others, DISTANCES))

    order = torch.randperm(real.num_images, generator=torch.Generator().manual_seed(seed))
    num_floor = real.num_images // 2
    first, second = order[:num_floor], order[num_floor : 2 * num_floor]
    floor = distances(real.part(first), real.part(second))
    metrics = distances(drawn, real) | at_floor_n(distances(drawn.part(first), real.part(second)))
    return Comparison(metrics, floor, drawn.num_images, real.num_images, num_floor)


def _named(metrics: dict[str, float]) -> dict[str, float]:
    """The field's names for distances of reconstructions from their originals over Inception features."""
    return {{"fid": "rfid", "kid": "rkid"}.get(name, name): value for name, value in metrics.items()}
