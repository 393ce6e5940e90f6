"""What both models share: reading configs, folders and Hub ids, loading and saving, the hash of the weights."""

import json

import pytest
import torch
from torch import nn
from transformers import initialization as init

from wvq.checks import as_list, integer, is_integer, is_number
from wvq.errors import CheckpointError, ConfigError, DownloadError
from wvq.files.fingerprint import DataFingerprint, PictureSketch
from wvq.models import pretrained
from wvq.models.config import StrictConfig, option
from wvq.models.pretrained import StrictPreTrainedModel, read_config, resolve_folder, weights_hash


class SmallConfig(StrictConfig):
    model_type = "small_test_model"

    width: int = option(3, integer())


class SmallModel(StrictPreTrainedModel):
    kind = "small model"
    config_class = SmallConfig
    base_model_prefix = ""

    def __init__(self, config):
        super().__init__(config)
        self.linear = nn.Linear(config.width, config.width)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.normal_(module.weight)
            init.zeros_(module.bias)


# ---- configs


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, CheckpointError, "config.json is missing: .* holds no small_test_model"),
        ("{", CheckpointError, "cannot be read as JSON"),
        ("\x00\xff", CheckpointError, "cannot be read as JSON"),
        ("3", CheckpointError, "must hold a JSON object"),
        ("{}", CheckpointError, 'type "None", not "small_test_model"'),
        ('{"model_type": "small_test_model", "widt": 3}', ConfigError, 'no field "widt"'),
        ('{"model_type": "small_test_model", "width": "3"}', ConfigError, "width must be an integer"),
    ],
)
def test_a_bad_config_file_is_one_clear_error(tmp_path, text, error, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(error, match=message) as raised:
        read_config(SmallConfig, tmp_path)
    assert "\n" not in str(raised.value)


def test_numbers():
    assert [is_integer(v) for v in (1, 10**9, 0, -1, 1.0, True, "1", None)] == [True, True] + [False] * 6
    assert is_integer(0, minimum=0)
    assert [is_number(v) for v in (0, 0.5, 3, -1, True, "1", None, float("nan"), float("inf"))] == [True] * 3 + [
        False
    ] * 6


def test_lists():
    given = [1, 2]
    assert as_list(given) == given
    assert as_list(given) is not given
    assert as_list((1, 2)) == [1, 2]
    assert as_list("ab") == "ab"
    assert as_list(3) == 3


# ---- folders


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert resolve_folder(tmp_path, "tokenizer") == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert resolve_folder("runs/a", "tokenizer").samefile(tmp_path / "runs" / "a")


@pytest.mark.parametrize(
    "path", ["/none/here", "./none", "none", "a/b/c", "runs/typo", "~/none-such", "~no-such-user/a"]
)
def test_a_missing_folder_is_not_asked_of_the_hub(tmp_path, monkeypatch, path):
    def fail(*args, **kwargs):
        raise AssertionError("asked the Hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match="no such tokenizer folder"):
        resolve_folder(path, "tokenizer")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(CheckpointError, match=r"a.txt is a file, not a tokenizer folder"):
        resolve_folder(tmp_path / "a.txt", "tokenizer")


def test_a_hub_id_is_fetched_without_pickles(tmp_path, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert resolve_folder("owner/name", "tokenizer", revision="v1") == tmp_path
    assert asked["name"] == "owner/name"
    assert asked["revision"] == "v1"
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".pkl", "*")) for pattern in asked["allow_patterns"])


def test_a_hub_id_that_cannot_be_fetched_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DownloadError, match=r'"owner/name" is no local folder .*check the name and the network'
    ) as error:
        resolve_folder("owner/name", "tokenizer")
    assert "\n" not in str(error.value)


# ---- models


def test_hub_options_reach_the_download_and_not_the_model(tmp_path, monkeypatch):
    SmallModel(SmallConfig()).save_pretrained(tmp_path / "model")
    asked = {}

    def resolve(path, kind, **options):
        asked.update(options, path=path, kind=kind)
        return tmp_path / "model"

    monkeypatch.setattr(pretrained, "resolve_folder", resolve)
    SmallModel.from_pretrained("owner/name", revision="v2", cache_dir="there")
    assert asked == {"path": "owner/name", "kind": "small model", "revision": "v2", "cache_dir": "there"}


def test_loading_information_on_request(tmp_path):
    SmallModel(SmallConfig()).save_pretrained(tmp_path)
    model, info = SmallModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is SmallModel
    assert not info["missing_keys"]


def test_a_shape_mismatch_is_an_error_even_if_the_library_would_let_it_pass(tmp_path):
    SmallModel(SmallConfig(width=3)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "width": 4}))
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(CheckpointError, match=r"weights (cannot be loaded|do not fit)"):
            SmallModel.from_pretrained(tmp_path, **options)


def test_a_config_of_the_callers_own_is_used(tmp_path):
    SmallModel(SmallConfig(width=3)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError):
        SmallModel.from_pretrained(tmp_path, config=SmallConfig(width=4))
    assert SmallModel.from_pretrained(tmp_path, config=SmallConfig(width=3)).config.width == 3


# ---- hash


def test_the_hash_follows_the_weights(tmp_path):
    model = SmallModel(SmallConfig())
    before = weights_hash(model)
    assert len(before) == 64
    assert weights_hash(model) == before
    model.save_pretrained(tmp_path)
    assert weights_hash(SmallModel.from_pretrained(tmp_path)) == before
    with torch.no_grad():
        model.linear.bias[0] += 1e-6
    assert weights_hash(model) != before


def test_the_hash_sees_names_types_and_shapes():
    def named(**parameters):
        module = nn.Module()
        for name, value in parameters.items():
            module.register_parameter(name, nn.Parameter(value))
        return weights_hash(module)

    base = named(a=torch.zeros(4))
    assert base == named(a=torch.zeros(4))
    assert base != named(b=torch.zeros(4))
    assert base != named(a=torch.zeros(2, 2))
    assert base != named(a=torch.zeros(8, dtype=torch.float16))
    assert named(a=torch.zeros(4), b=torch.ones(())) == named(b=torch.ones(()), a=torch.zeros(4))
    assert named(a=torch.arange(6.0).view(2, 3).T) == named(a=torch.arange(6.0).view(2, 3).T.contiguous())


# ---- the fingerprint of the data


def test_a_model_keeps_the_fingerprint_of_its_data_wherever_it_is_saved(tmp_path):
    fingerprint = DataFingerprint(PictureSketch.of("abc"), PictureSketch.of("d"))
    model = SmallModel(SmallConfig())
    assert model.data_fingerprint is None
    model.data_fingerprint = fingerprint
    model.save_pretrained(tmp_path / "one")
    loaded = SmallModel.from_pretrained(tmp_path / "one", dtype=torch.bfloat16)
    loaded.save_pretrained(tmp_path / "other")
    assert SmallModel.from_pretrained(tmp_path / "other").data_fingerprint.summary() == fingerprint.summary()


def test_a_model_without_a_fingerprint_leaves_none_of_another(tmp_path):
    DataFingerprint(PictureSketch.of("abc"), PictureSketch.of("d")).save(tmp_path)
    SmallModel(SmallConfig()).save_pretrained(tmp_path)
    assert SmallModel.from_pretrained(tmp_path).data_fingerprint is None


def test_a_damaged_fingerprint_is_one_line(tmp_path):
    SmallModel(SmallConfig()).save_pretrained(tmp_path)
    (tmp_path / "data_fingerprint.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"data_fingerprint\.json is damaged \(.*\); remove it"):
        SmallModel.from_pretrained(tmp_path)
