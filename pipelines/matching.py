"""Whether the parts of a pipeline belong together: the generator's config records which others it was trained with."""

from __future__ import annotations

from wvq.checks import as_list
from wvq.data.layout import layout_name
from wvq.errors import CheckpointError, ConfigError
from wvq.generator.base.configuration import GeneratorConfig
from wvq.generator.text.encoder import TextEncoder
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.modeling import WassersteinVQModel


def require_sizes(generator: GeneratorConfig, tokenizer: WassersteinVQConfig, encoder: TextEncoder | None) -> None:
    """Check that codes and texts have the sizes that the generator was built for.

    Args:
        generator: its config.
        tokenizer: its config.
        encoder: the text encoder, if there is one.

    Raises:
        ConfigError: the tokenizer's codes are not of the generator's number, grid or layout, or are made in another
            way; or the generator is conditional on text, and there is no encoder, or one of another width or length.
    """
    for name in ("num_codes", "grid"):
        expected, actual = (as_list(getattr(config, name)) for config in (tokenizer, generator))
        if expected != actual:
            raise ConfigError(f"the tokenizer has {name} {expected}, the generator {actual}")
    if tokenizer.code_layout != generator.code_layout:
        raise ConfigError(
            f"the tokenizer has {layout_name(tokenizer.code_layout)}, and the generator was made for "
            f"{layout_name(generator.code_layout)}; take the tokenizer that it was trained with"
        )
    for name, value in generator.fields_of_tokenizer(tokenizer).items():
        if value != getattr(generator, name):
            raise ConfigError(
                f"the tokenizer has {name} {value}, the generator {getattr(generator, name)}; take the tokenizer that "
                "it was trained with"
            )
    if not generator.text_dim:
        return
    if encoder is None:
        raise ConfigError("this generator is conditional on text: a text_encoder is needed")
    if (encoder.length, encoder.dim) != (generator.text_length, generator.text_dim):
        raise ConfigError(
            f"the generator takes {generator.text_length} text tokens of width {generator.text_dim}, and the text "
            f"encoder gives {encoder.length} of width {encoder.dim}; take the one that it was trained with"
        )


def require_tokenizer(generator: GeneratorConfig, tokenizer: WassersteinVQModel) -> None:
    """Check that a tokenizer is the one that the generator's config names by a hash, if it names one.

    Args:
        generator: its config.
        tokenizer: cast to another type since then, or not.

    Raises:
        CheckpointError: it is another one.
    """
    if generator.tokenizer_hash and not tokenizer.made(generator.tokenizer_hash):
        raise CheckpointError(
            "the tokenizer is not the one that the generator was trained with; restore it, or pass "
            "ignore_tokenizer_mismatch=True"
        )


def require_text_encoder(generator: GeneratorConfig, encoder: TextEncoder | None) -> None:
    """Check that a text encoder is the one that the generator's config names by its identity, if it names one.

    Args:
        generator: its config.
        encoder: the text encoder, if there is one.

    Raises:
        CheckpointError: it is another one, or encodes in another way.
    """
    if not generator.text_dim or encoder is None:
        return
    if encoder.padding != generator.text_padding:
        raise CheckpointError(
            f'the generator was trained on captions with padding "{generator.text_padding}" inside the text '
            f'encoder, and this one has "{encoder.padding}"; make it with padding="{generator.text_padding}", or pass '
            "ignore_text_encoder_mismatch=True"
        )
    if encoder.cleaning != generator.text_cleaning:
        raise CheckpointError(
            f'the generator was trained on captions with cleaning "{generator.text_cleaning}", and this text encoder '
            f'has "{encoder.cleaning}"; make it with cleaning="{generator.text_cleaning}", or pass '
            "ignore_text_encoder_mismatch=True"
        )
    if generator.text_encoder_hash and encoder.identity() != generator.text_encoder_hash:
        raise CheckpointError(
            "the text encoder is not the one that the generator was trained with; restore it, or pass "
            "ignore_text_encoder_mismatch=True"
        )
