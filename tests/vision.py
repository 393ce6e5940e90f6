"""Tiny random vision models of transformers that several folders of tests save and load."""

import json
from pathlib import Path

import torch
from transformers import ConvNextConfig, ConvNextModel, ViTConfig, ViTModel


def save_vit(folder: Path, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)) -> Path:
    """Write a ViT of width 16 and 4 layers for 32 x 32 pixels (4 x 4 patches), with its normalisation."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(5)
    ViTModel(ViTConfig(image_size=32, patch_size=8, initializer_range=0.2, **sizes)).save_pretrained(folder)
    values = {"image_mean": list(mean), "image_std": list(std)}
    (folder / "preprocessor_config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def save_convnext(folder: Path) -> Path:
    """Write a ConvNeXt of four stages with 4 to 12 channels for 64 x 64 pixels, without a normalisation."""
    torch.manual_seed(5)
    config = ConvNextConfig(hidden_sizes=[4, 6, 8, 12], depths=[1, 1, 1, 1], image_size=64)
    ConvNextModel(config).save_pretrained(folder)
    return folder


def vgg_file(layers, tmp_path):
    """Weights as torchvision names them; the classifier's are there, but are not looked at."""
    file = tmp_path / "vgg16.pth"
    weights = {f"features.{name}": value for name, value in layers.state_dict().items()}
    torch.save({**weights, "classifier.0.bias": torch.zeros(1)}, file)
    return file
