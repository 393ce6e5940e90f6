"""Free memory: of a GPU counted once, and within the limits of control groups of both versions."""

import re
from types import SimpleNamespace

import pytest
import torch

from wvq import memory
from wvq.errors import ConfigError
from wvq.memory import GIB, available_memory, group_memory, require_memory

CPU = torch.device("cpu")


def test_what_a_gpu_has_free_counts_once(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 64 * GIB)
    assert available_memory(device) == (10 + 70 - 64) * GIB


def group(folder, files: dict):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def second(most, taken, active=0, inactive=0) -> dict:
    stat = f"anon 7\nactive_file {active}\ninactive_file {inactive}\nslab 3"
    return {"memory.max": most, "memory.current": taken, "memory.stat": stat}


def first(most, taken, files=0) -> dict:
    stat = f"cache 5\nactive_file 999\ntotal_active_file {files}\ntotal_inactive_file 0"
    return {"memory.limit_in_bytes": most, "memory.usage_in_bytes": taken, "memory.stat": stat}


def test_limits_of_version_2_all_the_way_up(tmp_path):
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text("0::/slurm/job_1/step\n")
    group(root / "slurm/job_1/step", second("max", 600))
    group(root / "slurm/job_1", second(1000, 700, active=50, inactive=200))
    group(root / "slurm", second(5000, 900))
    group(root, {"cgroup.controllers": "memory"})
    assert group_memory(own, root) == [1000 - (700 - 250), 5000 - 900]


def test_limits_of_version_1_and_both_beside_each_other(tmp_path):
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text("9:name=systemd:/x\n4:cpu,memory:/docker/abc\n0::/docker/abc\n")
    group(root / "memory/docker/abc", first(1000, 800, files=300))
    group(root / "memory", first(9223372036854771712, 10))
    group(root / "unified/docker/abc", second(400, 100))
    assert sorted(group_memory(own, root)) == [300, 500, 9223372036854771702]


def test_a_container_sees_its_own_group_at_the_top(tmp_path):
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text("0::/system.slice/docker-abc.scope\n")  # of the host: not mounted here
    group(root, second(1000, 1200, inactive=100))
    assert group_memory(own, root) == [0]  # over its limit for a moment


def test_no_groups_at_all(tmp_path):
    assert group_memory(tmp_path / "nothing", tmp_path) == []
    (tmp_path / "cgroup").write_text("0::/\n")
    group(tmp_path, {"memory.max": "100"})  # a file is missing
    assert group_memory(tmp_path / "cgroup", tmp_path) == []


def test_the_narrowest_limit_counts(monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GIB))
    monkeypatch.setattr(memory, "group_memory", lambda: [3 * GIB, 5 * GIB])
    assert available_memory(CPU) == 3 * GIB
    monkeypatch.setattr(memory, "group_memory", list)
    assert available_memory(CPU) == 8 * GIB


def test_free_memory_is_told_for_the_cpu_alone_here():
    assert available_memory(CPU) > 2**20
    assert available_memory(torch.device("meta")) is None


def test_the_line_names_need_and_remedy(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda _: 2 * GIB)
    require_memory(2 * GIB, CPU, "this", "do that")
    with pytest.raises(
        ConfigError, match=re.escape("this needs about 3.0 GiB of memory where 2.0 GiB are free; do that")
    ):
        require_memory(3 * GIB, CPU, "this", "do that")
