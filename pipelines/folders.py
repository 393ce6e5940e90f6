"""The folder of a pipeline: its parts, the model card, and the index that names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

import wvq
from wvq.errors import CheckpointError, ConfigError
from wvq.files.atomic import read_json, whole_folder, write_json, write_text
from wvq.files.names import INDEX_NAME
from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.base.interface import CodeGenerator
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.kinds import read_generator_config
from wvq.generator.models import MODELS
from wvq.generator.text.encoder import TextEncoder
from wvq.models.pretrained import read_config, weights_hash
from wvq.pipelines.model_card import CARD_NAME, is_model_card
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.processing import ImageProcessor

PIPELINE_CLASS = "ImageGenerationPipeline"
# What the index may have under the name of each part; the second of a text encoder is that of earlier folders.
_ENTRIES: dict[str, list[list[str] | None]] = {
    "tokenizer": [["wvq", WassersteinVQModel.__name__]],
    "generator": [["wvq", model.__name__] for model in MODELS.values()],
    "text_encoder": [["wvq", TextEncoder.__name__], ["transformers", "AutoModel"], None],
}


Part: TypeAlias = WassersteinVQModel | CodeGenerator | TextEncoder


def write_pipeline(
    folder: Path,
    components: Mapping[str, Part | None],
    sampling: SamplingSettings,
    card: str,
    max_shard_size: int | str | None = None,
) -> None:
    """Write a folder for each part, the model card, and last the index; a part that is there already stays.

    Args:
        folder: new or existing folder.
        components: the parts by name.
        sampling: settings that a call uses where it gives none.
        card: text of the model card.
        max_shard_size: largest weight file; as of transformers if None.

    Raises:
        CheckpointError: the folder holds another part, or a README or index that is no pipeline's.
    """
    refuse_foreign_files(folder, card)
    parts = {name: part for name, part in components.items() if part is not None}
    # All are checked before any is written.
    missing = {name: part for name, part in parts.items() if not already_holds(folder, name, part)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in missing.items():
        with whole_folder(folder / name) as partial:
            part.save_pretrained(partial, max_shard_size=max_shard_size)
            if isinstance(part, WassersteinVQModel):
                ImageProcessor.of_tokenizer(part.config).save_pretrained(partial)
    write_text(folder / CARD_NAME, card)
    index = {"_class_name": PIPELINE_CLASS, "wvq_version": wvq.__version__}
    named = {name: ["wvq", type(parts[name]).__name__] if name in parts else None for name in _ENTRIES}
    write_json(folder / INDEX_NAME, {**index, **named, "sampling": asdict(sampling)})


def already_holds(folder: str | Path, name: str, part: Part) -> bool:
    """Whether the folder has exactly this part: these weights and this config.

    Raises:
        CheckpointError: it has the part with others.
    """
    target = Path(folder) / name
    if not target.exists():
        return False
    if isinstance(part, TextEncoder):
        if not _holds_encoder(target, part):
            raise CheckpointError(f"{target} already holds another {name}; choose another folder")
        return True
    saved = type(part).from_pretrained(target)
    if saved.dtype != part.dtype:
        kinds = [str(one.dtype).removeprefix("torch.") for one in (saved, part)]
        raise CheckpointError(
            f"{target} already holds a {name} in {kinds[0]}, and this one is in {kinds[1]}; choose another folder"
        )
    if weights_hash(saved) != weights_hash(part):
        raise CheckpointError(f"{target} already holds another {name}; choose another folder")
    for field in sorted(part.config.fields()):
        if getattr(saved.config, field) != getattr(part.config, field):
            raise CheckpointError(f"{target} already holds this {name} with another {field}; choose another folder")
    return True


def refuse_foreign_files(folder: str | Path, card: str | None = None) -> None:
    """Refuse a folder in which saving a pipeline would write over what is no pipeline's, or join a single model.

    Args:
        folder: where the pipeline is to go.
        card: text of the model card, if it is known; a file that holds this text already is accepted.

    Raises:
        CheckpointError: such files lie there.
    """
    index, readme = Path(folder) / INDEX_NAME, Path(folder) / CARD_NAME
    if index.exists():
        if read_json(index, CheckpointError, f"{index} is missing").get("_class_name") != PIPELINE_CLASS:
            raise CheckpointError(f"{index} is not of wvq and would be written over; choose another folder")
        return
    if (Path(folder) / "config.json").exists():
        raise CheckpointError(f"{folder} holds a model by itself, and no pipeline; choose another folder")
    if not readme.exists():
        return
    text = readme.read_text(encoding="utf-8", errors="replace")
    if text != card and not is_model_card(text):
        raise CheckpointError(f"{readme} is no model card of wvq and would be written over; choose another folder")


def part_folder(folder: Path, name: str) -> Path:
    """The folder of one part.

    Raises:
        CheckpointError: it is missing.
    """
    part = folder / name
    if not part.is_dir():
        raise CheckpointError(f"{folder}: the pipeline's {name} folder is missing; download or save the pipeline again")
    return part


def read_sampling(folder: Path) -> SamplingSettings:
    """The sampling defaults of a pipeline folder, after a check of its index.

    Raises:
        CheckpointError: the index is missing or damaged, or points to parts elsewhere.
    """
    file = folder / INDEX_NAME
    hint = "; it is a single model" if (folder / "config.json").exists() else ""
    index = read_json(file, CheckpointError, f"{folder} is no pipeline: {INDEX_NAME} is missing{hint}")
    if index.get("_class_name") != PIPELINE_CLASS:
        raise CheckpointError(f"{file} does not describe an {PIPELINE_CLASS}")
    for name, known in _ENTRIES.items():
        if index.get(name) not in known:
            raise CheckpointError(
                f"{file}: {name} is {index.get(name)!r}, not {known[0]!r} or alike: the parts of a pipeline lie in its "
                "own folder, each under its name, and nothing is loaded from elsewhere"
            )
    sampling = index.get("sampling") or {}
    if not isinstance(sampling, dict):
        raise CheckpointError(f"{file}: sampling must be a JSON object, got {sampling!r}")
    try:
        return SamplingSettings().updated(**sampling)
    except ConfigError as error:
        raise CheckpointError(f"{file}: sampling: {error}") from error


def read_configs(folder: Path) -> tuple[WassersteinVQConfig, GeneratorConfig]:
    """The configs of a pipeline's tokenizer and generator; weights are not read.

    Raises:
        CheckpointError: the index, a part or its config is missing or damaged.
        ConfigError: a field of a config is unknown or out of range.
    """
    read_sampling(folder)
    return (
        read_config(WassersteinVQConfig, part_folder(folder, "tokenizer")),
        read_generator_config(part_folder(folder, "generator")),
    )


def _holds_encoder(target: Path, encoder: TextEncoder) -> bool:
    try:
        held = TextEncoder(target, encoder.length, padding=encoder.padding, cleaning=encoder.cleaning)
        return held.identity() == encoder.identity()
    except ConfigError:  # it cannot read texts of this length
        return False
