"""Kernels that start while the one before them runs: programmatic dependent launch, of Hopper GPUs and later.

A kernel that starts early loads what no kernel of the step writes: weights, the position, keys and values of earlier
steps. Then it waits until the kernel before it is complete, and only then reads what that wrote, and writes itself.
Each kernel waits, so all kernels before it are complete too. The first kernel of a step is launched as usual.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def start_next(EARLY: tl.constexpr):
    """Let the next kernel start, once all programs of this one have."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_previous(EARLY: tl.constexpr):
    """Wait until the kernel before this one, and so all before it, are complete, and what they wrote is seen."""
    if EARLY:
        tl.extra.cuda.gdc_wait()


def launch_options(early: bool) -> dict[str, bool]:
    """Options of the launch of a kernel that may start early."""
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
