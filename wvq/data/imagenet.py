"""The names of ImageNet's 1,000 classes (ILSVRC 2012) in the order of their ids, as torchvision lists them."""

from __future__ import annotations

import re

IMAGENET_CLASSES = 1_000


def imagenet_classes() -> list[str]:
    """A name for each class, all different: that of id 0 is "tench"."""
    from torchvision.models import ResNet50_Weights  # it brings all of torchvision's models

    return list(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def folders_by_name(names: list[str]) -> list[str]:
    """The names; in place of all its folders (n01440764, ...), whose order is that of the ids, those of ImageNet."""
    folders = len(names) == IMAGENET_CLASSES and all(re.fullmatch(r"n\d{8}", name) for name in names)
    return imagenet_classes() if folders and names == sorted(names) else names
