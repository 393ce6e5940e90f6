"""The names of weights show whose they are."""

import pytest

from tests.published import TOKENIZERS, published_generator, published_tokenizer
from wvq.errors import CheckpointError
from wvq.generator.published import llamagen, var
from wvq.models.key_map import write_weights
from wvq.pipelines.published.families import require_family
from wvq.tokenizer.published.registry import write_tokenizer


@pytest.mark.parametrize("family", TOKENIZERS)
def test_tokenizers_of_each_family_are_known(family):
    names = list(write_tokenizer(family, published_tokenizer(family)))
    require_family(names, family, "tokenizer", "file")
    other = "var" if family == "llamagen" else "llamagen"
    with pytest.raises(CheckpointError, match="; import it as "):
        require_family(names, other, "tokenizer", "file")
    with pytest.raises(CheckpointError, match="; give it by --tokenizer"):
        require_family(names, family, "generator", "file")


@pytest.mark.parametrize(("family", "entries"), [("llamagen", llamagen.entries), ("var", var.entries)])
def test_generators_of_each_family_are_known(family, entries):
    generator = published_generator(family, published_tokenizer(family))
    names = list(write_weights(generator.state_dict(), entries(generator.config)))
    require_family(names, family, "generator", "file")
    with pytest.raises(CheckpointError, match="; give it by --generator"):
        require_family(names, family, "tokenizer", "file")


@pytest.mark.parametrize("start", ["gen_vision_model.encoder.conv_in.bias", "model.vqmodel.encoder.conv_in.bias"])
def test_janus_lies_in_a_larger_model(start):
    require_family(["language_model.norm.weight", start], "janus", "tokenizer", "file")


def test_what_nobody_has_is_refused():
    with pytest.raises(CheckpointError, match=r"no tokenizer of a known layout .*: its first weight is fc\.weight"):
        require_family(["fc.weight"], "var", "tokenizer", "file")
