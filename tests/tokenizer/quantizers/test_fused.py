"""The fused search: right codes from its kernels, little memory, and never missed where they do not run."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.live_bytes import LiveBytes
from tests.interpreter import checks_of, run_compiled, run_interpreted
from tests.tokenizer.quantizers.searching import draw
from wvq.tokenizer.quantizers import fused
from wvq.tokenizer.quantizers.nearest import nearest_codes

CHECKS = Path(__file__).with_name("checks_fused.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the compiled kernels are tested in place of interpreted ones")
def test_the_kernels_find_the_nearest_codes():
    pytest.importorskip("triton", reason="Triton is not installed")
    run_interpreted(CHECKS)


@pytest.mark.gpu
@pytest.mark.parametrize("check", checks_of(CHECKS))
def test_the_compiled_kernels_find_the_nearest_codes(check):
    run_compiled(f"{CHECKS}::{check}")


@pytest.fixture
def _fresh():
    """No kernel has been loaded or has failed, before or after."""
    fused.kernels.cache_clear()
    fused.failed.clear()
    yield
    fused.kernels.cache_clear()
    fused.failed.clear()


@pytest.fixture
def _on_any_device(_fresh, monkeypatch):
    """The search of GPUs is tried for tensors of the CPU, on which no kernel runs."""
    monkeypatch.setattr(fused, "usable", lambda features, codebook: True)


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.name == fused.logger.name]


def searched_without(caplog):
    """What is said when two searches go on without the kernels."""
    caplog.set_level(logging.INFO)
    features, codebook = draw(30, 20, 8)
    for _ in range(2):
        assert fused.search(features, codebook) is None
        assert torch.equal(nearest_codes(features, codebook), nearest_codes(features, codebook, tile_bytes=10**6))
    return warnings_of(caplog)


@pytest.mark.usefixtures("_on_any_device")
def test_without_triton_the_search_goes_on_and_says_so_once(caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "wvq.tokenizer.quantizers.kernels", raising=False)
    (message,) = searched_without(caplog)
    assert "the fused nearest-code search is not available, using torch's products: " in message
    assert "triton" in message


@pytest.mark.usefixtures("_on_any_device")
@pytest.mark.parametrize("dim", [8, 40])
def test_where_a_kernel_does_not_start_the_search_goes_on_and_says_so_once(caplog, monkeypatch, dim):
    calls = []

    def fail(*arguments, **options):
        calls.append(arguments)
        raise RuntimeError("out of resource: shared memory,\nRequired: 98816")

    monkeypatch.setattr(fused, "kernels", lambda: stand_in(fail))
    features, codebook = draw(30, 20, dim)
    for _ in range(2):
        assert torch.equal(nearest_codes(features, codebook), nearest_codes(features, codebook, tile_bytes=10**6))
    assert len(calls) == 1
    (message,) = warnings_of(caplog)
    assert message.endswith(": out of resource: shared memory, Required: 98816")


@pytest.mark.usefixtures("_on_any_device")
def test_can_be_switched_off(caplog, monkeypatch):
    monkeypatch.setenv("WVQ_TRITON", "0")
    assert searched_without(caplog) == []


@pytest.mark.usefixtures("_on_any_device")
def test_a_lack_of_memory_is_no_fault_of_the_kernels(monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(fused, "kernels", lambda: stand_in(fail))
    with pytest.raises(torch.OutOfMemoryError):
        nearest_codes(*draw(30, 20, 8))
    assert not fused.failed.is_set()


@pytest.mark.usefixtures("_on_any_device")
def test_tiles_are_searched_where_they_are_asked_for(monkeypatch):
    monkeypatch.setattr(fused, "search", lambda *_: pytest.fail("the fused search was called"))
    nearest_codes(*draw(30, 20, 8), tile_bytes=10**6)


def test_is_for_gpus_with_what_it_needs(monkeypatch):
    def usable(dim, capability, num_codes=20, device="cuda"):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        with FakeTensorMode():
            return fused.usable(torch.empty(30, dim, device=device), torch.empty(num_codes, dim, device=device))

    assert all(usable(dim, capability) for dim, capability in [(8, (9, 0)), (256, (9, 0)), (256, (8, 0)), (16, (7, 5))])
    assert not usable(17, (7, 5))
    assert not usable(8, (9, 0), num_codes=2**31 - 1)
    assert not usable(0, (9, 0))
    assert not usable(8, (9, 0), device="cpu")


def stand_in(run):
    """A module of kernels that all do the same when they are started on a grid."""

    class Kernel:
        def __getitem__(self, grid):
            assert all(0 < size < limit for size, limit in zip(grid, (2**31, 2**16), strict=False))
            return run

    names = ("search_few_dims", "split_vectors", "search_many_dims")
    return SimpleNamespace(NO_KEY=2**63 - 1, **{name: Kernel() for name in names})


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("dim", [1, 8, 16, 17, 256, 1_000])
@pytest.mark.parametrize("count", [1, 65_536])
@pytest.mark.parametrize("num_codes", [16_384, 262_144, 3_000_000])
def test_takes_little_memory(monkeypatch, count, num_codes, dim):
    started = []
    monkeypatch.setattr(fused, "kernels", lambda: stand_in(lambda *arguments, **options: started.append(options)))
    features, codebook = (torch.empty(size, dim, device="meta") for size in (count, num_codes))
    with LiveBytes() as live:
        codes = fused.search(features, codebook)
    assert codes.shape == (count,)
    assert started
    assert live.peak < 64 * 2**20


def test_the_search_of_the_cpu_does_not_load_triton(monkeypatch):
    monkeypatch.setattr(fused, "kernels", lambda: pytest.fail("the kernels were loaded"))
    nearest_codes(*draw(30, 20, 8))
