"""How captions are prepared before a text encoder cuts them into tokens. Imports nothing heavy."""

from __future__ import annotations

import html
import re
import unicodedata
from urllib.parse import unquote_plus

from wvq.errors import ConfigError, near_match

TEXT_CLEANINGS = ("none", "lower")

_WEB_ADDRESSES = re.compile(
    r"\b(?:https?://|www\.)\S*|\b[a-z0-9.-]{1,253}\.(?:com|co|ru|net|org|edu|gov|it)\b(?:/\S*)?"
)
_TAGS = re.compile(r"</?[a-z!][^<>]*>")
_USERS = re.compile(r"@\w+\b")
_DOUBLE_QUOTES, _SINGLE_QUOTES = re.compile("[`´«»“”¨]"), re.compile("[‘’]")
_SIGNS = re.compile(r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+|\s\.\s")
_AROUND = re.compile(r"^([\"'])(.+)\1$")
_FIRST, _LAST = re.compile(r"^['_,\-:;]"), re.compile(r"['_,\-:+]$")


def clean_text(text: str, cleaning: str) -> str:
    """A caption as the text encoder is to read it.

    ``lower`` does in the main what LlamaGen does before T5: percent codes are decoded, and a plus is a space; letters
    become small; web addresses, HTML tags and names behind an @ go, HTML entities become characters; dashes and quotes
    become those of ASCII; brackets and other signs become a space, and so does any white space; quotes around the whole
    and punctuation at its ends go, but for a full stop. It leaves what LlamaGen removes or repairs by longer rules:
    numbers of articles, file names, addresses of machines, sizes in pixels, phrases of advertisements, Chinese
    characters, and text that was decoded wrongly.

    Args:
        text: the caption.
        cleaning: one of ``TEXT_CLEANINGS``; ``none`` leaves it as it is.

    Raises:
        ConfigError: an unknown cleaning.
    """
    if cleaning not in TEXT_CLEANINGS:
        known = ", ".join(TEXT_CLEANINGS)
        raise ConfigError(f'cleaning "{cleaning}" is unknown{near_match(cleaning, TEXT_CLEANINGS)}; one of {known}')
    if cleaning == "none":
        return text
    text = unquote_plus(text).strip().lower()
    text = _WEB_ADDRESSES.sub("", text)
    text = html.unescape(html.unescape(_TAGS.sub("", text)))
    text = _USERS.sub("", text)
    text = "".join("-" if unicodedata.category(letter) == "Pd" else letter for letter in text)  # dashes of all kinds
    text = _SINGLE_QUOTES.sub("'", _DOUBLE_QUOTES.sub('"', text))
    text = " ".join(_SIGNS.sub(" ", text).split())
    text = _AROUND.sub(r"\2", text)
    return _LAST.sub("", _FIRST.sub("", text)).strip()
