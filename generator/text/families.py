"""Families of transformers models that encode text: how each is loaded, and which config fields change its features."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from wvq.errors import CheckpointError
from wvq.models.networks import surplus_weights
from wvq.models.reading import DAMAGES, whole_weights, why_unloadable


@dataclass(frozen=True)
class TextFamily:
    """Models that become a text encoder in the same way.

    Attributes:
        title: what messages call it.
        classes: class of transformers by the ``model_type`` of ``config.json``.
        key_mapping: names of weights in some files, as patterns, and what the class calls them.
        options: keyword arguments of each call of the model.
    """

    title: str
    classes: dict[str, str]
    key_mapping: dict[str, str] | None = None
    options: dict[str, Any] = field(default_factory=dict)


_BERT = "albert bert camembert deberta-v2 distilbert electra modernbert mpnet roberta xlm-roberta"
_DECODERS = "gemma gemma2 gemma3_text llama mistral qwen2 qwen3"
FAMILIES = (
    TextFamily("BERT-type encoders", dict.fromkeys(_BERT.split(), "AutoModel")),
    TextFamily(
        "T5",
        {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"},
        # A stack of layers that was saved by itself, as earlier pipelines hold it, lacks the prefix.
        key_mapping={r"^(?=block\.|embed_tokens\.|final_layer_norm\.)": "encoder."},
    ),
    TextFamily("CLIP", {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}),
    TextFamily(
        "decoders",
        dict.fromkeys(_DECODERS.split(), "AutoModel"),
        options={"use_cache": False},  # nothing follows the caption
    ),
)
# Fields of configs that change hidden states and that the weights do not show. Named one by one: a field that a later
# transformers adds to its configs must not make another encoder of the same one.
_FEATURE_FIELDS = (
    "model_type", "num_hidden_layers", "num_hidden_groups", "inner_group_num", "pad_token_id",
    "num_attention_heads", "num_key_value_heads", "head_dim", "d_kv", "query_pre_attn_scalar",
    "hidden_act", "activation", "hidden_activation", "dense_act_fn", "is_gated_act",
    "layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "norm_eps", "attn_logit_softcapping",
    "position_embedding_type", "position_biased_input", "relative_attention", "max_relative_positions",
    "position_buckets", "pos_att_type", "norm_rel_ebd", "share_att_key",
    "relative_attention_num_buckets", "relative_attention_max_distance", "rope_parameters",
    "layer_types", "sliding_window", "use_sliding_window", "local_attention", "use_bidirectional_attention",
)  # fmt: skip
# Their positions are counted from the id of the padding token plus one.
_POSITIONS_AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")


def load_text_model(folder: Path) -> tuple[TextFamily, Any, Any]:
    """The family, the model in eval mode, and the tokenizer of a folder; weights have the type that they are saved in.

    Raises:
        CheckpointError: a model of another family, or files that are missing or damaged.
    """
    import transformers

    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        values, _ = transformers.PreTrainedConfig.get_config_dict(folder, local_files_only=True)
        family = _family(folder, values.get("model_type"))
        tokenizer = _load_tokenizer(folder, **local)
        with whole_weights():
            model, info = getattr(transformers, family.classes[values["model_type"]]).from_pretrained(
                folder,
                dtype="auto",
                use_safetensors=True,
                output_loading_info=True,
                key_mapping=family.key_mapping,
                **local,
            )
    except CheckpointError:
        raise
    except (SafetensorError, *DAMAGES) as error:
        reason = why_unloadable(folder, error)
        raise CheckpointError(f"{folder}: the text encoder cannot be loaded ({reason})") from error
    _check_complete(folder, tokenizer, info["missing_keys"])
    if surplus := sorted(surplus_weights(model, info["unexpected_keys"], ("pooler",))):
        raise CheckpointError(
            f"{folder}: the text encoder cannot be loaded (its config has no place for {len(surplus)} of its weights, "
            f"{surplus[0]} first)"
        )
    return family, model.eval(), tokenizer


def _load_tokenizer(folder: Path, **options):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # tokenizers raises no narrower one over a damaged file
        reason = why_unloadable(folder, error)
        raise CheckpointError(f"{folder}: the text encoder cannot be loaded ({reason})") from error


def _family(folder: Path, model_type: str | None) -> TextFamily:
    for family in FAMILIES:
        if model_type in family.classes:
            return family
    known = "; ".join(f"{family.title} ({', '.join(family.classes)})" for family in FAMILIES)
    raise CheckpointError(
        f'{folder}: the text encoder cannot be loaded (its model_type is "{model_type}"; known are {known})'
    )


def _check_complete(folder: Path, tokenizer, missing_keys) -> None:
    """transformers starts missing weights at random, and makes a tokenizer without words, both without an error."""
    if not any((folder / name).is_file() for name in tokenizer.vocab_files_names.values()):
        raise CheckpointError(f"{folder}: the text encoder cannot be loaded (the files of its tokenizer are missing)")
    if missing := sorted(key for key in missing_keys if not is_pooler(key)):
        raise CheckpointError(
            f"{folder}: the text encoder cannot be loaded (its file lacks {len(missing)} weights, {missing[0]} first)"
        )


def is_pooler(name: str) -> bool:
    """Whether a weight is not part of the hidden states: checkpoints of language models come without a pooler."""
    return name.startswith("pooler.")


def max_tokens(config) -> int | None:
    """Most tokens that the model has positions for; None without a limit, as with T5's relative ones."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in _POSITIONS_AFTER_PADDING:
        return positions - config.pad_token_id - 1
    return positions


def feature_fields(config) -> dict[str, Any]:
    """The fields of a model's config that its hidden states depend on."""
    values = {name: getattr(config, name, None) for name in _FEATURE_FIELDS}
    return {name: value for name, value in values.items() if value is not None}


TEXT_PADDINGS = ("right", "left")
