"""Streamed metrics over Inception equal torch-fidelity's own calculate_metrics on the same pictures and weights."""

import pytest
import torch
from torch.utils.data import TensorDataset
from torch_fidelity import calculate_metrics

from tests.stand_ins import draw_pictures, features_of
from wvq.eval.features.networks import SPATIAL_CHANNELS
from wvq.eval.figures.metrics import compare

COUNT = 10  # as many as the inception score has splits


class Pictures(TensorDataset):
    """What torch-fidelity takes: an item is a picture, not a tuple."""

    def __getitem__(self, index):
        return super().__getitem__(index)[0]


@pytest.fixture(scope="module")
def two_sets():
    return draw_pictures(COUNT, size=32), draw_pictures(COUNT, size=32, seed=1)


@pytest.fixture(scope="module")
def features(inception, two_sets):
    return [features_of(pictures, inception, 7) for pictures in two_sets]


@pytest.fixture(scope="module")
def theirs(random_inception_file, two_sets):
    return calculate_metrics(
        input1=Pictures(two_sets[0]),
        input2=Pictures(two_sets[1]),
        cuda=False,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=1,
        kid_subset_size=COUNT,
        batch_size=8,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(random_inception_file),
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )


def test_every_metric_is_torch_fidelitys(inception, features, theirs):
    ours = compare(inception, *features)
    names = {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "inception_score": "inception_score_mean",
        "precision": "precision",
        "recall": "recall",
    }
    assert 0 < theirs["precision"] + theirs["recall"] < 2  # neither empty nor full, or the order would not show
    for name, name_there in names.items():
        assert ours[name] == pytest.approx(theirs[name_there], rel=1e-4), name


def test_spatial_features_are_those_of_the_layer(inception, features, two_sets):
    """sFID's features, from the network's own layers run one by one."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    network, pixels = inception.network, two_sets[0][:2]
    x = interpolate_bilinear_2d_like_tensorflow1x(pixels.float(), size=(299, 299), align_corners=False)
    x = (x - 128) / 128
    layers = "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 MaxPool_1 Conv2d_3b_1x1 Conv2d_4a_3x3 MaxPool_2"
    blocks = "Mixed_5b Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c"
    with torch.inference_mode():
        for name in f"{layers} {blocks}".split():
            x = getattr(network, name)(x)
        branch = network.Mixed_6d.branch1x1
        expected = torch.relu(branch.bn(branch.conv(x)))[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
    assert features[0].spatial.shape == (COUNT, 7 * 17 * 17)
    torch.testing.assert_close(features[0].spatial[:2], expected, rtol=1e-4, atol=1e-5)
