"""What sees pictures while they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

# Called after each scale with its number, from 0, and the codes (B, n) of all scales so far.
Preview: TypeAlias = Callable[[int, torch.Tensor], None]
