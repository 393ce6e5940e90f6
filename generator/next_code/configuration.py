"""ImageCodeTransformerConfig: the generator of one code a position."""

from __future__ import annotations

from wvq.checks import FLAG, one_of, or_null
from wvq.data.layout import make_layout
from wvq.generator.base.configuration import RotaryConfig
from wvq.models.config import option

HEADS = ("zero", "normal", "tied")


class ImageCodeTransformerConfig(RotaryConfig):
    """Configuration of an :class:`ImageCodeTransformer`.

    Args:
        head: output layer: ``zero`` starts at zero, so that the first loss is ln K; ``normal`` starts like the other
            weights; ``tied`` shares those of the code embedding.
        target_positions: add a trained vector of the position that each token predicts; lets the codes be read in any
            order (RAR, arXiv 2411.00776).
        any_order: whether its training read them in random orders to the end, so that ``passes`` may be set; None where
            that is not known, as in earlier versions, or where there are no ``target_positions``.
        size, ...: those of :class:`RotaryConfig`.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    model_type = "image_code_transformer"

    head: str = option("zero", one_of(HEADS), identity=False)
    target_positions: bool = option(False, FLAG)
    any_order: bool | None = option(None, or_null(FLAG), identity=False, later=True)

    @property
    def code_layout(self) -> dict:
        return make_layout((self.grid[0], self.grid[1]))
