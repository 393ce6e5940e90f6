"""Evaluation of a tokenizer on held-out pictures: E, U, C, PSNR, SSIM and the distance of the reconstructions."""

from __future__ import annotations

import torch

from wvq.data import ImageDataset
from wvq.errors import DataError
from wvq.eval.features import FeatureNetwork, default_feature_network
from wvq.eval.metrics import AT_FLOOR_N, distribution_metrics, real_floor, small_sample_warnings
from wvq.eval.references import (
    collect_features,
    evaluation_view,
    pixel_batches,
    reference_features,
    require_kind,
)
from wvq.eval.results import make_result, network_settings
from wvq.images import to_uint8
from wvq.pretrained import weights_hash
from wvq.tokenizer.evaluation import evaluate_tokenizer
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.unreadable import Reading


def evaluate_reconstruction(
    tokenizer: WassersteinVQModel,
    dataset: ImageDataset,
    feature_network: FeatureNetwork | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = True,
    seed: int = 0,
    *,
    lpips: torch.nn.Module | None = None,
    reference_kind: str = "validation",
    force_reference: bool = False,
) -> dict:
    """Measures a tokenizer on held-out pictures under the centre crop.

    The Frechet and kernel distances compare the reconstructions with the very pictures they were made from (``rfid``
    as published, over Inception), so a perfect tokenizer scores 0 there and the floor is no lower bound. The floor
    compares one half of the real pictures with the other; the metrics that end in ``_at_floor_n`` put the
    reconstructions of the first half against the real second half, which is the comparison to hold against the floor.

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
        force_reference: allow others; the result says so.

    Returns:
        A result dict (see :mod:`wvq.eval.results`) with ``num_tokens``, the tokens that U and C were measured on, and
        ``num_unreadable``, pictures left out because they cannot be read.

    Raises:
        ConfigError: pictures of the other kind.
        DataError: fewer than four pictures, too many that cannot be read, or pictures of another size than the
            tokenizer's.
    """
    forced = require_kind("reconstruction", reference_kind, force_reference)
    if len(dataset) < 4:
        raise DataError(f"reconstruction needs at least 4 held-out pictures, not {len(dataset)}")
    if dataset.image_size != tokenizer.config.image_size:
        raise DataError(
            f"image_size: the pictures have {dataset.image_size} px, the tokenizer needs {tokenizer.config.image_size}"
        )
    tokenizer = (tokenizer if device is None else tokenizer.to(device)).eval()
    network = feature_network or default_feature_network(device=tokenizer.device)
    view = evaluation_view(dataset)

    metrics = dict(evaluate_tokenizer(tokenizer, view, batch_size, progress=progress, lpips=lpips))
    num_images, num_tokens, num_unreadable = (metrics.pop(f"num_{name}") for name in ("images", "tokens", "unreadable"))
    if num_images < 4:
        raise DataError(f"reconstruction needs at least 4 held-out pictures that can be read, not {num_images}")
    real = reference_features(view, network, batch_size, progress="real features" if progress else None)
    drawn = collect_features(
        _reconstructions(tokenizer, view, batch_size),
        network,
        num_images,
        view.crop_recipe,
        "reconstruction features" if progress else None,
    )

    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    num_floor = num_images // 2
    first, second = order[:num_floor], order[num_floor : 2 * num_floor]
    floor = _named(real_floor(network.name, real.features[first], real.features[second]))
    at_floor_n = _named(distribution_metrics(network.name, drawn.features[first], real.features[second]))
    metrics |= _named(distribution_metrics(network.name, drawn.features, real.features))
    metrics |= {name + AT_FLOOR_N: value for name, value in at_floor_n.items()}

    result = make_result(
        kind="reconstruction",
        metrics=metrics,
        floor=floor,
        num_images=num_images,
        num_reference=real.num_images,
        num_floor=num_floor,
        settings={
            "seed": seed,
            "batch_size": batch_size,
            "num_codes": tokenizer.config.num_codes,
            **({} if lpips is None else {"lpips_sha256": weights_hash(lpips)}),
            "reference": real.description() | {"kind": reference_kind} | forced,
            **network_settings(network, view.image_size),
        },
        warnings=[
            *(["the pictures are training pictures: not comparable with published figures"] if forced else []),
            *real.warnings,
            *network.warnings,
            *small_sample_warnings(network.dim, pictures=num_images, floor=num_floor),
        ],
    )
    return result | {"num_tokens": num_tokens, "num_unreadable": num_unreadable}


def _named(metrics: dict[str, float]) -> dict[str, float]:
    """The field's names for distances of reconstructions from their originals over Inception features."""
    return {{"fid": "rfid", "kid": "rkid"}.get(name, name): value for name, value in metrics.items()}


@torch.inference_mode()
def _reconstructions(tokenizer: WassersteinVQModel, dataset: ImageDataset, batch_size: int):
    for pixels in pixel_batches(Reading(dataset), batch_size):
        codes = tokenizer.encode(pixels.to(tokenizer.device)).codes
        yield to_uint8(tokenizer.decode_codes(codes))
