"""What several folders of tests share: offline on one thread, tiny pictures, a tiny trained tokenizer and its codes."""

import faulthandler
import io
import json
import os
from types import SimpleNamespace
from urllib.error import URLError

# Before torch and huggingface_hub are imported, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
import transformers
from torchvision.models import vgg

from tests.drawings import write_pictures
from tests.processes import Program, run, run_ranks, start_server
from tests.stand_ins import PictureSet, ProjectionNetwork, draw_pictures
from tests.vision import vgg_file
from wvq.eval.features.networks import load_feature_network
from wvq.settings.data import DataConfig
from wvq.tokenizer.recipes import ExportRecipe, LossConfig, TokenizerRecipe, TokenizerTrainConfig

transformers.utils.logging.disable_progress_bar()


def pytest_configure(config):
    """The processes that share the tests share the server that forks programs too: it takes seconds to start."""
    if config.getoption("numprocesses", None):
        start_server()


def pytest_collection_modifyitems(items):
    """Files that start programs come first: they take longest, and would leave one process alone at the end.

    What is marked ``gpu`` is skipped where there is none.
    """

    def starts_programs(item) -> bool:
        return any(value is start for value in vars(item.module).values() for start in (Program, run, run_ranks))

    items.sort(key=starts_programs, reverse=True)  # stable: what is equal keeps its order
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_unconfigure():
    """Should something left behind hold the interpreter after the last test, say what, and end."""
    faulthandler.dump_traceback_later(120, exit=True)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Nothing is read from or left in the user's cache of reference features."""
    os.environ["WVQ_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    """60 pictures of 24 x 24 pixels in three class folders: circle, cross, square."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def caption_folder(tmp_path_factory):
    """The pictures of `picture_folder` with a metadata.jsonl: labels such as circle, captions such as "red circle"."""
    folder = tmp_path_factory.mktemp("captioned")
    rows = write_pictures(folder)
    lines = [
        json.dumps({"file_name": name, "label": shape, "caption": f"{color} {shape}"}) for name, shape, color in rows
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_data():
    """A function that makes the DataConfig of a folder: 16 x 16 pixels, a fifth held out, with some fields changed."""

    def make(folder, **changes) -> DataConfig:
        settings = {"path": str(folder), "image_size": 16, "validation_fraction": 0.2, "crop": "center", **changes}
        return DataConfig(**settings)

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer_recipe(picture_folder, tiny_data):
    """A function that makes the recipe of a tiny tokenizer (4 x 4 grid, 32 codes, 40 steps), some fields changed."""

    def make(out, train=None, model=None, data=None) -> TokenizerRecipe:
        shape = {
            "patch_size": 2,
            "base_channels": 8,
            "channel_multipliers": [1, 2],
            "num_res_blocks": 1,
            "attention": False,
            "num_codes": 32,
            "code_dim": 4,
            "quantizer": "sliced",
        }
        loop = {
            "images": 640,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "codebook_learning_rate": 0.02,
            "log_every": 64,
            "ema_decay": 0.9,
        }
        return TokenizerRecipe(
            out=str(out),
            data=tiny_data(picture_folder, **(data or {})),
            model={**shape, **(model or {})},
            loss=LossConfig(l1_weight=1.0, l2_weight=1.0),
            train=TokenizerTrainConfig(**{**loop, **(train or {})}),
        )

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory, tiny_tokenizer_recipe):
    """Folder of a tokenizer trained for 40 steps; do not write into it."""
    from wvq.tokenizer.train import train_tokenizer

    out = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(tiny_tokenizer_recipe(out))
    return out


@pytest.fixture(scope="session")
def tiny_codes_dir(tmp_path_factory, tiny_tokenizer_dir, caption_folder, tiny_data):
    """Code cache of the captioned pictures, two crops each, with classes and captions; do not write into it."""
    from wvq.tokenizer.export import export_codes

    out = tmp_path_factory.mktemp("codes") / "codes"
    data = tiny_data(caption_folder, crop="random", flip=True)
    export_codes(ExportRecipe(out=str(out), tokenizer=str(tiny_tokenizer_dir), data=data, num_crops=2))
    return out


@pytest.fixture
def fresh_accelerator():
    """Accelerate keeps its settings for the life of the process, and refuses others: start and leave without any."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = (AcceleratorState, GradientState, PartialState)
    for state in states:
        state._reset_state()
    yield
    for state in states:
        state._reset_state()


# ---- stand-ins of evaluations


@pytest.fixture
def pictures():
    return draw_pictures


@pytest.fixture
def picture_set():
    return PictureSet


@pytest.fixture
def projection():
    return ProjectionNetwork()


@pytest.fixture
def projection_with_logits():
    return ProjectionNetwork(has_logits=True)


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


@pytest.fixture
def vgg_layers(monkeypatch):
    """Random layers of VGG-16; torchvision builds it without its classifier of half a GB, and cannot fetch weights."""
    pytest.importorskip("lpips", reason="the package lpips is missing")

    def vgg16(pretrained):
        if pretrained:
            raise URLError("no network")
        return SimpleNamespace(features=vgg.make_layers(vgg.cfgs["D"]))

    monkeypatch.setattr("torchvision.models.vgg16", vgg16)
    layers = vgg.make_layers(vgg.cfgs["D"])
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    return layers


@pytest.fixture
def lpips_file(vgg_layers, tmp_path):
    """Random weights of VGG-16 in the file that LPIPS reads."""
    return vgg_file(vgg_layers, tmp_path)
