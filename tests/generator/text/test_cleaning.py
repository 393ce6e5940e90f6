"""How captions are prepared for the text encoder, and that it is part of what encoder and cache are."""

import pytest
import torch

from tests.tiny import index_captions
from wvq.errors import ConfigError
from wvq.generator.text.cache import features_key
from wvq.generator.text.cleaning import clean_text
from wvq.generator.text.encoder import TextEncoder

CLEANED = {
    "A Red circle, on the left.": "a red circle, on the left.",
    "  two\tlines\nof text ": "two lines of text",
    "a portrait - oil on canvas": "a portrait - oil on canvas",
    "see https://example.org/a?b=1 for a Cat": "see for a cat",
    "from www.example.com/page, a dog": "from a dog",
    "a photo from example.net": "a photo from",
    "<b>bold</b> &amp; <br/>plain": "bold plain",
    "tea &lt; coffee &amp;lt; water": "tea < coffee < water",
    "by @painter_1 in Rome": "by in rome",
    "“old” ‘quotes’ — dashes – here": "\"old\" 'quotes' - dashes - here",
    '"all of it"': "all of it",
    "- a list item:": "a list item",
    "green (and blue) [or not] #tag": "green and blue or not tag",
    "one+one is 100%25": "one one is 100%",
    "Größe": "größe",
    "": "",
}


@pytest.mark.parametrize(("text", "cleaned"), CLEANED.items(), ids=range(len(CLEANED)))
def test_lower_case_without_addresses_markup_and_odd_signs(text, cleaned):
    assert clean_text(text, "lower") == cleaned
    assert clean_text(cleaned, "lower") == cleaned  # of what is clean nothing changes
    assert clean_text(text, "none") == text


def test_an_unknown_cleaning_is_refused(encoder_dir):
    for refused in (lambda: clean_text("a", "lowr"), lambda: TextEncoder(encoder_dir, 5, cleaning="lowr")):
        with pytest.raises(ConfigError, match=r'cleaning "lowr" is unknown \(did you mean "lower"\?\); one of none, '):
            refused()


def test_an_encoder_reads_cleaned_captions(encoder_dir):
    plain, cleaned = TextEncoder(encoder_dir, 5), TextEncoder(encoder_dir, 5, cleaning="lower")
    features, mask = cleaned.encode(["(red)  CIRCLE https://example.org", "@somebody"])
    expected, expected_mask = plain.encode(["red circle", ""])
    assert torch.equal(features, expected)
    assert torch.equal(mask, expected_mask)  # nothing is left of the second: it is no text


def test_cleaning_is_part_of_what_encoder_and_cache_are(encoder_dir):
    plain, cleaned = TextEncoder(encoder_dir, 5), TextEncoder(encoder_dir, 5, cleaning="lower")
    assert plain.identity() != cleaned.identity()
    texts = index_captions([["red"], ["blue"]])
    assert features_key(texts, plain) != features_key(texts, cleaned)
    assert (plain.config_fields()["text_cleaning"], cleaned.config_fields()["text_cleaning"]) == ("none", "lower")
