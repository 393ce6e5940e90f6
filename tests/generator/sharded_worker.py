"""One process of a sharded run on the CPU: Accelerate shards on accelerators only, so it is told that this is one.

accelerate launch --use_fsdp --fsdp_version 2 --num_processes 2 sharded_worker.py train-generator --config ...
"""

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from wvq.cli import main

if __name__ == "__main__":
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    assert main() == 0
    assert AcceleratorState().is_fsdp2
