"""The Accelerator of a run, and how a model saves memory in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch import nn

from wvq.distributed import processes
from wvq.errors import ConfigError, first_line
from wvq.files.user_folders import keep_torch_code_private
from wvq.settings.train import TrainConfig

UNSUPPORTED = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)
# While the main process writes a sharded run's weights and moments (37 GB of 3B) the others wait in the next gather.
COLLECTIVE_LIMIT = timedelta(hours=1)


def enable_checkpointing(model: nn.Module) -> None:
    """Have the model compute activations again in the backward pass."""
    # transformers 5.20 has renamed the method, and warns of the old name.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable: Callable[[dict[str, bool]], None] = next(getattr(model, name) for name in names if hasattr(model, name))
    enable({"use_reentrant": False})


def _small(x: torch.Tensor) -> torch.Tensor:
    return x.sin().sum()


def compile_failure(device: torch.device) -> str | None:
    """Why torch.compile does not work on a device, in one line, found by a small trial; None if it works."""
    keep_torch_code_private()
    try:
        torch.compile(_small)(torch.ones(2, device=device, requires_grad=True)).backward()
    except (RuntimeError, ImportError, OSError) as error:  # no Triton, no C compiler, or one that fails
        return first_line(getattr(error, "inner_exception", error))  # torch puts one line above it
    return None


def build_accelerator(config: TrainConfig) -> Accelerator:
    """The Accelerator of a run; device and number of processes come from the launcher.

    Raises:
        ConfigError: the launcher requests a way of training that is not supported.
    """
    # A plugin, because the launcher's environment (1 if nothing is set) would override a plain number of steps.
    accumulation = GradientAccumulationPlugin(num_steps=config.gradient_accumulation_steps, sync_with_dataloader=False)
    # Accelerate keeps a process at the precision of its first run; the two stages may differ.
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=accumulation,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=COLLECTIVE_LIMIT),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # no second copy of the gradients
        ],
    )
    processes()  # Accelerate has connected them without the group in which they wait
    kind = accelerator.distributed_type
    if (kind == DistributedType.FSDP and not accelerator.is_fsdp2) or kind in UNSUPPORTED:
        raise ConfigError(f"the launcher requests {kind.value}; give --multi_gpu, or --use_fsdp with --fsdp_version 2")
    if accelerator.is_fsdp2:  # full states: torch's sharded ones are unpickled without restrictions
        plugin = accelerator.state.fsdp_plugin
        plugin.state_dict_config = plugin.optim_state_dict_config = None
        plugin.set_state_dict_type("FULL_STATE_DICT")
        # Every process has made the same weights; spread from the first one they may have no buffers beside them, and
        # generators keep the tokenizer's code vectors in one.
        plugin.cpu_ram_efficient_loading = False
        if plugin.mixed_precision_policy is not None:  # only the weights travel in half precision
            in_float32 = {"reduce_dtype": torch.float32, "output_dtype": torch.float32, "cast_forward_inputs": False}
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, **in_float32)
    return accelerator
