"""Every kernel compiles for an H100 as it is launched, without one: types, layouts, vector loads, registers."""

import re

import pytest
import torch

from wvq.generator.modeling import rotary_table

triton = pytest.importorskip("triton")
attention = pytest.importorskip("wvq.generator.kernels.attention")
codes = pytest.importorskip("wvq.generator.kernels.codes")
linear = pytest.importorskip("wvq.generator.kernels.linear")

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    int: "i32",
    float: "fp32",
}


class Compiler:
    """Stands for a kernel: compiles what a launch would run, and keeps its assembly."""

    def __init__(self, kernel):
        self.kernel, self.code = kernel, ""

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *values, num_warps=4, **constants):
        names = self.kernel.arg_names
        arguments = dict(zip(names, values, strict=False))
        constants |= {name: 1 for name, value in arguments.items() if type(value) is int and value == 1}
        types = {name: TYPES[getattr(value, "dtype", type(value))] for name, value in arguments.items()}
        types |= dict.fromkeys(constants, "constexpr")
        round_ones = [
            n for n, v in arguments.items() if isinstance(v, torch.Tensor) or (type(v) is int and v % 16 == 0)
        ]
        hints = {(names.index(name),): [["tt.divisibility", 16]] for name in round_ones}
        source = triton.compiler.ASTSource(self.kernel, {name: types[name] for name in names}, constants, hints)
        target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        self.code = triton.compile(source, target=target, options={"num_warps": num_warps}).asm["ptx"]

    @staticmethod
    def _even(value: torch.Tensor | int) -> bool:
        """Whether a launch would say of an address or a size that it is a multiple of 16."""
        return (value.data_ptr() if isinstance(value, torch.Tensor) else value) % 16 == 0


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """A function that has a kernel of a module compiled instead of launched."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def replace(module, name) -> Compiler:
        compiler = Compiler(getattr(module, name))
        monkeypatch.setattr(module, name, compiler)
        return compiler

    return replace


def wide_loads(compiler: Compiler) -> int:
    """Loads of 16 bytes; none may go to local memory, where registers do not suffice."""
    assert not re.search(r"\.local\b", compiler.code)
    return len(re.findall(r"ld\.global[^\n]*v4\.b32", compiler.code))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4])
def test_linear(compiled, rows, dtype):
    compiler = compiled(linear, "_kernel")
    x, weight, norm = (torch.zeros(*shape, dtype=dtype) for shape in ((rows, 768), (2048, 768), (768,)))
    linear.linear(x, weight, norm=norm, eps=1e-5, dtype=torch.float32)
    assert wide_loads(compiler) > 4
    linear.linear(x, weight, norm=norm, eps=1e-5, gated=True)
    assert wide_loads(compiler) > 4
    linear.linear(x, weight, residual=x.new_zeros(rows, 2048))
    assert wide_loads(compiler) > 4
    linear.linear(x.new_zeros(rows, 8576), x.new_zeros(3200, 8576))  # of size 3B
    assert wide_loads(compiler) > 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [2, 128])
@pytest.mark.parametrize("shape", [(12, 12, 64), (8, 2, 80)], ids=["heads", "grouped"])
def test_attend(compiled, shape, rows, dtype):
    compiler = compiled(attention, "_kernel")
    heads, kv_heads, size = shape
    qkv, memory = (
        torch.zeros(rows, (heads + 2 * kv_heads) * size, dtype=dtype),
        torch.zeros(2, rows, kv_heads, 257, size),
    )
    table, place = rotary_table(1, 16, 16, size, 100.0, torch.device("cpu")), torch.ones(1, dtype=torch.int64)
    attention.attend(qkv, memory, table, place, 1)
    assert wide_loads(compiler) > 4
    norms = (qkv.new_ones(size), qkv.new_ones(size))
    attention.attend(qkv, memory, table, place, 1, torch.ones(rows, 257, dtype=torch.bool), norms)
    assert wide_loads(compiler) > 4


@pytest.mark.parametrize("count", [1, 3])
def test_codes(compiled, count):
    length = 256
    drawn, place = torch.zeros(count, length, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    compiled(codes, "_embed_kernel")
    table = torch.zeros(16384, 768, dtype=torch.bfloat16)
    codes.embed(drawn, place, table, 2 * count)
    codes.embed(drawn, place, table, count, table[:count, None], table[:length])
    compiled(codes, "_gate_kernel")
    codes.gate(table[:2])
    compiler = compiled(codes, "_draw_kernel")
    for rows in (count, 2 * count):
        for size in (1000, 262_144):  # one tile, and several
            for temperature in (0.0, 1.0):
                numbers = torch.zeros(count, length), torch.ones(length)
                codes.draw(torch.zeros(rows, size), *numbers, place, drawn, drawn, temperature, 0.1)
                wide_loads(compiler)
