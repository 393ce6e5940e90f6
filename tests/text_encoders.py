"""Tiny random text encoders of every family, each with the kind of tokenizer that its family has."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, PreTrainedTokenizerFast

WIDTH = 16
WORDS = ("red", "green", "blue", "yellow", "circle", "cross", "square")
# <pad>, <unk>, <s> and </s> come first, so that ids are 0, 1, 2 and 3.
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
# What a family puts around a caption; decoders put nothing.
TEMPLATES = {"bert": "<s> $A </s>", "t5": "$A </s>", "clip": "<s> $A </s>"}

_SIZES = {"vocab_size": len(SPECIAL) + len(WORDS), "hidden_size": WIDTH, "intermediate_size": 32}
_SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40}
_SIZES |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_T5 = {"vocab_size": _SIZES["vocab_size"], "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2}
_T5 |= {"num_decoder_layers": 1, "num_heads": 2}
_DECODER = _SIZES | {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": None, "vocab_size": 320}
_VISION = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION |= {"image_size": 16, "patch_size": 8}
_DISTILBERT = {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 40}

# By name: the family, the class that is saved, and its config's fields.
ENCODERS = {
    "bert": ("bert", "BertModel", _SIZES),
    "bert, of a language model": ("bert", "BertForMaskedLM", _SIZES),
    "albert": ("bert", "AlbertModel", _SIZES | {"embedding_size": 8}),
    "camembert": ("bert", "CamembertModel", _SIZES),
    "deberta-v2": ("bert", "DebertaV2Model", _SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "distilbert": ("bert", "DistilBertModel", _DISTILBERT | {"vocab_size": _SIZES["vocab_size"]}),
    "electra": ("bert", "ElectraModel", _SIZES | {"embedding_size": 8}),
    "modernbert": ("bert", "ModernBertModel", _SIZES | {"cls_token_id": 2, "sep_token_id": 3}),
    "mpnet": ("bert", "MPNetModel", _SIZES | {"pad_token_id": 1}),
    "roberta": ("bert", "RobertaModel", _SIZES),
    "xlm-roberta": ("bert", "XLMRobertaModel", _SIZES),
    "t5": ("t5", "T5ForConditionalGeneration", _T5),
    "t5, the encoder alone": ("t5", "T5EncoderModel", _T5),
    "mt5": ("t5", "MT5ForConditionalGeneration", _T5),
    "umt5": ("t5", "UMT5ForConditionalGeneration", _T5),
    "umt5, the encoder alone": ("t5", "UMT5EncoderModel", _T5),
    "clip": ("clip", "CLIPModel", {"text_config": _SIZES, "vision_config": _VISION, "projection_dim": 8}),
    "clip, the text model alone": ("clip", "CLIPTextModel", _SIZES),
    "clip, with its projection": ("clip", "CLIPTextModelWithProjection", _SIZES | {"projection_dim": 8}),
    "gemma": ("decoder", "GemmaForCausalLM", _DECODER),
    "gemma2": ("decoder", "Gemma2ForCausalLM", _DECODER),
    "gemma3_text": ("decoder", "Gemma3ForCausalLM", _DECODER),
    "llama": ("decoder", "LlamaForCausalLM", _DECODER),
    "mistral": ("decoder", "MistralForCausalLM", _DECODER),
    "qwen2": ("decoder", "Qwen2ForCausalLM", _DECODER),
    "qwen3": ("decoder", "Qwen3ForCausalLM", _DECODER),
    "qwen3, in bfloat16": ("decoder", "Qwen3ForCausalLM", _DECODER),
}
ONE_A_FAMILY = ("bert", "t5", "t5, the encoder alone", "umt5", "clip", "clip, the text model alone", "qwen3", "llama")


def save_encoder(name: str, folder: Path) -> Path:
    """Write the random model of a name in ``ENCODERS`` and its tokenizer."""
    family, class_name, fields = ENCODERS[name]
    save_tokenizer(family, folder)
    model_class = getattr(transformers, class_name)
    torch.manual_seed(5)
    model = model_class(model_class.config_class(**fields))
    with torch.no_grad():
        for weight in model.parameters():  # far from each other: what is wrong is to be seen
            weight.add_(0.1 * torch.randn_like(weight))
    (model.bfloat16() if "bfloat16" in name else model).save_pretrained(folder)
    return folder


def save_tokenizer(family: str, folder: Path) -> None:
    """Write a family's tokenizer: decoders read bytes and have no token for padding, CLIP takes its last token."""
    special = dict(SPECIAL)
    if family == "decoder":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        pieces = trainers.BpeTrainer(special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, vocab_size=320)
        tokenizer.train_from_iterator([f"{word} {word}" for word in WORDS] * 2, pieces)
        special.pop("pad_token")
    else:
        ids = {word: i for i, word in enumerate((*SPECIAL.values(), *WORDS))}
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single=TEMPLATES[family], special_tokens=[("<s>", 2), ("</s>", 3)]
        )
    if family == "clip":
        special["pad_token"] = special["eos_token"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def save_stack(source: Path, folder: Path) -> Path:
    """Write the encoder stack of a T5 folder in the form in which earlier pipelines hold it."""
    AutoModel.from_pretrained(source).get_encoder().save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(source).save_pretrained(folder)
    return folder
