"""Results are ranked only under one protocol, and the field that differs is named."""

import copy
import json

import pytest

from wvq.errors import DataError
from wvq.eval.compare import compare_results


@pytest.fixture
def result():
    return {
        "kind": "generation",
        "metrics": {"fid": 5.5, "precision": 0.8, "kid": 0.25, "fid_at_floor_n": 7.0},
        "floor": {"fid": 1.25, "kid": 0.01, "precision": 0.9},
        "num_images": 100,
        "num_reference": 100,
        "num_floor": 50,
        "settings": {
            "feature_network": "inception",
            "feature_network_sha256": "67",
            "feature_network_input": "299",
            "reference": {"sha256": "ab" * 32, "kind": "train", "image_size": 256, "crop": "center"},
            "classes": "balanced",
            "prompts": None,
            "guidance_scale": 2.0,
        },
    }


@pytest.fixture
def files(result, tmp_path):
    """Writes a result, and another one that was changed by a function; their files."""

    def write(change):
        other = copy.deepcopy(result)
        change(other)
        paths = [tmp_path / "a.json", tmp_path / "b.json"]
        for path, content in zip(paths, (result, other), strict=True):
            path.write_text(json.dumps(content))
        return [str(path) for path in paths]

    return write


def test_the_better_figure_is_bold_whichever_way_is_better(files):
    def change(other):
        other["metrics"] |= {"fid": 4.5, "precision": 0.7}
        other["settings"]["guidance_scale"] = 1.5
        other["settings"]["batch_size"] = 7  # changes nothing

    a, b = files(change)
    lines = compare_results([a, b]).splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("|")}
    assert "| lower | 5.5000 | **4.5000** |  |" in rows["fid"]  # the floor has another N
    assert "| higher | **0.8000** | 0.7000 |" in rows["precision"]
    assert "| lower | **7.0000** | **7.0000** | 1.2500 |" in rows["fid_at_floor_n"]
    assert lines[0] == "generation, N = 100 against 100; features of inception, train reference abababab"
    assert lines[-1] == f"guidance_scale: 2.0 in {a}, 1.5 in {b}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_images", 50),
        ("num_reference", 99),
        ("settings.feature_network", "efficientnet_lite0"),
        ("settings.feature_network_sha256", "68"),
        ("settings.reference.sha256", "cd" * 32),
        ("settings.reference.kind", "validation"),
        ("settings.reference.forced", True),
        ("settings.classes", "reference"),
        ("kind", "reconstruction"),
    ],
)
def test_another_protocol_is_refused_by_its_field(files, field, value):
    def change(other):
        *parents, last = field.split(".")
        for parent in parents:
            other = other[parent]
        other[last] = value

    a, b = files(change)
    with pytest.raises(DataError, match=rf"not comparable: {field} is .* in {a} and .* in {b}"):
        compare_results([a, b])


def test_every_field_that_differs_is_named_and_equal_figures_are_equal(files):
    a, b = files(lambda other: other.update(num_images=50, num_reference=99))
    with pytest.raises(DataError, match=r"num_images is 100 .*; num_reference is 100 .* and 99 in"):
        compare_results([a, b])
    a, b = files(lambda other: other["metrics"].update(fid=5.50000001))
    assert "**5.5000** | **5.5000**" in compare_results([a, b])


def test_other_files_are_refused(files, tmp_path):
    a, b = files(lambda other: other["metrics"].clear())
    with pytest.raises(DataError, match="no metric in common"):
        compare_results([a, b])
    with pytest.raises(DataError, match="at least two"):
        compare_results([a])
    for content in ("{}", '{"kind": "generation", "metrics": []}', '{"kind": "x"}', "[]", "no json"):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(DataError, match=r"c\.json"):
            compare_results([a, str(tmp_path / "c.json")])
    with pytest.raises(DataError, match=r"d\.json does not exist"):
        compare_results([a, str(tmp_path / "d.json")])
