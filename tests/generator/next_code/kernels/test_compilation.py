"""Every kernel compiles for an H100 as it is launched, without one: types, layouts, vector loads, registers."""

import re

import pytest
import torch

from wvq.generator.base.body import rotary_table

triton = pytest.importorskip("triton")
attention = pytest.importorskip("wvq.generator.next_code.kernels.attention")
between = pytest.importorskip("wvq.generator.next_code.kernels.between")
codes = pytest.importorskip("wvq.generator.next_code.kernels.codes")
linear = pytest.importorskip("wvq.generator.next_code.kernels.linear")

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

    def launch(self, *values, num_warps=4, launch_pdl=False, **constants):
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
        self.code = triton.compile(
            source, target=target, options={"num_warps": num_warps, "launch_pdl": launch_pdl}
        ).asm["ptx"]


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """A function that has a kernel of a module compiled instead of launched."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def replace(module, name) -> Compiler:
        compiler = Compiler(getattr(module, name))
        monkeypatch.setattr(module, name, compiler)
        return compiler

    return replace


def early_loads(compiler: Compiler) -> int:
    """Loads of 16 bytes before a kernel waits for the one before it; it writes after that alone."""
    start, wait = (compiler.code.index(f"griddepcontrol.{name}") for name in ("launch_dependents", "wait"))
    assert start < wait < compiler.code.index("st.global")
    assert compiler.code.count("griddepcontrol") == 2
    return len(re.findall(r"ld\.global[^\n]*v4\.b32", compiler.code[:wait]))


def wide_loads(compiler: Compiler) -> int:
    """Loads of 16 bytes; none may go to local memory, where registers do not suffice."""
    assert not re.search(r"\.local\b", compiler.code)
    return len(re.findall(r"ld\.global[^\n]*v4\.b32", compiler.code))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4])
def test_linear(compiled, rows, dtype):
    compiler = compiled(linear, "_linear_kernel")
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
    compiler = compiled(attention, "_attention_kernel")
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


@pytest.mark.parametrize("rows", [2, 4])
def test_products_that_start_early_load_the_weights_first(compiled, rows):
    compiler = compiled(linear, "_linear_kernel")
    x, weight, norm = (torch.zeros(*shape, dtype=torch.bfloat16) for shape in ((rows, 768), (2304, 768), (768,)))
    linear.linear(x, weight, norm=norm, eps=1e-5, early=True)
    assert early_loads(compiler) == 8 + 1  # 8 rows of a program over 4 warps, and the norm
    linear.linear(x, weight, norm=norm, eps=1e-5, gated=True, early=True)
    assert early_loads(compiler) == 8 + 1
    linear.linear(x, weight, residual=x.new_zeros(rows, 2304), early=True)
    assert early_loads(compiler) == 8
    wide_loads(compiler)


@pytest.mark.parametrize("rows", [2, 128])
def test_attention_that_starts_early_loads_the_first_keys_and_values_first(compiled, rows):
    compiler = compiled(attention, "_attention_kernel")
    qkv, memory = (torch.zeros(*s, dtype=torch.bfloat16) for s in ((rows, 3 * 768), (2, rows, 12, 257, 64)))
    table, place = rotary_table(1, 16, 16, 64, 100.0, torch.device("cpu")), torch.ones(1, dtype=torch.int64)
    attention.attend(qkv, memory, table, place, 1, early=True)
    assert early_loads(compiler) >= 8
    wide_loads(compiler)


@pytest.mark.parametrize("early", [False, True])
def test_norm_and_gate(compiled, early):
    x = torch.zeros(128, 4096, dtype=torch.bfloat16)
    compiler = compiled(between, "_norm_kernel")
    between.rms_norm(x, x[0], 1e-5, early)
    assert wide_loads(compiler) > 2
    assert not early or early_loads(compiler) > 2
    compiler = compiled(between, "_gate_kernel")
    between.gate(x, early)
    assert wide_loads(compiler) == 2
    assert not early or early_loads(compiler) == 0


def test_the_first_and_the_last_kernel_of_a_step_that_start_others_early(compiled):
    codes_, place = torch.zeros(1, 256, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    compiler = compiled(codes, "_embed_kernel")
    codes.embed(codes_, place, torch.zeros(16384, 768), 2, early=True)
    assert re.findall(r"griddepcontrol\.(\w+)", compiler.code) == ["launch_dependents"]
    compiler = compiled(codes, "_draw_kernel")
    logits, uniform = torch.zeros(2, 16384), torch.zeros(1, 256)
    codes.draw(logits, uniform, torch.ones(256), place, codes_, codes_, 1.0, early=True)
    assert early_loads(compiler) == 0
    assert wide_loads(compiler) == 2 * 16384 // (4 * 16 * 32)  # logits are read once


@pytest.mark.parametrize("count", [1, 3])
def test_codes(compiled, count):
    length = 256
    drawn, place = torch.zeros(count, length, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    compiled(codes, "_embed_kernel")
    table = torch.zeros(16384, 768, dtype=torch.bfloat16)
    codes.embed(drawn, place, table, 2 * count)
    codes.embed(drawn, place, table, count, table[:count, None], table[:length])
    compiler = compiled(codes, "_draw_kernel")
    for rows in (count, 2 * count):
        for size in (1000, 262_144):  # one tile, and several
            for temperature in (0.0, 1.0):
                numbers = torch.zeros(count, length), torch.ones(length)
                codes.draw(torch.zeros(rows, size), *numbers, place, drawn, drawn, temperature, 0.1)
                wide_loads(compiler)
