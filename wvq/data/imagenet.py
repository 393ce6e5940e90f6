"""The names of ImageNet's 1,000 classes (ILSVRC 2012) in the order of their ids, as torchvision lists them."""

from __future__ import annotations


def imagenet_classes() -> list[str]:
    """A name for each class, all different: that of id 0 is "tench"."""
    from torchvision.models import ResNet50_Weights  # it brings all of torchvision's models

    return list(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])
