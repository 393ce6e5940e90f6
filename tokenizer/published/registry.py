"""Published tokenizers by family, read and written."""

from __future__ import annotations

import re
from collections.abc import MutableMapping

import torch

from wvq.errors import CheckpointError, ConfigError, near_match
from wvq.models.key_map import fill, write_weights
from wvq.models.published import PublishedOptions
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.published.form import TokenizerForm
from wvq.tokenizer.published.llamagen import JANUS, JANUS_TRANSFORMERS, JANUS_VQVAE, LLAMAGEN
from wvq.tokenizer.published.network import SHARED, Shapes, entries, read_config, unused_convs
from wvq.tokenizer.published.taming import IBQ, IBQ_AVERAGED, TAMING
from wvq.tokenizer.published.var import VAR, WASSERSTEIN_VAR

# The forms that files of a family have: the first whose names a file holds is read, the last is written.
TOKENIZERS: dict[str, tuple[TokenizerForm, ...]] = {
    "llamagen": (LLAMAGEN,),
    "janus": (JANUS, *JANUS_TRANSFORMERS, JANUS_VQVAE),
    "taming": (TAMING,),
    "ibq": (IBQ_AVERAGED, IBQ),
    "var": (VAR,),
    "wasserstein-var": (WASSERSTEIN_VAR,),
}


def read_tokenizer(
    family: str, state: MutableMapping[str, torch.Tensor], source: str, options: PublishedOptions
) -> WassersteinVQModel:
    """A published tokenizer, float32, in eval mode.

    Args:
        family: a key of ``TOKENIZERS``.
        state: the weights of its file by name, which are taken out one by one.
        source: the file, for errors.
        options: what the weights do not say.

    Raises:
        ConfigError: an unknown family, or an option that is missing or does not fit the weights.
        CheckpointError: weights that are missing, damaged, not known or of another network than ours can be.
    """
    form = _form(family, state, source)
    config = read_config(Shapes(state, form, source), options)
    with torch.device("meta"):
        model = WassersteinVQModel(config)
    dropped = [*form.dropped, *map(re.escape, unused_convs(form, config))]
    fill(model, state, entries(form, model), dropped, source)
    return model.eval()


def write_tokenizer(family: str, model: WassersteinVQModel) -> dict[str, torch.Tensor]:
    """The weights of a model by the names of a family's file, without the counts of a training that some have.

    Convolutions that no scale takes are 0.

    Raises:
        ConfigError: an unknown family, or a model that cannot be one of it.
    """
    form = _forms(family)[-1]
    _require_form(form, model.config, family)
    made, weights = entries(form, model), model.state_dict()
    if other := sorted(set(weights) ^ {entry.ours for entry in made}):
        raise ConfigError(f"no {family} tokenizer can be made of this one: {other[0]} is not in both")
    written = write_weights(weights, made)
    dim = model.config.code_dim
    for name in unused_convs(form, model.config):
        written[name] = torch.zeros((dim, dim, 3, 3) if name.endswith("weight") else (dim,))
    return written


def _forms(family: str) -> tuple[TokenizerForm, ...]:
    if family not in TOKENIZERS:
        near = near_match(family, TOKENIZERS)
        raise ConfigError(f'there is no published tokenizer "{family}"{near}; one of {", ".join(TOKENIZERS)}')
    return TOKENIZERS[family]


def _form(family: str, state: MutableMapping[str, torch.Tensor], source: str) -> TokenizerForm:
    for form in _forms(family):
        shapes = Shapes(state, form, source)
        if form.codebook in shapes and f"{form.level('encoder', 0, 1)}.{form.block}.0.conv1.weight" in shapes:
            return form
    raise CheckpointError(f"{source} is no tokenizer of the family {family}; check the file, or give its own family")


def _require_form(form: TokenizerForm, config: WassersteinVQConfig, family: str) -> None:
    for name, has in (("scales", form.scale_convs), ("residual_projector", form.residual_projector)):
        if (getattr(config, name) is None) != (has is None):
            raise ConfigError(f"a {family} tokenizer has {'no ' if has is None else ''}{name}, other than this one")
    wanted = {**SHARED, "l2_normalize": False, "similarity": "euclidean", **form.fields}
    wanted["quantizer"] = config.quantizer  # any whose codes are the rows of a codebook
    wanted["scale_conv_table"] = "var" if form.scale_convs else None
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ConfigError(f"a {family} tokenizer has {name} {value}, and this one {getattr(config, name)}")
    if config.latent_channels is None:
        raise ConfigError(f"a {family} tokenizer has latent_channels, other than this one")
    for width in (*config.channels, config.residual_projector or 0):
        if width % 32:
            raise ConfigError(f"a {family} tokenizer has widths that are multiples of 32, and this one has {width}")
