"""Memory that decoding needs, estimated before it starts; benchmarks/memory.py compares it with what is used."""

from __future__ import annotations

import math

from wvq.tokenizer.configuration import WassersteinVQConfig


def decoding_bytes(config: WassersteinVQConfig, batch: int, bytes_per_value: int = 4, device_type: str = "cpu") -> int:
    """Bytes that decoding takes at its peak (:class:`wvq.tokenizer.networks.Decoder`), beside the weights.

    Args:
        config: config of the tokenizer.
        batch: pictures at once.
        bytes_per_value: size of a value of the network's type.
        device_type: with ``cuda`` a convolution is counted with a copy of its input and one of its output, in which
            cuDNN has the channels last, as its fast forms take them. Which form it takes on a card is its own choice;
            with another the estimate is too high.
    """
    copied = device_type == "cuda"
    widths = config.channels[::-1]
    positions = math.prod(config.grid)
    # The residual projector keeps the quantized features beside what a convolution takes and gives.
    projected = config.residual_projector or 0
    peak = (config.code_dim + (4 if copied else 2) * projected) * positions if projected else 0
    for index, width in enumerate(widths):
        before = widths[max(index - 1, 0)]
        # A residual block: its input, normed and activated; or its input, what it adds up, normed and activated.
        values = max(3 * before, before + 3 * width)
        if copied:  # the first convolution keeps no norm beside it
            values = max(3 * before + 2 * width, before + 5 * width)
        if index == 0 and config.attention:
            # Input, its norm, query, key and value, and what is attended to, or copies of the norm and those three.
            values = max(values, (9 if copied else 6) * width)
        if index < len(widths) - 1:
            values = max(values, (17 if copied else 9) * width)  # the input, four times as large as it, and convolved
        peak = max(peak, values * positions)
        positions *= 4
    vectors = config.code_dim * math.prod(config.grid) * 4  # of the codes, in float32 whatever the network's type
    # While vectors are looked up: all codes at length 1, and their lengths.
    unit_codes = 4 * config.num_codes * (config.code_dim + 1) if config.l2_normalize else 0
    return max(batch * (peak * bytes_per_value + vectors), unit_codes + batch * vectors)
