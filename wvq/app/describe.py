"""Describes a folder or file of wvq: a model, codes, a run, pictures, features, or a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from wvq.checks import ANY_SOURCE, is_number
from wvq.data.codes import HEADER_NAME, CodeHeader
from wvq.data.layout import layout_text
from wvq.errors import CheckpointError, DataError
from wvq.files.atomic import read_json
from wvq.files.fingerprint import DataFingerprint
from wvq.files.names import IDENTITY_NAME, INDEX_NAME, JOB_NAME, MAX_JOB_BYTES, TRAINING
from wvq.files.user_folders import expand_user
from wvq.files.weight_files import verify_weights
from wvq.generator.base.conditioning import class_list
from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.models.config import read_config
from wvq.settings.size import height_width, is_size, size_text
from wvq.training.tracking import LOG_NAME


def describe(path: str | Path) -> str:
    """Describe what is at ``path``, in several lines.

    Raises:
        DataError: nothing is there, or it is not of wvq.
        CheckpointError, CacheError: it is of wvq, but damaged.
    """
    path = expand_user(path, rule=ANY_SOURCE)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        return {".png": _picture, ".npz": _archive}.get(path.suffix.lower(), _result)(path)
    if (path / INDEX_NAME).exists():
        return _pipeline(path)
    if (path / HEADER_NAME).exists():
        return _cache(path)
    if (path / "config.json").exists():
        return _model(path)
    if (path / TRAINING).is_dir():
        return f"{path}: a training run that has not ended; see {path / TRAINING / LOG_NAME}, or resume it"
    if (path / JOB_NAME).exists():
        return _samples(path)
    if (path / IDENTITY_NAME).exists():
        return _features(path)
    if folders := sorted(file.parent for file in path.glob(f"*/{IDENTITY_NAME}")):
        return "\n".join([f"{path}: features that evaluations keep", *map(_features, folders)])
    raise DataError(
        f"{path} holds no pipeline, tokenizer, generator, code cache, training run, samples or features of wvq"
    )


def _lines(title: str, rows: Mapping[str, object]) -> str:
    rows = {name: value for name, value in rows.items() if value not in (None, "", [])}
    width = max([16, *map(len, rows)]) + 2
    return "\n".join([title, *(f"  {name:<{width}}{value}" for name, value in rows.items())])


def _model(path: Path) -> str:
    file = path / "config.json"
    from wvq.generator.kinds import MODEL_TYPES

    kind = read_json(file, CheckpointError, f"{file} is missing").get("model_type")
    if path.name == "text_encoder" and (path.parent / INDEX_NAME).exists():
        return f"{path}: text encoder"
    verify_weights(path)
    if kind == "wasserstein_vq":
        return _tokenizer(path)
    if kind in MODEL_TYPES:
        return _generator(path)
    raise DataError(f'{path} holds a model of type "{kind}", which is not one of wvq')


def _tokenizer(path: Path) -> str:
    from wvq.tokenizer.configuration import WassersteinVQConfig

    config = read_config(WassersteinVQConfig, path)
    height, width = height_width(config.image_size)
    shared = f', its scales share convolutions by the table "{config.scale_conv_table}"'
    compared = ", features and codes at length 1" if config.l2_normalize else ""
    compared += ", codes by the largest product" if config.similarity == "dot" else ""
    return _lines(
        f"{path}: image tokenizer",
        {
            "pictures": f"{height} x {width} px" + (f", padded ({config.pad_color})" if config.fit == "pad" else ""),
            "codes": f"{layout_text(config.code_layout)}, K = {config.num_codes:,}, D = {config.code_dim}",
            "quantizer": config.quantizer + compared + (shared if config.scales and config.num_scale_convs else ""),
            "trained on": _classes(config.class_names),
            "weights": _averaging(config.averaging_decay),
            "data": _data(path),
            **_origin(path),
            **_measured(path),
        },
    )


def _any_order(config: GeneratorConfig) -> bool:
    return isinstance(config, ImageCodeTransformerConfig) and config.target_positions and config.any_order is not False


def _generator(path: Path) -> str:
    from wvq.generator.kinds import drawing_text, read_generator_config

    config = read_generator_config(path)
    conditions = [f"{config.num_classes} classes"] if config.num_classes else []
    conditions += [f"text of up to {config.text_length} tokens"] if config.text_dim else []
    return _lines(
        f"{path}: generator of image codes",
        {
            "kind": f"{config.model_type} of {config.code_layout['kind']} codes",
            "size": f"{config.num_layers} layers, width {config.hidden_size}, {config.num_heads} heads",
            "codes": f"{layout_text(config.code_layout)}, K = {config.num_codes:,}",
            "draws": drawing_text(config),
            "order": "any: passes may be set" if _any_order(config) else None,
            "conditions": " and ".join(conditions) or "none",
            "conditioning": getattr(config, "conditioning", None),  # where a kind has several
            "classes": _classes(config.class_names, config.num_classes),
            "weights": _averaging(config.averaging_decay),
            "data": _data(path),
            **_measured(path),
        },
    )


def _classes(names: Sequence[str], count: int = 0) -> str:
    """The classes with their ids; of ``count`` classes without names, the ids."""
    return ", ".join(class_list(names)) or (f"ids 0 to {count - 1:,}, without names" if count else "")


def _data(path: Path) -> str | None:
    """The pictures that a model or a cache was made from, in short."""
    fingerprint = DataFingerprint.read(path)
    return _parts(fingerprint.summary()) if fingerprint else None


def _compared(fingerprints: object) -> dict[str, str]:
    """The pictures of an evaluation and those of its models, as rows."""
    known = fingerprints.items() if isinstance(fingerprints, dict) else ()
    return {f"pictures of {name}": _parts(summary) for name, summary in known if isinstance(summary, dict)}


def _parts(summary: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {part}" for name, part in summary.items())


def _averaging(decay: float | None) -> str | None:
    if decay is None:
        return None
    return f"moving average over training, decay {decay}" if decay else "as trained, not averaged"


def _measured(path: Path) -> dict[str, str | None]:
    """Figures of the run's result.json, as rows."""
    file = path / "result.json"
    if not file.exists():
        return {}
    result = read_json(file, CheckpointError, f"{file} is missing")
    names = ("psnr_rgb", "psnr_y", "ssim", "utilization", "perplexity", "quantization_error", "loss", "unigram_entropy")
    figures = [f"{name} {result[name]:.4g}" for name in names if is_number(result.get(name))]
    images = result.get("images")
    return {"held out": ", ".join(figures), "trained for": f"{images:,} pictures" if is_number(images) else None}


def _origin(path: Path) -> dict[str, str | None]:
    """Where an imported model comes from, as rows."""
    from wvq.files.origin import Origin

    origin = Origin.read(path)
    if origin is None:
        return {}
    return {
        "imported from": origin.summary(),
        "licence": origin.licence or "not known",
        "published": origin.published + (f" (preset {origin.preset})" if origin.preset else ""),
    }


def _cache(path: Path) -> str:
    header = CodeHeader.read(path)
    return _lines(
        f"{path}: code cache",
        {
            "pictures": ", ".join(f"{count:,} {split}" for split, count in header.num_images.items()),
            "versions": f"{header.num_crops} a training picture ({header.crop_recipe.get('train')})",
            "codes": f"{layout_text(header.layout)}, K = {header.num_codes:,}",
            "source": header.source,
            "data": _data(path),
            "classes": _classes(header.class_names),
            "captions": "yes" if header.has_captions else "no",
            "rows decode at": ", ".join(f"{split} {value:.2f} dB" for split, value in header.psnr_rgb.items()),
            "tokenizer": f"{header.tokenizer_hash[:12]}..." if header.tokenizer_hash else "not named",
        },
    )


def _pipeline(path: Path) -> str:
    index = read_json(path / INDEX_NAME, CheckpointError, f"{path / INDEX_NAME} is missing")
    names = ["tokenizer", "generator"] + (["text_encoder"] if index.get("text_encoder") else [])
    missing = [name for name in names if not (path / name / "config.json").exists()]
    title = f"{path}: image generation pipeline" + (f" WITHOUT its {' and '.join(missing)}" if missing else "")
    title = _lines(title, _origin(path))
    parts = [_model(path / name) for name in names[:2] if name not in missing]
    if "text_encoder" in names and "text_encoder" not in missing:
        parts.append(_model(path / "text_encoder"))
    return "\n".join([title, *parts])


def _picture(path: Path) -> str:
    from wvq.pipelines.sampling_job import read_settings

    settings = read_settings(path)
    if settings is None:
        raise DataError(f"{path} is no picture of wvq sample: it holds no sampling settings")
    return _lines(f"{path}: sampled picture", settings)


def _samples(path: Path) -> str:
    from wvq.generator.base.sampling_settings import SamplingSettings

    file = path / JOB_NAME
    job = read_json(file, DataError, f"{file} is missing", MAX_JOB_BYTES)
    sampling = job.get("sampling")
    if not isinstance(sampling, dict) or not isinstance(job.get("num_images"), int):
        raise DataError(f"{file} is no job of wvq sample")
    defaults = SamplingSettings().identity()
    changed = [f"{name} {value}" for name, value in sampling.items() if value != defaults.get(name)]
    drawn = sum(file.name[:-4].isdigit() for file in path.glob("*.png"))
    rows = {
        "pictures": _part_of(drawn, job["num_images"]) + ("" if drawn >= job["num_images"] else "; --resume goes on"),
        "seeds": f"from {job.get('seed')}",
        "sampling": ", ".join(changed) or "as usual",
        "kept in part": _kept(job),
        "weights": job.get("reduced") or "as saved",
    }
    return _lines(f"{path}: pictures of wvq sample", rows)


def _kept(job: Mapping[str, object]) -> str | None:
    """What a job keeps of given pictures."""
    images, scales = job.get("image"), job.get("keep_scales")
    if not isinstance(images, list):
        return None
    kept = [f"the first {scales} scale(s)"] if scales is not None else []
    kept += ["what a mask leaves"] if "mask_image" in job else []
    return f"{' and '.join(kept)} of {len(images):,} given picture(s)"


def _archive(path: Path) -> str:
    from wvq.eval.real.archive import array_shapes

    shapes = array_shapes(path)
    pictures, mean, spatial = (shapes.get(name) for name in ("arr_0", "mu", "mu_s"))
    rows = {
        "pictures": "none" if pictures is None else f"{pictures[0]:,} of {' x '.join(map(str, pictures[1:3]))} px",
        "statistics": "none" if mean is None else f"of {mean[0]:,} Inception features",
        "spatial ones": None if spatial is None else f"of {spatial[0]:,} features",
    }
    return _lines(f"{path}: archive of reference pictures or samples", rows)


def _features(path: Path) -> str:
    from wvq.eval.features.shards import numbers_in

    file = path / IDENTITY_NAME
    identity = read_json(file, DataError, f"{file} is missing")
    num_measured, total = len(numbers_in(path)), identity.get("num_images")
    if "pipeline_weights" in identity or "tokenizer_weights" in identity:
        kind = "samples" if "pipeline_weights" in identity else "reconstructions"
        rows = {kind: f"{_part_of(num_measured, total)} measured", "network": identity.get("feature_network")}
        return _lines(f"{path}: an evaluation that has not ended; the same command goes on with it", rows)
    rows = {
        "pictures": f"{_part_of(num_measured, total)} ({identity.get('kind')})",
        "size and crop": f"{_size(identity.get('image_size'))} px, {identity.get('crop')}",
        "network": identity.get("feature_network"),
        "sha256": f"{str(identity.get('sha256'))[:12]}...",
    }
    return _lines(f"{path}: features of real pictures", rows)


def _size(value: object) -> object:
    return size_text(value) if is_size(value) else value


def _part_of(count: int, total: object) -> str:
    return f"{count:,} of {total:,}" if isinstance(total, int) and total != count else f"{count:,}"


def _result(path: Path) -> str:
    from wvq.eval.figures.comparison import floor_beside

    no_result = DataError(f"{path} is no result file of wvq evaluate")
    try:
        result = read_json(path, DataError, "")
    except DataError:
        raise no_result from None
    kind, metrics, floor = result.get("kind"), result.get("metrics"), result.get("floor", {})
    if not (isinstance(kind, str) and isinstance(metrics, dict) and isinstance(floor, dict)):
        raise no_result
    rows = {}
    for name, value in metrics.items():
        if isinstance(value, int | float):
            at_n = floor_beside(result, name)
            rows[name] = f"{value:.4g}" + (f"  (real against real {at_n:.4g})" if is_number(at_n, -1e9) else "")
    settings = result.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    reference = settings.get("reference")
    kind_of = reference.get("kind") if isinstance(reference, dict) else None
    which = f" ({kind_of} pictures)" if kind_of else ""
    counts = {
        "pictures": result.get("num_images"),
        "reference": f"{result.get('num_reference')}{which}",
        "data": settings.get("data"),
        **_compared(settings.get("data_fingerprint")),
        "network": settings.get("feature_network"),
        "date": result.get("date"),
    }
    warnings = result.get("warnings")
    warned = [f"  warning: {line}" for line in warnings] if isinstance(warnings, list) else []
    return "\n".join([_lines(f"{path}: {kind} result", {**counts, **rows}), *warned])
