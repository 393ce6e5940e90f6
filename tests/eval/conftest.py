"""The Inception network of the evaluation's tests, with random weights."""

import io

import pytest
import torch

from wvq.eval.features import load_feature_network


@pytest.fixture(scope="session")
def random_inception_file(tmp_path_factory):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        """Keeps its random weights."""

        def load_state_dict(self, state_dict):
            return None

    empty, path = io.BytesIO(), tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    network = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=empty)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def inception(random_inception_file):
    return load_feature_network("inception", random_inception_file)
