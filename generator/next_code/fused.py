"""A step of sampling by kernels of its own: five a layer where rows are few, in place of some thirty-five."""

from __future__ import annotations

import torch
from torch import nn

from wvq.generator.base.body import Block
from wvq.generator.base.linear import Projection
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.kernels.attention import attend
from wvq.generator.next_code.kernels.between import gate, rms_norm
from wvq.generator.next_code.kernels.codes import draw, embed
from wvq.generator.next_code.kernels.linear import MOST_ROWS, linear
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.next_code.step import Step, StepState


class FusedStep(Step):
    """A :class:`Step` over one code in Triton's kernels; the values are the same but for rounding.

    Norm, product, gate and residual are one kernel while rows are few, and the libraries multiply more rows than
    that. Attention with all that leads to it is one kernel always. Guidance, temperature, min-p and the draw are one
    kernel where no other filter is asked for.
    """

    early = False  # whether a kernel starts while the one before it runs

    def __init__(self, model: ImageCodeTransformer, state: StepState, guided: bool, size: int = 1):
        super().__init__(model, state, guided, size)
        if size != 1 or model.dtype == torch.float64:
            raise TypeError("kernels read one code at a time, and add in float32")
        self.few = self.rows <= MOST_ROWS

    @torch.inference_mode()
    def draw(self, settings: SamplingSettings) -> None:
        if settings.temperature and (settings.top_k or settings.top_p < 1):
            super().draw(settings)
            return
        state, logits = self.state, self._logits()[:, 0]
        place = (state.scales, state.position, state.given, state.codes)
        draw(logits, state.uniform, *place, settings.temperature, settings.min_p, self.early)

    def _logits(self) -> torch.Tensor:
        model, state = self.model, self.state
        x = self._embedded()
        for block, memory in zip(model.blocks, state.memory, strict=True):
            assert isinstance(block, Block)
            x = self._block(block, x, memory)
        if not self.few or model.config.code_dim:
            return model.logits(self._normed(model.norm, x))[:, None]
        weight = model.code_embedding.weight if model.config.head == "tied" else _weight(model.head)
        norm_weight, eps = model.norm.weight, model.config.norm_eps
        return linear(x, weight, norm_weight, eps, dtype=torch.float32, early=self.early)[:, None]

    def _embedded(self) -> torch.Tensor:
        """Input tokens (rows, D) of the codes ahead of the position."""
        model, state = self.model, self.state
        bias = None if state.bias is None else state.bias[: self.rows]
        targets = model.target_embedding.weight if model.config.target_positions else None
        if not model.config.code_dim:
            return embed(state.codes, state.position, model.code_embedding.weight, self.rows, bias, targets, self.early)
        codes = state.codes.index_select(1, state.position - 1)
        x = model.embed_codes(codes.repeat(2, 1) if self.guided else codes, bias)[:, 0]
        return x if targets is None else x + targets.index_select(0, state.position)

    def _block(self, block: Block, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """One layer: x (rows, D) is changed in place and returned."""
        attention, forward, state = block.attention, block.feed_forward, self.state
        prefix, eps, early = self.model.config.prefix_length, self.model.config.norm_eps, self.early
        if self.few:
            qkv = linear(x, _weight(attention.qkv), block.attention_norm.weight, eps, early=early)
        else:
            qkv = attention.qkv(self._normed(block.attention_norm, x))
        query, key = attention.query_norm, attention.key_norm
        norms = (query.weight, key.weight) if isinstance(query, nn.RMSNorm) and isinstance(key, nn.RMSNorm) else None
        mixed = attend(qkv, memory, state.rotary, state.position, prefix, state.valid, norms, eps, early)
        x = self._add(x, mixed, attention.out)
        if self.few:
            weight = _weight(forward.gate_up)
            hidden = linear(x, weight, block.feed_forward_norm.weight, eps, gated=True, early=early)
        else:
            hidden = gate(forward.gate_up(self._normed(block.feed_forward_norm, x)), early)
        return self._add(x, hidden, forward.down)

    def _normed(self, layer: nn.RMSNorm, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, layer.weight, self.model.config.norm_eps, self.early)

    def _add(self, x: torch.Tensor, y: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        """Add the product of y to x in place."""
        weight = _weight(layer)
        if self.few:
            return linear(y, weight, residual=x, early=self.early)
        if weight.dtype == x.dtype:
            return x.addmm_(y, weight.T)
        return x.add_(layer(y))


class OverlappedStep(FusedStep):
    """A fused step whose kernels start early (:mod:`wvq.generator.next_code.kernels.overlap`); on Hopper and later."""

    early = True

    def __init__(self, model: ImageCodeTransformer, state: StepState, guided: bool, size: int = 1):
        super().__init__(model, state, guided, size)
        if torch.cuda.get_device_capability(model.device) < (9, 0):
            raise TypeError("kernels start early on Hopper GPUs and later alone")


def _weight(layer: nn.Module) -> torch.Tensor:
    """The weight of a linear layer that is no more than that."""
    if isinstance(layer, Projection):
        return layer.weight
    raise TypeError(f"no kernel multiplies by the weight of a {type(layer).__name__}")
