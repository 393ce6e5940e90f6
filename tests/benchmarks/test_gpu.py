"""The bounded run on a GPU: its parts one by one, what fails or hangs, what a cut run leaves, its tables."""

import contextlib
import io
import json
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from benchmarks import gpu, gpu_tests
from benchmarks.gpu_part import PARTS, function_of, run_part
from benchmarks.gpu_tables import table, tables
from tests.processes import Program
from wvq.errors import DataError
from wvq.files.atomic import read_json

# In place of benchmarks.gpu_part: parts that end well, fail, or never end after their first row.
PROGRAM = """
import json, pathlib, subprocess, sys, time
name, file = sys.argv[1], pathlib.Path(sys.argv[sys.argv.index("--file") + 1])
file.write_text(json.dumps({"rows": [{"part": name, "seconds": float(sys.stdin.readline())}]}))
if name == "sampling":
    raise RuntimeError("the kernel cannot be built")
if name == "suite":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    file.with_name("x").write_text("")
    print(child.pid, flush=True)
    time.sleep(600)
"""

# Parts that end once what they wait for has happened: that another has started, or has been given its seconds.
MEETING = """
import json, os, pathlib, sys, time
name, file = sys.argv[1], pathlib.Path(sys.argv[sys.argv.index("--file") + 1])
(folder := pathlib.Path(os.environ["MEETING"])).joinpath(name + " started").touch()
line = sys.stdin.readline()
if line:
    folder.joinpath(name + " begun").touch()
    while not folder.joinpath(json.loads(os.environ["AWAITED"])[name]).exists():
        time.sleep(0.05)
    file.write_text(json.dumps({"rows": [{"part": name}]}))
"""


def read(folder) -> dict:
    return read_json(folder / gpu.FILE_NAME, DataError, "no file was written")


@pytest.fixture
def program(tmp_path):
    file = tmp_path / "part.py"
    file.write_text(PROGRAM)
    return (sys.executable, "-S", str(file))


def test_a_part_that_fails_or_hangs_costs_itself_alone(tmp_path, program):
    run = gpu.GpuRun(tmp_path, "cpu", True, (gpu.ENDING + 6) / 60, program)
    start = time.monotonic()
    result = run.run(["machine", "suite", "sampling", "search"])
    assert time.monotonic() - start < 60
    assert read(tmp_path) == result
    parts = result["parts"]
    assert [part["state"] for part in parts.values()] == ["done", "cut off at its limit", "failed", "done"]
    assert [part["rows"][0]["part"] for part in parts.values()] == list(parts)
    assert parts["sampling"]["last_lines"][-1] == "RuntimeError: the kernel cannot be built"
    child = int(parts["suite"]["last_lines"][0])
    assert not is_running(child)


def is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_time_that_a_part_leaves_goes_to_the_next(tmp_path, program):
    run = gpu.GpuRun(tmp_path, "cpu", True, 10, program)
    parts = run.run(["machine", "search"])["parts"]
    share = PARTS["machine"].share / (PARTS["machine"].share + PARTS["search"].share)
    assert parts["machine"]["limit"] == pytest.approx(share * (600 - gpu.ENDING), abs=1)
    assert parts["search"]["limit"] > 580
    assert parts["search"]["rows"][0]["seconds"] == pytest.approx(gpu.IN_TIME * parts["search"]["limit"], abs=0.2)


@pytest.fixture
def meeting(tmp_path, monkeypatch):
    """Runs parts of which each waits for what is given for it; returns their states."""
    file = tmp_path / "part.py"
    file.write_text(MEETING)

    def states(awaited: dict[str, str], minutes: float) -> list[str]:
        monkeypatch.setenv("MEETING", str(tmp_path))
        monkeypatch.setenv("AWAITED", json.dumps(awaited))
        run = gpu.GpuRun(tmp_path, "cpu", True, minutes, (sys.executable, "-S", str(file)))
        return [part["state"] for part in run.run(list(awaited))["parts"].values()]

    return states


def test_a_part_starts_while_the_one_before_it_runs(meeting):
    assert meeting({"suite": "search started", "search": "suite begun"}, 10) == ["done", "done"]


def test_parts_that_measure_no_time_run_side_by_side(meeting):
    assert gpu.side_by_side(["suite", "memory", "loader", "suite"]) == [["suite", "memory"], ["loader"], ["suite"]]
    assert meeting({"suite": "memory begun", "memory": "suite begun"}, 10) == ["done", "done"]


def test_a_part_that_measures_times_runs_alone(meeting):
    states = meeting({"suite": "search begun", "search": "suite begun"}, (gpu.ENDING + 6) / 60)
    assert states == ["cut off at its limit", "done"]


def test_a_run_that_is_cut_off_leaves_what_it_has(tmp_path, program):
    code = f"""if True:
        from pathlib import Path
        from benchmarks.gpu import GpuRun
        GpuRun(Path({str(tmp_path)!r}), "cpu", True, 10, {program!r}).run(["machine", "suite"])
    """
    cut = Program(["-c", code])
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if (tmp_path / gpu.FILE_NAME).exists() and read(tmp_path)["parts"].get("suite", {}).get("rows"):
                break
            time.sleep(0.05)
    finally:
        started = [] if cut.ended else psutil.Process(cut.pid).children(recursive=True)  # in sessions of their own
        cut.kill()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    parts = read(tmp_path)["parts"]
    assert parts["machine"]["state"] == "done"
    assert parts["suite"]["state"] == "running"
    assert parts["suite"]["rows"][0]["part"] == "suite"


def test_a_part_without_a_module_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(PARTS, "search", PARTS["search"].__class__("gpu_of_another_world", 1))
    run_part("search", "cpu", True, io.StringIO("1\n"), tmp_path / "rows.json")
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written == {"rows": [], "missing": "there is no benchmarks/gpu_of_another_world.py"}
    run = gpu.GpuRun(tmp_path, "cpu", True, 1)
    run._note("search", {"state": "running", "rows": []})
    run._collect("search", tmp_path / "rows.json")
    assert run.result["parts"]["search"]["state"] == "missing: there is no benchmarks/gpu_of_another_world.py"


def test_a_module_that_cannot_be_imported_is_no_missing_part(monkeypatch, tmp_path):
    monkeypatch.setitem(PARTS, "machine", PARTS["machine"].__class__("gpu_broken", 1))
    module = type(sys)("benchmarks")
    (tmp_path / "gpu_broken.py").write_text("import a_package_that_is_not_there")
    module.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "benchmarks", module)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        function_of("machine")


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_its_function(name):
    assert callable(function_of(name))


def test_the_command_measures_prints_and_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--minutes", "2", "--out", str(tmp_path), "--parts", "machine"])
    gpu.main()
    printed = capsys.readouterr().out
    result = read(tmp_path)
    facts = result["parts"]["machine"]["rows"][0]
    assert result["parts"]["machine"]["state"] == "done"
    assert {"processor", "torch", "transformers", "python", "copy_GB_s", "bf16_product_TFLOP_s"} <= set(facts)
    assert str(tmp_path) not in json.dumps(result)
    monkeypatch.setattr(sys, "argv", ["gpu", "--show", str(tmp_path / gpu.FILE_NAME)])
    gpu.main()
    shown = capsys.readouterr().out
    assert "## machine" in shown
    assert shown in printed


def test_a_device_that_is_not_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cuda:99"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert 'device "cuda:99" cannot be used here' in capsys.readouterr().err.splitlines()[-1]


# ---- tables


def test_rows_become_a_table_and_kinds_of_rows_tables_of_their_own():
    rows = [{"size": "B", "ms": 0.123456}, {"size": "L", "ms": 23456.7, "peak": None}, {"kernels": 65, "mode": "a|b"}]
    shown = tables({"device": "cpu", "parts": {"sampling": {"state": "done", "rows": rows}}})
    assert "| size | ms | peak |\n| --- | --- | --- |\n| B | 0.1235 |  |\n| L | 23,457 |  |" in shown
    assert "| kernels | mode |\n| --- | --- |\n| 65 | a\\|b |" in shown


def test_a_mapping_of_alike_mappings_becomes_one_table():
    rows = [{"card": "none", "cases": {"a": {"ms": 1}, "b": {"ms": 2}}, "rows": [{"x": 1}]}]
    shown = tables({"parts": {"search": {"state": "done", "seconds": 1.5, "rows": rows}}})
    assert "card: none" in shown
    assert "| x |" in shown
    assert "**cases**" in shown
    flat = {"cases": {"a": {"ms": 1}, "b": {"ms": 2}}}
    assert "|  | ms |\n| --- | --- |\n| a | 1 |\n| b | 2 |" in tables(
        {"parts": {"search": {"state": "done", "rows": [flat["cases"]]}}}
    )


def test_last_lines_of_a_failure_are_shown():
    shown = tables({"parts": {"memory": {"state": "failed", "rows": [], "last_lines": ["RuntimeError: no room"]}}})
    assert "## memory\n\n    RuntimeError: no room" in shown
    assert table([{"a": True}]) == "| a |\n| --- |\n| True |"


# ---- the part that runs tests

TESTS = """
import time, pytest
pytestmark = pytest.mark.gpu
def test_right(): pass
def test_wrong(): assert 1 + 1 == 3, "arithmetic"
@pytest.mark.skip(reason="not here")
def test_left_out(): pass
"""


def test_tests_are_counted_and_failures_kept(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_other.py").write_text("def test_of_the_cpu(): raise ValueError")
    (tmp_path / "test_broken.py").write_text("import a_package_that_is_not_there  # pytest.mark.gpu")
    *failures, counts = gpu_tests.suite("cpu", True, 100, tmp_path)
    assert {name: counts[name] for name in ("files", "passed", "failed", "error", "skipped", "cut_off")} == {
        "files": 2, "passed": 1, "failed": 1, "error": 1, "skipped": 1, "cut_off": False,
    }  # fmt: skip
    broken, wrong = failures
    assert "test_broken" in broken["failure"]
    assert "a_package_that_is_not_there" in broken["message"]
    assert "test_wrong" in wrong["failure"]
    assert "arithmetic" in wrong["message"]


def test_several_processes_report_each_test_once(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_tests, "PROCESSES", 2)
    (tmp_path / "test_some.py").write_text(TESTS)
    *failures, counts = gpu_tests.suite("cpu", False, 100, tmp_path)
    assert (counts["passed"], counts["failed"], counts["skipped"], len(failures)) == (1, 1, 1, 1)


def test_tests_that_hang_are_ended_and_the_others_counted(tmp_path, monkeypatch):
    begun = tmp_path / "begun"
    hanging = f"def test_without_end():\n    open({str(begun)!r}, 'w').close()\n    time.sleep(600)\n"
    (tmp_path / "test_some.py").write_text(TESTS + hanging)
    rows = gpu_tests.suite("cpu", True, 1e9, tmp_path)
    assert "arithmetic" in next(rows)["message"]  # it comes while the others run
    while not begun.exists():
        time.sleep(0.05)
    monkeypatch.setattr(gpu_tests, "time", SimpleNamespace(monotonic=lambda: float("inf"), sleep=time.sleep))
    (counts,) = rows
    assert counts["cut_off"]
    assert counts["passed"] == counts["failed"] == 1
    assert "test_without_end" in counts["unfinished"]


def test_without_marked_tests_nothing_runs(tmp_path):
    assert list(gpu_tests.suite("cpu", True, 10, tmp_path)) == [{"files": 0}]
