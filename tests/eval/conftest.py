"""What tests of evaluations share: labelled pictures, and an evaluation of a fake pipeline."""

import pytest

from wvq.eval.generation import evaluate_generation

CLASSES = ("animals", "flags", "food")


@pytest.fixture
def evaluate():
    """`evaluate_generation` in small batches without progress bars."""

    def run(pipeline, data, num_images, network, **settings):
        return evaluate_generation(
            pipeline, data, num_images, feature_network=network, batch_size=5, progress=False, **settings
        )

    return run


@pytest.fixture
def labelled(pictures, picture_set):
    """30 pictures of three classes, each with a caption of its own."""
    captions = [f"picture {index}" for index in range(30)]
    return picture_set(pictures(30), [0, 1, 1, 1, 2, 1] * 5, CLASSES, captions)
