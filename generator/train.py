"""Trains the generator (stage two) over a code cache.

    wvq train-generator --config configs/openmoji_32/generator.yaml --codes runs/codes --tokenizer runs/tokenizer
    accelerate launch --num_processes 8 --mixed_precision bf16 -m wvq train-generator --config ...

A run writes into <out>/generator: the model (config.json, model.safetensors), recipe.yaml, data_fingerprint.json,
result.json, and training/ with log.jsonl, TensorBoard files, sample sheets and checkpoints.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed

from wvq.data.codes import CodeDataset, CodeHeader
from wvq.data.layout import layout_name
from wvq.distributed import decided_by_first_process, gather_objects, is_main_process
from wvq.errors import CacheError, ConfigError
from wvq.files.fingerprint import DataFingerprint, changed_pictures, mixed_pictures
from wvq.files.names import TRAINING
from wvq.files.stage_folder import recipe_of_run
from wvq.generator.adaptation import Start
from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.base.interface import CodeGenerator, Quantizer
from wvq.generator.conditioned_codes import ConditionedCodes
from wvq.generator.kinds import CONFIGS
from wvq.generator.memory import sampling_bytes, training_bytes, whole_pass_bytes
from wvq.generator.models import new_generator
from wvq.generator.recipes import JOINT_DROPOUT, ConditionConfig, GeneratorRecipe
from wvq.generator.task import EVALUATED, ON_SHEET, SHEET_SETTINGS, Decoder, GeneratorTask
from wvq.generator.text.encoder import TEXT_FIELDS, TextEncoder
from wvq.generator.text.run_text import keep_text_encoder, require_same_encoder, run_padding
from wvq.memory import require_memory
from wvq.settings.train import TrainConfig
from wvq.training.acceleration import build_accelerator
from wvq.training.stage import claimed_stage
from wvq.training.trainer import FIT_INTO_MEMORY, Trainer

MOST_FITTED = 20_000  # captions from which the whitening of text features is computed
FITTED_AT_ONCE = 64


class _Sizes(Protocol):
    @property
    def num_codes(self) -> int: ...

    @property
    def grid(self) -> tuple[int, int]: ...

    @property
    def code_dim(self) -> int: ...

    @property
    def code_layout(self) -> dict: ...


class Tokenizer(Decoder, Protocol):
    """The tokenizer that made a run's codes; a protocol, since no stage imports the other."""

    @property
    def config(self) -> _Sizes:
        """Number of codes, grid, and dims of a code's vector."""

    @property
    def quantizer(self) -> Quantizer:
        """Gives what makes features of codes, see :meth:`CodeGenerator.take_quantizer`."""

    @property
    def data_fingerprint(self) -> DataFingerprint | None:
        """The pictures that it was trained on, where that is known."""

    def made(self, codes_hash: str) -> bool:
        """Whether codes with this hash in the header of their cache are its own."""

    def to(self, device: torch.device, /) -> Any:
        """Move it to a device."""


def train_generator(recipe: GeneratorRecipe, tokenizer: Tokenizer, resume: bool = False) -> dict[str, Any]:
    """Train the generator of a recipe and save it in ``<recipe.out>/generator``.

    Args:
        recipe: settings.
        tokenizer: the WassersteinVQModel that made the cache.
        resume: continue the run in ``recipe.out``.

    Returns:
        Held-out figures and the run's counts (see :meth:`Trainer.run`), as saved in ``result.json``.

    Raises:
        ConfigError, CacheError, DataError: bad settings or cache, before training starts.
        CheckpointError, DownloadError: the generator to start from or the text encoder cannot be loaded.
        RunInterrupted: SIGTERM or Ctrl-C came; a checkpoint was saved.
    """
    recipe.check()
    train, validation = (CodeDataset(recipe.codes, split, recipe.train.seed) for split in ("train", "validation"))
    check_cache(train.header, tokenizer, recipe)
    if is_main_process():
        print(train.header.summary())
    accelerator = build_accelerator(recipe.train)
    out = Path(recipe.out) / "generator"
    start = None if recipe.start is None else Start.find(recipe.start)
    padding = start.config.text_padding if start is not None and start.config.text_dim else "right"
    text_encoder = build_text_encoder(
        train, recipe.condition, padding=run_padding(out / TRAINING) if resume else padding
    )
    config = build_config(recipe, train.header, tokenizer, text_encoder, start)
    recipe = replace(recipe, condition=settled_condition(recipe.condition, out if resume else None))
    fingerprint = decided_by_first_process(lambda: _fingerprint(recipe, tokenizer, start))
    with claimed_stage(out, recipe, resume, fingerprint) as stage:
        if stage.finished is not None:
            return stage.finished
        if text_encoder is not None:
            if resume:
                require_same_encoder(stage.folder, text_encoder, recipe.condition.text_encoder)
            elif is_main_process():
                keep_text_encoder(stage.folder, text_encoder)
        cache = recipe.condition.text_cache
        train_set, held_out = (
            ConditionedCodes(codes, config.num_classes > 0, text_encoder, cache, accelerator.device)
            for codes in (train, validation)
        )
        set_seed(recipe.train.seed)
        model = new_generator(config)
        model.take_quantizer(tokenizer.quantizer.code_tensors(tokenizer.device))
        live_encoder = text_encoder.to(accelerator.device) if text_encoder is not None and cache == "none" else None
        if not resume:  # a checkpoint holds the result
            begin_weights(model, start, train_set, live_encoder)
        del text_encoder  # kept features no longer need it
        _require_memory(model, recipe.train, accelerator)
        tokenizer.to(accelerator.device)
        reference = {"unigram_entropy": train.unigram_entropy()}
        task = GeneratorTask(
            tokenizer, held_out, recipe.condition, recipe.objective, recipe.train, reference, live_encoder
        )
        parameters = sum(p.numel() for p in model.parameters())  # before they are spread over the processes
        trainer = Trainer(task, model, train_set, recipe.train, stage.folder, accelerator)
        return stage.train(trainer, parameters=parameters)


def check_cache(header: CodeHeader, tokenizer: Tokenizer, recipe: GeneratorRecipe) -> None:
    """Check that a cache was made by the tokenizer and that a generator can be trained over it.

    Raises:
        CacheError: another tokenizer made it, or it does not name its tokenizer.
    """
    if not header.tokenizer_hash:
        raise CacheError(
            f"{recipe.codes} was imported without its tokenizer; import it again with --tokenizer {recipe.tokenizer}"
        )
    config = tokenizer.config
    for name, expected in (("num_codes", config.num_codes), ("grid", list(config.grid))):
        if getattr(header, name) != expected:
            raise CacheError(
                f"{recipe.codes} has {name} {getattr(header, name)}, but the tokenizer in {recipe.tokenizer} "
                f"has {expected}; export the codes with this tokenizer"
            )
    if header.layout != config.code_layout:
        raise CacheError(
            f"{recipe.codes} holds {layout_name(header.layout)}, but the tokenizer in {recipe.tokenizer} makes "
            f"{layout_name(config.code_layout)}; export the codes with this tokenizer"
        )
    if not tokenizer.made(header.tokenizer_hash):
        raise CacheError(
            f"{recipe.codes} was made by another tokenizer than the one in {recipe.tokenizer}; "
            "export the codes with this tokenizer"
        )


def _fingerprint(recipe: GeneratorRecipe, tokenizer: Tokenizer, start: Start | None) -> DataFingerprint | None:
    """The fingerprint of the cache, after the start's; warns of other pictures and codes that these were trained on.

    Held-out pictures that the tokenizer was trained on are no error here: the export has refused them, unless it was
    to accept them, or the tokenizer's decoder was refined since.
    """
    fingerprint, before = DataFingerprint.read(recipe.codes), tokenizer.data_fingerprint
    if fingerprint is not None and before is not None:
        if changed := changed_pictures(before, fingerprint):
            warnings.warn(f"{recipe.tokenizer} was trained on other pictures: {changed}", stacklevel=2)
        if mixed := mixed_pictures(before, fingerprint):
            warnings.warn(f"{recipe.tokenizer} {mixed} in {recipe.codes}", stacklevel=2)
    if start is None:
        return fingerprint
    if start.config.tokenizer_hash is not None and not tokenizer.made(start.config.tokenizer_hash):
        warnings.warn(
            f"start: {start.name} was trained on codes of another tokenizer than {recipe.tokenizer}: the same numbers "
            "may stand for other vectors",
            stacklevel=2,
        )
    trained = DataFingerprint.read(start.folder)
    if fingerprint is None:
        return None
    if trained is not None and (mixed := mixed_pictures(trained, fingerprint)):
        warnings.warn(f"{start.name} {mixed} in {recipe.codes}: held-out figures are too good", stacklevel=2)
    return fingerprint.after(trained)


def build_text_encoder(codes: CodeDataset, condition: ConditionConfig, padding: str = "right") -> TextEncoder | None:
    """The text encoder of a text-conditional run, on the CPU, or None.

    Raises:
        ConfigError: the codes have no captions.
        CheckpointError, DownloadError: the encoder cannot be read or fetched.
    """
    if not condition.text:
        return None
    if not codes.header.has_captions:
        raise ConfigError(
            "condition.text is on, but the code cache holds no captions; export it from data that has captions, or "
            "set condition.text to false"
        )
    cleaning = condition.text_cleaning
    return TextEncoder(condition.text_encoder, condition.text_length, padding=padding, cleaning=cleaning)


def settled_condition(condition: ConditionConfig, resumed: Path | None) -> ConditionConfig:
    """The condition with a joint dropout where the recipe leaves it open: .1, or that of the run that is resumed.

    Raises:
        ConfigError: there is no run to resume.
    """
    if condition.joint_dropout is not None:
        return condition
    share = JOINT_DROPOUT
    if resumed is not None:
        share = decided_by_first_process(lambda: recipe_of_run(resumed, GeneratorRecipe)["condition"]["joint_dropout"])
    return replace(condition, joint_dropout=share)


def build_config(
    recipe: GeneratorRecipe,
    header: CodeHeader,
    tokenizer: Tokenizer,
    text_encoder: TextEncoder | None,
    start: Start | None = None,
) -> GeneratorConfig:
    """The model's config: sizes from the recipe or the start, the rest from the cache.

    Raises:
        ConfigError: a field of generators of other codes, or one that comes from the cache, is in the recipe, one is
            out of range, ``code_dim`` is not that of the tokenizer, or the start draws other codes or is another
            network.
    """
    if start is not None:
        start.require_layout(header.layout, header.num_codes, recipe.codes)
    _refuse_fields_of_other_kinds(recipe, header.layout["kind"])
    names = header.class_names if recipe.condition.classes else []
    kind = CONFIGS[header.layout["kind"]]
    from_cache: dict[str, Any] = {
        **kind.fields_of_tokenizer(tokenizer.config),
        "num_codes": header.num_codes,
        "grid": header.grid,
        "num_classes": len(names),
        "class_names": names,
        "tokenizer_hash": header.tokenizer_hash,
    }
    for name in (*from_cache, *TEXT_FIELDS, "any_order"):
        if name in recipe.model:
            raise ConfigError(f"model.{name} comes from the code cache and the other settings; leave it out")
    sizes = dict(recipe.model) if start is None else start.fields(recipe.model, text_encoder is not None)
    if recipe.objective.random_order:
        if header.layout["kind"] != "grid":
            raise ConfigError(
                f"objective.random_order is for one code a position, and {recipe.codes} holds {header.layout['kind']} "
                "codes; leave it out"
            )
        if not sizes.setdefault("target_positions", True):
            raise ConfigError("objective.random_order needs model.target_positions; leave it out or set it to true")
    if sizes.get("target_positions"):
        from_cache["any_order"] = bool(recipe.objective.random_order) and recipe.objective.order_anneal is None
    text = text_encoder.config_fields() if text_encoder is not None else {}
    config = kind(**{**sizes, **from_cache, **text})
    if start is not None:
        start.require_network(config)
    if config.code_dim not in (0, dims := tokenizer.config.code_dim):
        raise ConfigError(
            f"model.code_dim is {config.code_dim}, but the codes of {recipe.tokenizer} are vectors of {dims}: set it "
            f"to {dims}, or to 0 for a model that does not see them"
        )
    return config


def _refuse_fields_of_other_kinds(recipe: GeneratorRecipe, layout: str) -> None:
    for name in recipe.model:
        layouts = [other for other, config in CONFIGS.items() if name in config.fields()]
        if layouts and layout not in layouts:
            raise ConfigError(
                f"model.{name} is for generators of {' or '.join(layouts)} codes, and {recipe.codes} holds {layout} "
                "codes; leave it out, or take a recipe of these codes"
            )


def begin_weights(
    model: CodeGenerator, start: Start | None, train_set: ConditionedCodes, encoder: TextEncoder | None
) -> None:
    """The weights of a new run: of its start, and projections of text that it does not have fitted to the captions.

    Args:
        model: a new one, on the CPU.
        start: the generator that the run starts from, if any.
        train_set: holds the captions.
        encoder: for a set that keeps no features.
    """
    if start is not None:
        summary = start.pass_on(model)
        if is_main_process():
            print(summary)
    if model.config.text_dim and not (start is not None and start.reads(model.config)):
        fit_text(model, train_set, encoder)


def fit_text(model: CodeGenerator, train_set: ConditionedCodes, encoder: TextEncoder | None) -> None:
    """Whiten the text projections by a sample of the captions: the main process computes them for all.

    Args:
        model: on any device.
        train_set: holds the captions.
        encoder: for a set that keeps no features.
    """
    if is_main_process():
        model.condition.fit_text(train_set.sampled_text(MOST_FITTED, FITTED_AT_ONCE, encoder))
    names = ("text_projection", "text_bias")
    fitted = [getattr(model.condition, name).state_dict() for name in names if hasattr(model.condition, name)]
    for name, state in zip(names, gather_objects(fitted if is_main_process() else None)[0], strict=False):
        getattr(model.condition, name).load_state_dict(state)


def _require_memory(model: CodeGenerator, config: TrainConfig, accelerator: Accelerator) -> None:
    """Refuse a run that cannot fit; where the weights are sharded, that is not estimated."""
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        return
    micro = max(1, config.batch_size // accelerator.num_processes // config.gradient_accumulation_steps)
    # Gradients between the parts of a step, and the buckets in which processes exchange them.
    gradients = 4 * (config.gradient_accumulation_steps > 1) + 4 * (accelerator.num_processes > 1)
    needed = training_bytes(
        model.config,
        sum(p.numel() for p in model.parameters()),
        micro,
        config.ema_decay > 0,
        config.gradient_checkpointing,
        mixed=accelerator.mixed_precision != "no",
        fused=accelerator.device.type == "cuda",
        compiled=config.compile,
        gradients=gradients,
        between=max(whole_pass_bytes(model.config, EVALUATED), sampling_bytes(model.config, ON_SHEET, SHEET_SETTINGS)),
    )
    require_memory(needed, accelerator.device, f"training with {micro} pictures at once", FIT_INTO_MEMORY)
