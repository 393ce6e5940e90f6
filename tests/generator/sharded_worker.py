"""One process of a run on the CPU, which Accelerate has to take for an accelerator: it shards on no other device.

python sharded_worker.py train-generator --config ...

With WVQ_TEST_GRADIENTS in the environment, the gradients of the second step are saved in that file, whole: a head that
starts at 0 has nothing for the layers below it in the first.
"""

import os

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from wvq.app.cli import main
from wvq.training.sharding import full
from wvq.training.trainer import Trainer


def keep_gradients(file: str) -> None:
    """Have the second step save its gradients, those of all processes together."""
    update = Trainer._update

    def keeping(self):
        if self.accelerator.is_fsdp2 and self.accelerator.mixed_precision != "no":
            policy = self.accelerator.state.fsdp_plugin.mixed_precision_policy
            assert (policy.reduce_dtype, policy.output_dtype) == (torch.float32, torch.float32)
        if self.progress.images_seen == self.config.batch_size:
            gradients = {name: full(p.grad).clone() for name, p in self.raw_model.named_parameters()}
            if self.accelerator.is_main_process:
                torch.save(gradients, file)
        return update(self)

    Trainer._update = keeping


if __name__ == "__main__":
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if sharded:
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    if file := os.environ.get("WVQ_TEST_GRADIENTS"):
        keep_gradients(file)
    assert main() == 0
    assert AcceleratorState().is_fsdp2 == sharded
