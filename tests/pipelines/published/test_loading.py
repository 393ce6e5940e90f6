"""Published models by name: downloaded and converted once, then loaded from the cache."""

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import wvq
from tests.published import offer_tiny_models
from wvq.errors import ConfigError, DownloadError
from wvq.files.origin import Origin


@pytest.fixture
def asked(tmp_path, monkeypatch):
    return offer_tiny_models(monkeypatch, tmp_path / "hub")


def test_a_pipeline_is_converted_once(asked, tmp_path):
    pipe = wvq.load_published("llamagen-b-256", cache_dir=tmp_path)
    assert asked == ["FoundationVision/LlamaGen/vq_ds16_c2i.pt", "FoundationVision/LlamaGen/c2i_B_256.pt"]
    assert (pipe.sampling.guidance_scale, pipe.sampling.top_k) == (4.0, 2_000)
    again = wvq.load_published("llamagen-b-256", cache_dir=tmp_path, dtype="bfloat16")
    assert len(asked) == 2
    assert again.dtype == torch.bfloat16
    origin = Origin.read(tmp_path / "published" / "form_1" / "llamagen-b-256")
    assert (origin.name, origin.licence, origin.published) == ("llamagen-b-256", "mit", "FID 5.46")
    for part in (
        "`llamagen-b-256`",
        "licence `mit`",
        "FID 5.46",
        "--preset llamagen_b_256",
        "It was not measured here",
    ):
        assert part in pipe.card


def test_a_tokenizer_is_loaded_by_its_own_function(asked, tmp_path):
    tokenizer = wvq.load_published_tokenizer("llamagen-vq-ds16-c2i", cache_dir=tmp_path)
    assert tokenizer.config.num_codes == 32
    with pytest.raises(ConfigError, match="is a tokenizer; load it by load_published_tokenizer"):
        wvq.load_published("llamagen-vq-ds16-c2i", cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="is a pipeline; load it by load_published"):
        wvq.load_published_tokenizer("var-d16", cache_dir=tmp_path)


def test_the_cache_is_that_of_the_variable(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("WVQ_CACHE", str(tmp_path / "cache"))
    wvq.load_published_tokenizer("ibq-1024")
    assert (tmp_path / "cache" / "published" / "form_1" / "ibq-1024" / "config.json").is_file()


def test_a_file_that_cannot_be_fetched_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(DownloadError) as caught:
        wvq.load_published("var-d16", cache_dir=tmp_path)
    line = str(caught.value)
    assert "vae_ch160v4096z32.pth of FoundationVision/var could not be fetched" in line
    assert "give it to wvq import by --tokenizer" in line
    assert "\n" not in line
    assert not list(tmp_path.rglob("*"))


def test_offline_the_hub_is_not_reached(tmp_path):
    with pytest.raises(DownloadError, match="could not be fetched from the Hub"):
        wvq.load_published("var-d16", cache_dir=tmp_path)
