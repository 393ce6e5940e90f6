"""Small stand-ins of evaluations: synthetic pictures, a data set in memory and a fast feature network."""

from types import SimpleNamespace

import torch

from wvq.errors import UnreadablePictureError
from wvq.eval.features.networks import FeatureNetwork, FeatureOutput
from wvq.eval.features.pictures import PictureFeatures
from wvq.generator.base.sampling_settings import SamplingSettings


def draw_pictures(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    """uint8 (N, 3, S, S): coloured rectangles on a coloured ground."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (count, 3, 1, 1), generator=generator).expand(-1, -1, size, size).clone()
    for picture in pictures:
        for _ in range(3):
            top, left = torch.randint(0, size - 4, (2,), generator=generator).tolist()
            height, width = torch.randint(3, size // 2, (2,), generator=generator).tolist()
            color = torch.randint(0, 256, (3, 1, 1), generator=generator)
            picture[:, top : top + height, left : left + width] = color
    return pictures.to(torch.uint8)


class PictureSet:
    """The parts of ImageDataset that evaluations use, over pictures in memory."""

    unreadable = "skip"

    def __init__(self, pictures, labels=None, class_names=(), captions=None, crop_recipe="center", broken=()):
        self.pictures = pictures
        self.labels = labels
        self.class_names = class_names
        self.captions = captions
        self.image_size = pictures.shape[-1]
        self.crop_recipe = crop_recipe
        self.broken = broken
        self.store = SimpleNamespace(failure=lambda index: f"{index}.png (broken)")

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        if index in self.broken:
            raise UnreadablePictureError(f"{index}.png cannot be read as a picture (broken)")
        pixels = self.pictures[index].float() / 127.5 - 1
        if self.crop_recipe != "center":
            pixels = pixels.roll(1, dims=-1)
        return {"pixel_values": pixels, "label": -1 if self.labels is None else self.labels[index], "index": index}

    def with_crop(self, crop=None, flip=None):
        return PictureSet(self.pictures, self.labels, self.class_names, self.captions, crop, self.broken)


class ProjectionNetwork(FeatureNetwork):
    """A fixed random projection of coarse pixels: deterministic, fast, no weights."""

    name = "projection"
    dim = 12

    def __init__(self, has_logits=False):
        super().__init__("0" * 64)
        self.has_logits = has_logits
        matrix = torch.randn(3 * 16, self.dim, generator=torch.Generator().manual_seed(0))
        self.matrix = torch.nn.Parameter(matrix / 7, requires_grad=False)

    def recipe(self, image_size):
        return "mean over a 4 x 4 grid"

    def _compute(self, images):
        coarse = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)
        features = coarse @ self.matrix
        return FeatureOutput(features, features[:, :5] if self.has_logits else None)


def features_of(pictures: torch.Tensor, network: FeatureNetwork, batch_size: int = 64) -> PictureFeatures:
    """Features of uint8 pictures, one batch after the other; their hash is left out."""
    parts = [network(batch) for batch in pictures.split(batch_size)]
    features, logits, spatial = (
        None if values[0] is None else torch.cat(values) for values in zip(*parts, strict=True)
    )
    return PictureFeatures(features, logits, "", pictures.shape[-1], "none", spatial=spatial)


class FakePipeline:
    """Draws a seeded noise picture a sample, tinted by its class; records what it was asked for."""

    def __init__(self, class_names=("animals", "flags", "food"), image_size=16):
        self.class_names = class_names
        config = SimpleNamespace(num_classes=len(class_names), class_names=list(class_names), text_dim=8)
        self.generator = SimpleNamespace(config=config)
        self.tokenizer = SimpleNamespace(config=SimpleNamespace(image_size=image_size))
        self.sampling = SamplingSettings(temperature=0.7)
        self.image_size = image_size
        self.labels, self.prompts, self.calls = [], [], []

    @property
    def names(self):
        """Names of the classes that it was asked for."""
        return [self.class_names[label] for label in self.labels]

    def former_hashes(self):
        return {"generator": "a", "tokenizer": "b"}

    def weights_hashes(self, former):
        return {name: f"{value} and config" for name, value in former.items()}

    def numerics(self):
        return {"dtype": {"generator": "float32"}, "averaging_decay": {"generator": 0.5}, "device": "cpu"}

    def __call__(self, class_labels=None, prompt=None, *, num_images, seed, output_type, batch_size, **sampling):
        assert output_type == "pt"
        self.labels += class_labels or []
        self.prompts += prompt or []
        self.calls.append(sampling)
        pictures = []
        for offset in range(num_images):
            generator = torch.Generator().manual_seed(seed + offset)
            pictures.append(torch.rand(3, self.image_size, self.image_size, generator=generator) * 2 - 1)
        return SimpleNamespace(images=torch.stack(pictures))
