"""The kernels of the search compile for GPUs as they are launched, without one, and fit their registers and memory."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wvq.tokenizer.quantizers import fused

triton = pytest.importorskip("triton")
kernels = pytest.importorskip("wvq.tokenizer.quantizers.kernels")

TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.int64: "*i64"}
HALF_OF_AN_H100 = 233_472 // 2 - 1_024  # bytes of shared memory for each of two programs
ALL_OF_AN_RTX_3090 = 101_376


class Compiler:
    """Stands for a kernel: compiles what a launch would run, for a GPU of a compute capability."""

    def __init__(self, kernel, capability, folder):
        self.kernel, self.folder = kernel, folder
        self.target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
        self.shared_bytes = self.stack_bytes = 0

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *values, num_warps=4, num_stages=3, **constants):
        names = self.kernel.arg_names
        tensors = [isinstance(value, torch.Tensor) for value in values]
        signature = dict.fromkeys(names, "constexpr") | {
            name: TYPES[value.dtype] if is_tensor else "i32"
            for name, value, is_tensor in zip(names, values, tensors, strict=False)
        }
        hints = {(place,): [["tt.divisibility", 16]] for place, is_tensor in enumerate(tensors) if is_tensor}
        source = triton.compiler.ASTSource(self.kernel, signature, constants, hints)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        compiled = triton.compile(source, target=self.target, options=options)
        self.shared_bytes = compiled.metadata.shared
        file = self.folder / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file], check=True, capture_output=True, text=True).stdout
        self.stack_bytes = int(re.search(r"STACK:(\d+)", usage)[1])


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """A function that has the kernels of a search of N, K, D compiled; returns them by name, those that it uses."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))

    def search(count, num_codes, dim, capability):
        names = ("search_few_dims", "split_vectors", "search_many_dims")
        compilers = {name: Compiler(getattr(kernels, name), capability, tmp_path) for name in names}
        monkeypatch.setattr(fused, "kernels", lambda: SimpleNamespace(NO_KEY=kernels.NO_KEY, **compilers))
        features, codebook = (torch.empty(size, dim, device="meta") for size in (count, num_codes))
        assert fused.search(features, codebook) is not None
        return {name: compiler for name, compiler in compilers.items() if compiler.shared_bytes}

    return search


@pytest.mark.parametrize(("capability", "dim"), [(90, 8), (90, 16), (75, 16)])
def test_few_dims_stay_in_registers(compiled, capability, dim):
    (compiler,) = compiled(1_000, 500, dim, capability).values()
    assert compiler.kernel is kernels.search_few_dims
    assert compiler.stack_bytes == 0


def test_two_programs_of_many_dims_share_a_processor_of_an_h100(compiled):
    compilers = compiled(1_000, 500, 250, 90)
    assert set(compilers) == {"split_vectors", "search_many_dims"}
    assert all(compiler.stack_bytes == 0 for compiler in compilers.values())
    assert compilers["search_many_dims"].shared_bytes <= HALF_OF_AN_H100


def test_many_dims_fit_smaller_gpus(compiled):
    assert compiled(1_000, 500, 250, 86)["search_many_dims"].shared_bytes <= ALL_OF_AN_RTX_3090
