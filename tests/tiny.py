"""Tiny parts that several folders of tests build: a text encoder with its own vocabulary, generators, pipelines."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from wvq.app.quickstart import stage_recipes
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.kinds import CONFIGS
from wvq.generator.models import new_generator
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.text.captions import CaptionIndex
from wvq.generator.text.encoder import TextEncoder
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "blue", "yellow", "circle", "cross", "square")
CLASS_NAMES = ["circle", "cross", "square"]
TEXT_DIM = 16
LAYOUTS = {"grid": {}, "product": {"num_groups": 2}, "multi-scale": {"scales": [1, 2, 4]}}  # fields of a tokenizer

# The field by which transformers picks a class, by file.
KINDS = {"config.json": "model_type", "tokenizer_config.json": "tokenizer_class"}
KINDS["preprocessor_config.json"] = "image_processor_type"

# Options of the commands that train in seconds.
TINY_TOKENIZER = [
    "--model.patch_size=2",
    "--model.base_channels=8",
    "--model.channel_multipliers=[1,2]",
    "--model.num_res_blocks=1",
    "--model.attention=false",
    "--model.num_codes=32",
    "--model.code_dim=4",
    "--model.quantizer=sliced",
    "--train.images=160",
    "--train.batch_size=16",
]
TINY_GENERATOR = [
    "--model.hidden_size=32",
    "--model.num_layers=1",
    "--model.num_heads=2",
    "--train.images=64",
    "--train.batch_size=16",
    "--train.learning_rate=0.005",
]


def save_text_encoder(folder: Path) -> Path:
    """Write a random BERT of width 16 and its word tokenizer."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    sizes = {"hidden_size": TEXT_DIM, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(3)
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    return folder


def plant(folder: Path, name: str, classes: dict, mark: Path) -> None:
    """Give a folder code of its own that writes the file ``mark``, and a JSON file that asks for its classes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "planted.py").write_text(f"open({str(mark)!r}, 'w')")
    file = folder / name
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | {KINDS[name]: "Planted", "auto_map": classes}))


def index_captions(captions: Sequence[Sequence[str]], size: int = 2) -> CaptionIndex:
    """An index of the captions of each picture, read ``size`` pictures at a time."""
    return CaptionIndex(
        (captions[i : i + size] for i in range(0, len(captions), size)), lambda picture: captions[picture]
    )


def make_generator(seed: int = 0, **changes) -> ImageCodeTransformer:
    """A generator of 32 codes on a 4 x 4 grid in eval mode, whose head is random instead of zero."""
    sizes = {"num_codes": 32, "grid": [4, 4], "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    torch.manual_seed(seed)
    model = ImageCodeTransformer(ImageCodeTransformerConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.5 if "embedding" in name or "null" in name else 0.25)
    if model.config.code_dim:
        model.take_quantizer({"codebook": torch.randn(model.config.num_codes, model.config.code_dim)})
    return model


def make_pipeline(
    tokenizer_dir: Path, text_encoder_dir: Path | None = None, class_names: Sequence[str] = CLASS_NAMES, seed: int = 0
) -> ImageGenerationPipeline:
    """A pipeline of a random generator, conditional on classes, text, both or nothing."""
    tokenizer = WassersteinVQModel.from_pretrained(tokenizer_dir)
    conditions = {"num_classes": len(class_names), "class_names": class_names}
    text_encoder = None
    if text_encoder_dir is not None:
        text_encoder = TextEncoder(text_encoder_dir, 5)
        conditions |= text_encoder.config_fields()
    generator = make_generator(seed, tokenizer_hash=tokenizer.codes_hash(), **conditions)
    return ImageGenerationPipeline(tokenizer, generator, text_encoder, SamplingSettings(guidance_scale=1.5, top_k=20))


def make_tokenizer(**changes) -> WassersteinVQModel:
    """An untrained tokenizer of 16 x 16 pixels with 32 codes on a 4 x 4 grid, of which pictures use several.

    With the fields of ``LAYOUTS`` its codes have another layout.
    """
    sizes = {"image_size": 16, "patch_size": 2, "base_channels": 8, "channel_multipliers": [1, 2], "attention": False}
    torch.manual_seed(4)
    model = WassersteinVQModel(WassersteinVQConfig(**sizes | {"num_codes": 32, "code_dim": 4} | changes)).eval()
    with torch.no_grad():
        for parameter in model.codebook_parameters():
            parameter.normal_(0, 0.3)
    return model


def make_layout_pipeline(
    kind: str, text_encoder_dir: Path | None = None, class_names: Sequence[str] = CLASS_NAMES, **changes
) -> ImageGenerationPipeline:
    """A pipeline of an untrained tokenizer and a random generator of codes of any layout.

    Args:
        kind: ``grid`` (16 codes), ``product`` (16 positions of two codes) or ``multi-scale`` (sides 1, 2, 4).
        text_encoder_dir: makes it conditional on text, too.
        class_names: of its classes.
        changes: fields of the generator's config.
    """
    tokenizer = make_tokenizer(**LAYOUTS[kind])
    fields = {"num_classes": len(class_names), "class_names": class_names, "tokenizer_hash": tokenizer.codes_hash()}
    fields |= {"num_codes": 32, "grid": [4, 4], "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    text_encoder = None if text_encoder_dir is None else TextEncoder(text_encoder_dir, 5)
    if text_encoder is not None:
        fields |= text_encoder.config_fields()
    torch.manual_seed(0)
    config = CONFIGS[kind]
    generator = new_generator(config(**config.fields_of_tokenizer(tokenizer.config) | fields | changes)).eval()
    with torch.no_grad():
        for parameter in generator.parameters():  # nothing starts at zero: each part counts
            parameter.add_(torch.randn_like(parameter) * 0.2)
    generator.take_quantizer(tokenizer.quantizer.code_tensors(torch.device("cpu")))
    return ImageGenerationPipeline(tokenizer, generator, text_encoder, SamplingSettings(guidance_scale=1.5, top_k=20))


def save_pipeline(tokenizer_dir: Path, folder: Path) -> Path:
    """Write a random pipeline with classes and text into ``folder / "pipeline"``."""
    encoder = save_text_encoder(folder / "encoder")
    make_pipeline(tokenizer_dir, encoder).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def tiny_stage_recipes(text_encoder: Path):
    """In place of the quick start's `stage_recipes`: tiny models for a few steps, with the given text encoder."""

    def stages(recipe):
        tokenizer, export, generator = stage_recipes(recipe)
        tokenizer.data.image_size = export.data.image_size = 16
        tokenizer.model |= {"base_channels": 8, "channel_multipliers": [1, 2], "num_codes": 64, "code_dim": 4}
        generator.model |= {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "code_dim": 4}
        generator.condition.text_encoder = str(text_encoder)
        export.num_crops = 2
        for train in (tokenizer.train, generator.train):
            train.images, train.batch_size, train.evaluate_every, train.log_every = 240, 16, 120, 24
        return tokenizer, export, generator

    return stages
