"""Kernels of a sampling step against plain torch; run by test_kernels.py, interpreted on the CPU or compiled."""

import pytest
import torch
import torch.nn.functional as F

from wvq.generator.base.body import rotary_table, rotate
from wvq.generator.base.filters import draw as plain_draw
from wvq.generator.base.guidance import guide
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.kernels import linear as products
from wvq.generator.next_code.kernels.attention import attend
from wvq.generator.next_code.kernels.between import gate, rms_norm
from wvq.generator.next_code.kernels.codes import draw, embed
from wvq.generator.next_code.kernels.linear import linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Seeds; and no more programs than the interpreter runs in a moment."""
    torch.manual_seed(0)
    monkeypatch.setattr(products, "PROGRAMS", 1)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Equal to the precision of a type, of values around 1 or larger."""
    assert found.dtype == dtype
    error = (found.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < (2e-6 if dtype == torch.float32 else 1.2e-2)  # the interpreter cuts bfloat16 off


# ---- products


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize(("inputs", "outputs"), [(48, 40), (200, 17)])
def test_linear_with_norm(rows, inputs, outputs, dtype):
    x, weight, norm = (normal(*shape, dtype=dtype) for shape in ((rows, inputs), (outputs, inputs), (inputs,)))
    expected = F.linear(F.rms_norm(x.double(), (inputs,), norm.double(), 1e-2), weight.double())
    close(linear(x, weight, norm=norm, eps=1e-2), expected, dtype)
    close(linear(x, weight), F.linear(x.double(), weight.double()), dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [2, 3])
def test_linear_with_gate(rows, dtype):
    x, weight, norm = (normal(*shape, dtype=dtype) for shape in ((rows, 48), (2 * 40, 48), (48,)))
    first, second = F.linear(F.rms_norm(x.double(), (48,), norm.double(), 1e-5), weight.double() / 4).chunk(2, -1)
    found = linear(x, weight / 4, norm=norm, eps=1e-5, gated=True)
    close(found, F.silu(first) * second, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [2, 3])
def test_linear_adds_to_the_residual_in_place(rows, dtype):
    x, weight, residual = (normal(*shape, dtype=dtype) for shape in ((rows, 48), (40, 48), (rows, 40)))
    expected = residual.double() + F.linear(x.double(), weight.double())
    found = linear(x, weight, residual=residual)
    assert found is residual
    close(found, expected, dtype)


@pytest.mark.parametrize("rows", [2, 3])
def test_linear_with_weights_of_another_type(rows):
    x, weight = normal(rows, 48), normal(40, 48, dtype=torch.bfloat16)
    expected = F.linear(x.double(), weight.double())
    found = linear(x, weight)
    assert found.dtype == torch.float32
    close(found, expected, torch.float32)
    assert linear(x.bfloat16(), weight, dtype=torch.float32).dtype == torch.float32


# ---- attention


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("heads", [(2, 2, 8), (4, 2, 20), (1, 1, 100)], ids=["heads", "grouped", "of 100"])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attend(heads, normed, masked, dtype):
    heads, kv_heads, size = heads
    rows, prefix, grid, position = 3, 5, (6, 6), 30
    length, token = prefix + 36, prefix + position - 1
    qkv = normal(rows, (heads + 2 * kv_heads) * size, dtype=dtype)
    memory = normal(2, rows + 1, kv_heads, length, size, dtype=dtype)
    before = memory.clone()
    table = rotary_table(prefix, *grid, size, 100.0, torch.device(DEVICE))
    norms = (normal(size, dtype=dtype), normal(size, dtype=dtype)) if normed else None
    valid = torch.ones(rows + 1, length, dtype=torch.bool, device=DEVICE)
    if masked:
        valid[0, :3] = valid[2, 1:5] = False
    place = torch.tensor([position], device=DEVICE)
    found = attend(qkv, memory, table, place, prefix, valid if masked else None, norms, 1e-3)

    q, k, v = qkv.double().view(rows, -1, size).split((heads, kv_heads, kv_heads), 1)
    if norms:
        q, k = (F.rms_norm(x, (size,), norm.double(), 1e-3) for x, norm in zip((q, k), norms, strict=True))
    cos, sin = (part[token : token + 1] for part in table)
    q, k = (rotate(x.float()[:, :, None], cos, sin) for x in (q, k))
    keys, values = before[:, :rows].double()
    keys[:, :, token], values[:, :, token] = k[:, :, 0], v
    expected = F.scaled_dot_product_attention(
        q.double(),
        keys[:, :, : token + 1],
        values[:, :, : token + 1],
        attn_mask=valid[:rows, None, None, : token + 1],
        enable_gqa=True,
    )
    close(found, expected.flatten(1), dtype)
    close(memory[0, :rows, :, token], keys[:, :, token], dtype)
    close(memory[1, :rows, :, token], values[:, :, token], dtype)
    memory[:, :, :, token] = before[:, :, :, token]
    assert torch.equal(memory[:, :rows], before[:, :rows])  # nothing else is written
    assert torch.equal(memory[:, rows:], before[:, rows:])


def test_attend_to_the_prefix_alone():
    memory, qkv = normal(2, 1, 1, 8, 4), normal(1, 12)
    table = rotary_table(1, 1, 7, 4, 100.0, torch.device(DEVICE))
    found = attend(qkv, memory, table, torch.tensor([0], device=DEVICE), 1)
    torch.testing.assert_close(found, qkv[:, 8:])  # it sees itself


# ---- codes


@pytest.mark.parametrize("dtype", TYPES)
def test_embed(dtype):
    codes, table = torch.randint(9, (2, 6)).to(DEVICE), normal(9, 20, dtype=dtype)
    bias, targets = normal(4, 1, 20, dtype=dtype), normal(6, 20, dtype=dtype)
    position = torch.tensor([3], device=DEVICE)
    last = table[codes[:, 2]].repeat(2, 1)
    assert torch.equal(embed(codes, position, table, 4), last)
    assert torch.equal(embed(codes, position, table, 2), last[:2])
    close(embed(codes, position, table, 4, bias, targets), last.double() + bias[:, 0] + targets[3], dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_norm(dtype):
    x, weight = normal(3, 200, dtype=dtype), normal(200, dtype=dtype)
    close(rms_norm(x, weight, 1e-2), F.rms_norm(x.double(), (200,), weight.double(), 1e-2), dtype)


def test_gate():
    x = normal(3, 2 * 1100)
    torch.testing.assert_close(gate(x), F.silu(x[:, :1100]) * x[:, 1100:])


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7}, {"temperature": 0.0}, {"min_p": 0.1}])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("size", [50, 20_000])
def test_draw(changes, guided, size):
    settings, count = SamplingSettings(**changes), 6
    logits, uniform = 2 * normal(12 if guided else 6, size), torch.rand(count, 4).to(DEVICE)
    uniform[0], uniform[1] = 0, 1 - 2**-24
    logits[:, :3] = -1e6
    scales, position = torch.tensor([1.0, 9.0, 1.7, 9.0], device=DEVICE), torch.tensor([2], device=DEVICE)
    given = torch.full((count, 4), -1, device=DEVICE)
    given[5, 2] = 17
    codes = torch.zeros_like(given)
    draw(logits, uniform, scales, position, given, codes, settings.temperature, settings.min_p)
    assert position.item() == 3
    expected = plain_draw(guide(logits, scales[2]) if guided else logits, uniform[:, 2], settings)
    assert codes[5, 2] == 17
    assert (codes[:5, 2] - expected[:5]).abs().max() <= (0 if size == 50 else 1)  # sums of many shares round
    assert codes[:, [0, 1, 3]].abs().sum() == 0


@pytest.mark.parametrize("dtype", TYPES)
def test_draw_for_one_picture(dtype):
    """The kernel itself goes one position on; logits of any type are read."""
    logits = normal(2, 50, dtype=dtype)
    codes, position = torch.zeros(1, 4, dtype=torch.int64, device=DEVICE), torch.tensor([1], device=DEVICE)
    scales = torch.full((4,), 1.5, device=DEVICE)
    draw(logits, torch.zeros(1, 4, device=DEVICE), scales, position, codes - 1, codes, 0.0)
    assert codes[0].tolist() == [0, guide(logits.float(), 1.5).argmax().item(), 0, 0]
    assert position.item() == 2


def test_draws_follow_the_probabilities():
    shares = torch.tensor([0.0, 0.5, 0.125, 0.0, 0.375])
    logits = shares.log().expand(64, -1).contiguous().to(DEVICE)
    uniform = ((torch.arange(64) + 0.5) / 64)[:, None].to(DEVICE)
    one, place = torch.ones(1, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    codes = torch.full((64, 1), -1, device=DEVICE)
    draw(logits, uniform, one, place, codes.clone(), codes, 1.0)
    assert codes.flatten().bincount(minlength=5).tolist() == [0, 32, 8, 0, 24]
