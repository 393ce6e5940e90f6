"""Quantizers with a fixed grid for a codebook: FSQ and LFQ. Nothing to align, nothing that could collapse.

Shapes: N features, K codes, D dims.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from wvq.checks import integer, list_of, or_null
from wvq.distributed import sum_over_processes, world_size
from wvq.errors import ConfigError
from wvq.models.config import option
from wvq.tokenizer.quantizers.codebook import Codebook
from wvq.tokenizer.quantizers.interface import WEIGHT, QuantizerConfig

LEVELS = list_of(integer(2), "a list of integers of at least 2")


class _Grid(NamedTuple):
    # Of each dim (D,), all on one device.
    levels: torch.Tensor
    half: torch.Tensor
    strides: torch.Tensor
    reach: torch.Tensor
    offset: torch.Tensor
    shift: torch.Tensor


def _make_grid(levels: torch.Tensor) -> _Grid:
    strides = F.pad(levels.cumprod(0)[:-1], (1, 0), value=1)
    # A little less than the outermost boundary; an even number of levels is shifted by half a step.
    reach = (levels - 1) * (1 + 1e-3) / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0)
    return _Grid(levels, levels // 2, strides, reach, offset, (offset / reach).atanh())


class FSQConfig(QuantizerConfig):
    """Fields of finite scalar quantization.

    Args:
        levels: levels of each dim of an "fsq" code; num_codes must be their product.
    """

    levels: list[int] | None = option(None, or_null(LEVELS), of_method=True)


class FSQQuantizer(Codebook):
    """Finite scalar quantization: each dim is bounded and rounded to its own number of levels (Mentzer et al. 2023).

    Codes count the first dim fastest, as in the publication. Vectors lie in [-1, 1].
    """

    name = "fsq"

    def __init__(self, config: FSQConfig):
        super().__init__(config)
        self.levels = config.levels
        self._grids: dict[torch.device, _Grid] = {}

    @classmethod
    def check(cls, config: QuantizerConfig) -> None:
        super().check(config)
        assert isinstance(config, FSQConfig)  # every config of a tokenizer is one
        dim = config.codebook_dim
        if config.levels is None:
            raise ConfigError(f'levels must be given for quantizer "{config.quantizer}": one number of levels a dim')
        if len(config.levels) != dim:
            raise ConfigError(f"levels must hold {dim} numbers, one a dim of a code; got {config.levels}")
        if math.prod(config.levels) != config.num_codes:
            product = math.prod(config.levels)
            raise ConfigError(f"num_codes must be {product:,}, the product of levels; got {config.num_codes:,}")

    def _grid(self, device: torch.device) -> _Grid:
        # Kept for each device: numbers from a list would wait for it. Not a buffer, which from_pretrained would leave
        # without a value; nor an inference tensor, which training could not use.
        if device not in self._grids:
            with torch.inference_mode(False), torch.no_grad():
                self._grids[device] = _make_grid(torch.tensor(self.levels, device=device))
        return self._grids[device]

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        grid = self._grid(features.device)
        return ((features + grid.shift).tanh() * grid.reach - grid.offset) / grid.half

    def assign(self, vectors: torch.Tensor) -> torch.Tensor:
        grid = self._grid(vectors.device)
        steps = (vectors * grid.half).round() + grid.half  # NaN ends at some code, as in every other quantizer
        steps = steps.nan_to_num(0.0).long().clamp(min=torch.zeros_like(grid.levels), max=grid.levels - 1)
        return (steps * grid.strides).sum(-1)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        grid = self._grid(codes.device)
        return (codes[..., None] // grid.strides % grid.levels - grid.half) / grid.half

    def losses(
        self, features: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor, update_statistics: bool
    ) -> dict[str, torch.Tensor]:
        return {}


class LFQConfig(QuantizerConfig):
    """Fields of lookup-free quantization.

    Args:
        entropy_weight: weight of the entropy term in the loss; the published value if None.
    """

    entropy_weight: float | None = option(None, WEIGHT, identity=False, of_method=True)


class LFQQuantizer(Codebook):
    """Lookup-free quantization: the sign of each dim is a bit of the code (Yu et al. 2023, MAGVIT-v2).

    loss = beta |z - sg(e)|^2 + entropy_weight (mean entropy of a feature's code - entropy of the mean), where a
    feature's code probabilities are softmax(-|z - e|^2 / temperature). The first dim is the highest bit.
    """

    name = "lfq"
    defaults = {"commitment_weight": 0.25, "entropy_weight": 0.1}
    temperature = 0.01

    def __init__(self, config: LFQConfig):
        super().__init__(config)

    @classmethod
    def check(cls, config: QuantizerConfig) -> None:
        super().check(config)
        bits = config.codebook_dim
        if 2**bits != config.num_codes:
            raise ConfigError(f"num_codes must be {2**bits:,}, 2 to the number of dims of a code ({bits})")

    def _strides(self, device: torch.device) -> torch.Tensor:
        return 2 ** torch.arange(self.dim - 1, -1, -1, device=device)

    def assign(self, vectors: torch.Tensor) -> torch.Tensor:
        return ((vectors > 0) * self._strides(vectors.device)).sum(-1)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes[..., None] // self._strides(codes.device) % 2 * 2 - 1).float()

    def losses(
        self, features: torch.Tensor, vectors: torch.Tensor, codes: torch.Tensor, update_statistics: bool
    ) -> dict[str, torch.Tensor]:
        losses = {"commitment": F.mse_loss(features, vectors.detach())}
        if self.weights["entropy_weight"]:
            losses["entropy"] = bit_entropy(features / self.temperature, joined=update_statistics)
        return losses


def bit_entropy(logits: torch.Tensor, joined: bool = False) -> torch.Tensor:
    """Mean entropy of each feature's code minus the entropy of the mean over features, in nats; 0-d.

    The code probabilities of a feature are a product over bits, P(bit_d = 1) = sigmoid(4 logits_d). So the first term
    is a sum over bits, and the mean over features of the K probabilities is one product of two matrices of
    N x sqrt(K): exact, without a matrix of N x K.

    Args:
        logits: (N, D), features over the temperature: |z - e|^2 is 4 z_d lower for e_d = 1 than for e_d = -1.
        joined: take the mean over the features of all processes; batches must be of equal size.
    """
    log_one, log_zero = F.logsigmoid(4 * logits), F.logsigmoid(-4 * logits)
    each = -(log_one.exp() * log_one + log_zero.exp() * log_zero).sum(1).mean()
    half = logits.shape[1] // 2
    first, second = (_joint(log_zero[:, part], log_one[:, part]) for part in (slice(half), slice(half, None)))
    mean = first.T @ second / len(logits)  # 2^half x 2^(D - half)
    if joined and world_size() > 1:
        # The value of the mean over all processes, with the gradient of this one's share: averaging the gradients of
        # the processes then gives that of one process on the joined batch.
        everywhere = sum_over_processes(mean.detach().clone()) / world_size()
        mean = mean + (everywhere - mean).detach()
    return each + torch.special.xlogy(mean, mean.clamp_min(1e-30)).sum()


def _joint(log_zero: torch.Tensor, log_one: torch.Tensor) -> torch.Tensor:
    # (N, bits) -> (N, 2^bits), the probability of every pattern.
    log_joint = log_zero.new_zeros(len(log_zero), 1)
    for bit in range(log_zero.shape[1]):
        both = torch.stack([log_zero[:, bit], log_one[:, bit]], dim=1)
        log_joint = (log_joint[:, :, None] + both[:, None]).flatten(1)
    return log_joint.exp()
