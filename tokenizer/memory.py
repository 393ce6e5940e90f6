"""Memory that decoding needs, estimated before it starts; benchmarks/memory.py compares it with what is used."""

from __future__ import annotations

import math

from wvq.tokenizer.configuration import WassersteinVQConfig


def decoding_bytes(config: WassersteinVQConfig, batch: int, bytes_per_value: int = 4) -> int:
    """Bytes that decoding takes at its peak (:class:`wvq.tokenizer.modeling.Decoder`), beside the weights.

    Args:
        config: config of the tokenizer.
        batch: pictures at once.
        bytes_per_value: size of a value of the network's type.
    """
    widths = config.channels[::-1]
    positions, peak = math.prod(config.grid), 0
    for index, width in enumerate(widths):
        before = widths[max(index - 1, 0)]
        # A residual block: its input, normed and activated; or its input, what it adds up, normed and activated.
        values = max(3 * before, before + 3 * width)
        if index == 0 and config.attention:
            values = max(values, 6 * width)  # input, its norm, query, key and value, what is attended to
        if index < len(widths) - 1:
            values = max(values, 9 * width)  # the input, four times as large as it, and convolved
        peak = max(peak, values * positions)
        positions *= 4
    vectors = config.code_dim * math.prod(config.grid) * 4  # of the codes, in float32 whatever the network's type
    return batch * (peak * bytes_per_value + vectors)
