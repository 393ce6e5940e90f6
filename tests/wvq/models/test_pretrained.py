"""What both models share: loading and saving with the options of transformers, and the hash of the weights."""

import json
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init

from wvq.checks import as_list, integer, is_integer, is_number
from wvq.errors import CheckpointError, ConfigError, DataError, DownloadError
from wvq.files.fingerprint import DataFingerprint, PictureSketch
from wvq.files.names import CHECKSUMS_NAME
from wvq.models import pretrained
from wvq.models.config import StrictConfig, option
from wvq.models.pretrained import StrictPreTrainedModel, as_codes, weights_hash


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


# ---- values


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


# ---- loading


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
    with pytest.raises(
        CheckpointError, match=r"weights do not fit the config: 2 mismatched \(linear.bias, \(3,\) in place of \(4,\)"
    ):
        SmallModel.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="ignore_mismatched_sizes=True is not possible here"):
        SmallModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_a_config_of_the_callers_own_is_used(tmp_path):
    SmallModel(SmallConfig(width=3)).save_pretrained(tmp_path)
    for given in ({"config": SmallConfig(width=4)}, {"width": 4}):  # and no file is to blame
        with pytest.raises(ConfigError, match="weights do not fit the config given: 2 mismatched"):
            SmallModel.from_pretrained(tmp_path, **given)
    assert SmallModel.from_pretrained(tmp_path, config=SmallConfig(width=3)).config.width == 3
    assert SmallModel.from_pretrained(tmp_path, config=tmp_path, averaging_decay=0.5).config.averaging_decay == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wdth": 3}, r'SmallModel.from_pretrained takes no "wdth" \(did you mean "width"\?\)'),
        ({"wieghts": "int8"}, 'takes no "wieghts"'),
        ({"width": "x"}, "SmallConfig.width must be an integer of at least 1, got 'x'"),
        ({"dtype": "bf16"}, r'dtype must be one of float32, .*, got \'bf16\' \(did you mean "bfloat16"\?\)'),
        ({"torch_dtype": torch.int8}, "torch_dtype must be one of float32, bfloat16, float16, float64, got torch.int8"),
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, "dtype='float16' and torch_dtype='bfloat16' are given"),
        ({"device_map": "abacus"}, 'device_map "abacus" cannot be used here'),
        ({"device_map": {"linear": "cpu", "head": "meta"}}, "a model is on one device as a whole"),
        ({"attn_implementation": "flash_attention_2"}, "attn_implementation must be one of sdpa, eager, or null"),
        ({"variant": "fp16"}, "variant='fp16' is not possible here: one set of weights is saved"),
        ({"use_safetensors": False}, "use_safetensors=False is not possible here: weights are read and written as saf"),
        ({"trust_remote_code": True}, "trust_remote_code=True is not possible here: no code that comes with a model"),
        ({"quantization_config": {}}, "quantization_config={} is not possible here"),
        ({"max_memory": {0: "1GB"}}, "max_memory=.* is not possible here: a model is on one device"),
        ({"state_dict": {}}, "state_dict={} is not possible here"),
        ({"config": SmallConfig(), "width": 3}, "config and width are both given"),
        ({"config": 3}, "needs the folder or Hub id of a model, got 3"),
        ({"config": StrictConfig()}, "config must be a SmallConfig, got a StrictConfig"),
    ],
)
def test_a_wrong_option_is_one_line_that_blames_no_file(options, message, tmp_path):
    SmallModel(SmallConfig()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        SmallModel.from_pretrained(tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_options_that_ask_for_what_is_done_anyway_are_accepted(tmp_path):
    SmallModel(SmallConfig()).save_pretrained(tmp_path)
    hub = {"revision": "main", "token": None, "cache_dir": None, "local_files_only": True, "force_download": False}
    nothing = {"use_safetensors": True, "low_cpu_mem_usage": True, "trust_remote_code": False, "variant": None}
    loaded = SmallModel.from_pretrained(tmp_path, **hub, **nothing, proxies=None, attn_implementation="eager")
    assert weights_hash(loaded) == weights_hash(SmallModel.from_pretrained(tmp_path))


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}])
def test_dtype(options, tmp_path):
    model = SmallModel(SmallConfig())
    model.save_pretrained(tmp_path / "whole")
    half = SmallModel.from_pretrained(tmp_path / "whole", **options)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.linear.weight, model.linear.weight.bfloat16())
    half.save_pretrained(tmp_path / "half")
    for again in ({}, {"dtype": "auto"}, {"dtype": None}):
        assert weights_hash(SmallModel.from_pretrained(tmp_path / "half", **again)) == weights_hash(half)
    assert SmallModel.from_pretrained(tmp_path / "half", dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "auto", {"": "cpu"}, {"linear": "cpu", "x": "cpu"}])
def test_device_map_is_one_device(device, tmp_path):
    SmallModel(SmallConfig()).save_pretrained(tmp_path)
    assert SmallModel.from_pretrained(tmp_path, device_map=device, device="cpu").device.type == "cpu"
    assert SmallModel.from_pretrained(tmp_path, device_map={"": "meta"}).device.type == "meta"


def test_the_auto_classes_load_it_with_its_options(tmp_path):
    AutoConfig.register("small_test_model", SmallConfig, exist_ok=True)
    AutoModel.register(SmallConfig, SmallModel, exist_ok=True)
    SmallModel(SmallConfig()).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, averaging_decay=0.5, dtype="bfloat16", device_map="cpu")
    assert (type(loaded), loaded.dtype, loaded.config.averaging_decay) == (SmallModel, torch.bfloat16, 0.5)
    with pytest.raises(ConfigError, match=r'takes no "averging_decay"'):
        AutoModel.from_pretrained(tmp_path, averging_decay=0.5)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "width": 4}))
    with pytest.raises(CheckpointError, match="weights do not fit the config: 2 mismatched"):
        AutoModel.from_pretrained(tmp_path)


# ---- saving


def test_shards_come_back_and_are_verified(tmp_path):
    model = SmallModel(SmallConfig(width=32))
    model.save_pretrained(tmp_path / "a", max_shard_size="1KB", safe_serialization=True, variant=None)
    names = {file.name for file in (tmp_path / "a").iterdir()}
    shards = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert names == {"config.json", "model.safetensors.index.json", CHECKSUMS_NAME, *shards}
    assert weights_hash(SmallModel.from_pretrained(tmp_path / "a")) == weights_hash(model)
    shard = tmp_path / "a" / min(shards)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{shard.name} is not the file that was saved"):
        SmallModel.from_pretrained(tmp_path / "a")


def test_a_sharded_run_loads_all_weights_in_every_process(tmp_path, monkeypatch):
    """transformers may leave them 0 where a process is not the first of its machine."""
    model = SmallModel(SmallConfig(width=4))
    model.save_pretrained(tmp_path / "a")
    variables = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "LOCAL_RANK": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert weights_hash(SmallModel.from_pretrained(tmp_path / "a")) == weights_hash(model)
    finally:
        torch.distributed.destroy_process_group()
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"  # of the model that is sharded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"safe_serialization": False}, "safe_serialization=False is not possible here"),
        ({"variant": "fp16"}, "variant='fp16' is not possible here: one set of weights is saved"),
        ({"max_shard_size": "5 apples"}, "max_shard_size must be a number of bytes, or .*, got '5 apples'"),
        ({"max_shard_size": 0}, "max_shard_size must be a number of bytes"),
        ({"max_shrd_size": "5GB"}, r'save_pretrained takes no "max_shrd_size" \(did you mean "max_shard_size"\?\)'),
        ({"repo_id": "me/mine"}, "repo_id is of the upload; give push_to_hub=True too, or leave it out"),
    ],
)
def test_a_wrong_option_of_saving_is_one_line_and_writes_nothing(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        SmallModel(SmallConfig()).save_pretrained(tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


class Hub:
    """In place of the Hub client of transformers: records what is uploaded."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))
        return type("Repo", (), {"repo_id": f"me/{repo_id}"})

    def create_branch(self, **options):
        self.calls.append(("branch", options))

    def create_commit(self, operations, **options):
        self.calls.append(("commit", {one.path_in_repo for one in operations}, options))
        return "https://huggingface.co/me/mine/commit/1"


def test_a_model_is_pushed_with_the_options_of_transformers(tmp_path, monkeypatch):
    hub = Hub()
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *a, **o: Card())
    model = SmallModel(SmallConfig())
    options = {"commit_message": "First", "private": True, "token": "t", "revision": "dev", "create_pr": True}
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, max_shard_size="5GB", **options)
    assert hub.calls[0] == ("create", "mine", {"private": True, "token": "t", "exist_ok": True})
    assert hub.calls[1][1]["branch"] == "dev"
    assert hub.calls[2][1] == {"config.json", "model.safetensors", CHECKSUMS_NAME, "README.md"}
    uploaded = hub.calls[2][2]
    assert (uploaded["repo_id"], uploaded["commit_message"], uploaded["create_pr"]) == ("me/mine", "First", True)
    assert (uploaded["revision"], uploaded["token"]) == ("dev", "t")
    with pytest.raises(ConfigError, match=r'push_to_hub takes no "comit_message" \(did you mean "commit_message"\?\)'):
        model.push_to_hub("me/mine", comit_message="x")


class Card:
    def save(self, path):
        Path(path).write_text("# A model")


def test_a_model_that_cannot_be_pushed_is_one_line(monkeypatch):
    class Offline(Hub):
        def create_repo(self, repo_id, **options):
            raise OfflineModeIsEnabled("Cannot reach the Hub:\noffline mode is enabled")

    monkeypatch.setattr("transformers.utils.hub.hf_api", Offline)
    with pytest.raises(DownloadError, match=r'"me/mine" could not be pushed to the Hub \(Cannot reach the Hub:\)') as e:
        SmallModel(SmallConfig()).push_to_hub("me/mine")
    assert "\n" not in str(e.value)


# ---- inputs


def test_codes_are_integers_on_the_device_of_the_model():
    cpu = torch.device("cpu")
    for dtype in (torch.int32, torch.uint16, torch.int64):
        assert as_codes(torch.ones(2, dtype=dtype), cpu).dtype == torch.int64
    with pytest.raises(DataError, match=r"codes must be integers, got torch\.float32"):
        as_codes(torch.ones(2), cpu)
    with pytest.raises(DataError, match="codes are on meta, the model is on cpu; move them with"):
        as_codes(torch.ones(2, dtype=torch.int64, device="meta"), cpu)


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
