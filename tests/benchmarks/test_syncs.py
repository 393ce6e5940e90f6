"""The counter of waits sees what waits for a GPU, and nothing else."""

import pytest
import torch

from benchmarks.syncs import counting_syncs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_what_waits_is_counted(device):
    values = torch.rand(3, 3, device=device)
    mask, ones = values > 0.5, torch.ones_like(values)
    waits = {
        "item": lambda: values.sum().item(),
        "bool": lambda: bool(values.isfinite().all()),
        "nonzero": lambda: values.nonzero(),
        "mask": lambda: values[mask],
        "list": lambda: values.tolist(),
        "copy": lambda: values.cpu(),
        "equal": lambda: torch.equal(values, ones),
    }
    for name, wait in waits.items():
        with counting_syncs(device) as places:
            wait()
        assert places, name
        assert device != "cpu" or all("test_syncs.py:" in place for place in places)


@pytest.mark.parametrize("device", DEVICES)
def test_what_does_not_wait_is_not_counted(device):
    values = torch.rand(3, 3, device=device, requires_grad=True)
    rows = torch.zeros(2, dtype=torch.int64, device=device)
    with counting_syncs(device) as places:
        (values[rows].sum() + torch.where(values > 0.5, values, 0).norm()).backward()
        values.masked_fill(values > 0.5, 0).argmax(1)
    assert places == []
