"""A tokenizer to train: a new one, one to refine, or a trained network around another quantizer."""

from __future__ import annotations

import warnings

import torch

from wvq.errors import CheckpointError, ConfigError, DownloadError
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.quantizers.registry import MethodsConfig
from wvq.tokenizer.recipes import TokenizerRecipe

# While these fields stay the same, codes mean the same and the codebook is taken over.
_OF_THE_CODES = [name for name in MethodsConfig.fields() if name not in MethodsConfig.fields_outside_identity()]
_OF_THE_CODES += ["feature_dim"]
_WITHOUT_SHAPE = ("downsample", "pixel_range")  # of the network, which no shape of its weights shows


def build_tokenizer(recipe: TokenizerRecipe, from_data: dict) -> WassersteinVQModel:
    """The model of a recipe, with ``recipe.freeze`` applied.

    With ``recipe.start`` its config is that tokenizer's, changed by ``recipe.model``. Encoder and decoder are taken
    over. If codes of another width are requested, projectors join them to the trained network. The quantizer is taken
    over as long as ``recipe.model`` does not change what the codes are, and a residual projector with it as long as it
    keeps its width; weights and other settings of a method do not pass to another one.

    Args:
        recipe: its ``model``, ``start`` and ``freeze``.
        from_data: config fields that come from the data.

    Raises:
        ConfigError: the network of ``recipe.model`` is not that of ``recipe.start``, or an untrained part is frozen.
        CheckpointError, DownloadError: ``recipe.start`` cannot be loaded.
    """
    parts = [part.strip() for part in recipe.freeze.split(",") if part.strip()]
    if recipe.start is None:
        if parts:
            raise ConfigError(f"freeze: {recipe.freeze} would stay untrained; give a trained tokenizer by start")
        return WassersteinVQModel(WassersteinVQConfig(**recipe.model, **from_data))
    try:
        source = WassersteinVQModel.from_pretrained(recipe.start)
    except (CheckpointError, DownloadError) as error:
        raise type(error)(f"start: {error}") from error
    if warning := source.config.other_fit(recipe.data, recipe.start):
        warnings.warn(warning, stacklevel=2)
    fields = {name: value for name, value in source.config.to_dict().items() if name in WassersteinVQConfig.fields()}
    if recipe.model.get("quantizer", fields["quantizer"]) != fields["quantizer"]:
        fields = {name: value for name, value in fields.items() if name not in WassersteinVQConfig.fields_of_method()}
    if recipe.model.get("code_dim", fields["code_dim"]) != fields["code_dim"]:
        fields["feature_dim"] = source.config.encoder_dim
    model = WassersteinVQModel(WassersteinVQConfig(**{**fields, **recipe.model, **from_data}))
    changed = [name for name in _OF_THE_CODES if getattr(model.config, name) != getattr(source.config, name)]
    kept = ["quantizer", "projector"] if not changed else []
    if not changed and model.config.residual_projector == source.config.residual_projector:
        kept.append("residual_projector")
    _take_over(model, source, recipe.start, kept)
    if changed and "quantizer" in parts:
        raise ConfigError(
            f"freeze: the quantizer is new: model.{changed[0]} differs from {recipe.start}; leave it out of freeze"
        )
    if "residual_projector" in parts and model.residual_projector is not None and "residual_projector" not in kept:
        raise ConfigError("freeze: the residual_projector is new and would stay untrained; leave it out of freeze")
    model.freeze(parts)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"freeze: {recipe.freeze} leaves nothing to train; leave a part out")
    return model.train()


@torch.no_grad()
def _take_over(model: WassersteinVQModel, source: WassersteinVQModel, name: str, kept: list[str]) -> None:
    other = [field for field in _WITHOUT_SHAPE if getattr(model.config, field) != getattr(source.config, field)]
    parts = [f"{part}." for part in ("encoder", "decoder", *kept)]
    trained = {key: value for key, value in source.state_dict().items() if key.startswith(tuple(parts))}
    current = model.state_dict()
    for key in [*trained, *(key for key in current if key.startswith(tuple(parts)))]:
        if key not in current or key not in trained or current[key].shape != trained[key].shape:
            other.append(key)
    if other:
        raise ConfigError(f"start: the network in {name} is another one ({other[0]}); leave its sizes out of model")
    model.load_state_dict(trained, strict=False)
