"""The device of a command: the one that is named, the best there is, or a launched process's own."""

from types import SimpleNamespace

import pytest
import torch

from wvq.devices import named_device, usable_device
from wvq.errors import ConfigError


def test_a_launched_process_takes_its_own_device(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("wvq.devices.processes", lambda: SimpleNamespace(device=torch.device("cuda", 1)))
    assert usable_device(None) == "cuda:1"
    with pytest.raises(ConfigError, match=r'device "cpu": each process .* has its own device, here cuda:1'):
        usable_device("cpu")
    monkeypatch.setattr("wvq.devices.processes", lambda: SimpleNamespace(device=torch.device("cpu")))
    assert usable_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["abacus", "meta", "privateuseone", "cuda:99", "cpu:cpu", ""])
def test_a_device_that_cannot_compute_here_is_one_line(name):
    with pytest.raises(ConfigError, match=f'device "{name}" cannot be used here') as error:
        usable_device(name)
    assert "\n" not in str(error.value)


def test_a_device_by_name_number_or_itself():
    assert named_device("cpu") == named_device(torch.device("cpu")) == torch.device("cpu")
    for wrong in ("abacus", "cuda:99", 99, 1.5, "cpu:x"):
        with pytest.raises(ConfigError, match=f'device_map "{wrong}" cannot be used here') as caught:
            named_device(wrong, "device_map")
        assert "\n" not in str(caught.value)
