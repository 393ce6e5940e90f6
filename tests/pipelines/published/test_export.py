"""Pipelines as LlamaGen's files: what is written is read back as it was, and what cannot be is refused."""

import pytest
import torch

from tests.published import published_generator, published_tokenizer
from tests.tiny import make_layout_pipeline
from wvq.errors import ConfigError
from wvq.models.pretrained import weights_hash
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.published.export import export_llamagen
from wvq.pipelines.published.importing import import_published
from wvq.pipelines.published.recipes import ImportRecipe


@pytest.fixture
def pipe():
    tokenizer = published_tokenizer("llamagen")
    return ImageGenerationPipeline(tokenizer, published_generator("llamagen", tokenizer))


def test_an_export_is_imported_as_it_was(pipe, tmp_path):
    files = {"generator": str(tmp_path / "gpt.pt"), "tokenizer": str(tmp_path / "vq.pt")}
    sizes = export_llamagen(pipe, files["generator"], files["tokenizer"])
    assert torch.load(files["tokenizer"])["model"]["quantize.codebook_used"].shape == (65_536,)
    assert (sizes["n_head"], sizes["vocab_size"], sizes["block_size"], sizes["num_classes"]) == (2, 32, 16, 3)
    import_published(ImportRecipe("llamagen", str(tmp_path / "out"), **files, image_size=16, num_heads=2))
    again = ImageGenerationPipeline.from_pretrained(tmp_path / "out")
    assert weights_hash(again.tokenizer) == weights_hash(pipe.tokenizer)
    assert weights_hash(again.generator) == weights_hash(pipe.generator)


def test_the_generator_alone_may_be_safetensors(pipe, tmp_path):
    export_llamagen(pipe, tmp_path / "gpt.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["gpt.safetensors"]


def test_what_cannot_be_written_leaves_nothing(pipe, tmp_path):
    for kind in ("multi-scale", "product"):
        with pytest.raises(ConfigError, match="cannot be written as LlamaGen's"):
            export_llamagen(make_layout_pipeline(kind), tmp_path / "gpt.pt")
    plain = make_layout_pipeline("grid")
    with pytest.raises(ConfigError, match="prefix_rotary 'identity'"):
        export_llamagen(plain, tmp_path / "gpt.pt")
    with pytest.raises(ConfigError, match="a llamagen tokenizer has"):
        export_llamagen(plain, tmp_path / "gpt.pt", tmp_path / "vq.pt")
    with pytest.raises(ConfigError, match=r"out must end in \.pt or \.safetensors"):
        export_llamagen(pipe, tmp_path / "gpt.bin")
    with pytest.raises(ConfigError, match=r"tokenizer_out must end in \.pt"):
        export_llamagen(pipe, tmp_path / "gpt.pt", tmp_path / "vq.safetensors")
    with pytest.raises(ConfigError, match=r"tokenizer_out: .*gpt\.pt is the file of the generator"):
        export_llamagen(pipe, tmp_path / "gpt.pt", tmp_path / "gpt.pt")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays(pipe, tmp_path):
    torch.save({}, tmp_path / "gpt.pt")
    before = (tmp_path / "gpt.pt").read_bytes()
    with pytest.raises(ConfigError, match=r"out: .*gpt\.pt is there already"):
        export_llamagen(pipe, tmp_path / "gpt.pt")
    assert (tmp_path / "gpt.pt").read_bytes() == before
