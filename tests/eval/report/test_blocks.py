"""A result's text and page hold every figure, floor, warning and setting, and pictures that match them."""

from types import SimpleNamespace

import pytest
import torch

from wvq.errors import ConfigError
from wvq.eval.real.references import RealPictures
from wvq.eval.report.blocks import (
    generation_blocks,
    markdown,
    metric_rows,
    refuse_foreign_files,
    setting_rows,
    write_summary,
)
from wvq.eval.report.results import make_result, write_result
from wvq.eval.sweeps import parse_sweep


@pytest.fixture
def result():
    metrics = {"fid": 5.5, "kid": 0.25, "fid_at_floor_n": 7.0}
    settings = {"seed": 3, "reference": {"kind": "train", "sha256": "ab"}, "prompts": None, "classes": "a|b"}
    settings["resize"] = None
    return make_result("generation", metrics, {"fid": 1.25, "kid": 0.01}, 10, 10, 5, settings, ["few pictures"])


def test_floors_stand_beside_figures_of_their_n_only(result):
    assert metric_rows(result) == [
        ("fid", 5.5, None, 10),
        ("kid", 0.25, None, 10),
        ("fid_at_floor_n", 7.0, 1.25, 5),
    ]
    assert metric_rows(result | {"num_floor": 10})[0] == ("fid", 5.5, 1.25, 10)


def test_settings_are_flat_and_whole(result):
    rows = dict(setting_rows(result))
    assert rows["reference.kind"] == "train"
    assert rows["seed"] == "3"
    assert "versions.torch" in rows
    assert "prompts" not in rows


def test_the_text_says_all(result):
    text = markdown(result)
    for part in (
        "| fid | 5.5000 |  | 10 |",
        "| fid_at_floor_n | 7.0000 | 1.2500 | 5 |",
        "Warning: few pictures.",
        "a\\|b",
    ):
        assert part in text


def test_a_former_result_is_replaced_and_nothing_else(result, tmp_path):
    file = tmp_path / "fid.json"
    refuse_foreign_files(file)
    write_result(file, result)
    written = write_summary(file, result, [])
    refuse_foreign_files(file)
    for path, text in ((file, '{"metrics": 3}'), (written[0], "# Notes"), (written[1], "<title>Home</title>")):
        before = path.read_text()
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"^out: .*{path.name} .*would be written over.*choose another name$"):
            refuse_foreign_files(file)
        path.write_text(before)


def drawing(class_names, asked):
    def draw(class_labels=None, prompt=None, *, num_images=None, seed, output_type, **sampling):
        asked.append((class_labels, seed, sampling) if prompt is None else (class_labels, prompt, seed))
        num_images = num_images or len(prompt)
        pictures = torch.rand(num_images, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        return SimpleNamespace(images=pictures, codes=torch.full((num_images, 2, 2), 5))

    config = SimpleNamespace(num_classes=len(class_names), num_codes=8)
    draw.class_names, draw.generator = class_names, SimpleNamespace(config=config)
    return draw


@pytest.mark.parametrize("names", [("cats", "dogs"), ()])
def test_the_page_shows_samples_neighbours_codes_and_the_sweep(
    names, result, projection, pictures, picture_set, tmp_path
):
    asked, data = [], picture_set(pictures(12))
    result["settings"]["classes"] = "balanced" if names else None
    result["sweep"] = {"field": "guidance_scale", "rows": [{"guidance_scale": s, "fid": 6 - s} for s in (1.0, 1.5)]}
    blocks = generation_blocks(drawing(names, asked), result, projection, RealPictures(data), {"top_k": 3})
    assert [title for title, _, _ in blocks] == ["Samples", "Nearest real pictures", "Codes", "Sweep"]
    expected = [(name, 3, {"top_k": 3}) for name in names]
    assert asked == (expected or [(None, 3 + 8 * row, {"top_k": 3}) for row in range(4)])
    assert "| guidance_scale | fid |" in markdown(result)
    assert "| 1.5000 | 4.5000 |" in markdown(result)
    text, page = write_summary(tmp_path / "r.json", result, blocks)
    assert (text.name, page.name) == ("r.md", "r.html")
    content = page.read_text()
    assert content.count("<img ") == 5
    for part in ("Few pictures.", "fid_at_floor_n", "reference.kind", "real against real"):
        assert part in content
    assert [title for title, _, _ in generation_blocks(drawing(names, []), result, projection)][1] == "Codes"


def test_measured_samples_are_shown_under_their_prompts(result, projection, pictures, picture_set):
    captions = [f"picture {number}" for number in range(12)]
    data, asked = picture_set(pictures(12), captions=captions), []
    result["settings"] |= {"prompts": "reference", "classes": None}
    blocks = generation_blocks(drawing((), asked), result, projection, RealPictures(data))
    assert [title for title, _, _ in blocks] == ["Samples", "Nearest real pictures", "Codes"]
    order = RealPictures(data).order()
    result["settings"]["resize"] = 24  # the samples' features are then those that were measured
    assert generation_blocks(drawing((), []), result, projection, RealPictures(data))[1][0] == "Nearest real pictures"
    assert asked == [(None, [captions[index] for index in order[:10]], 3)]
    result["settings"] |= {"prompts": ["red", "blue"], "classes": ["cats"]}
    generation_blocks(drawing(("cats", "dogs"), asked), result, projection)
    assert asked[1] == (["cats"] * 10, ["red", "blue"] * 5, 3)


def test_classes_and_captions_on_the_page_are_of_the_same_pictures(result, projection, pictures, picture_set):
    labels = [0, -1, 1] * 4
    data, asked = picture_set(pictures(12), labels, ("cats", "dogs"), [f"{label}" for label in labels]), []
    result["settings"] |= {"prompts": "reference", "classes": "reference"}
    generation_blocks(drawing(("cats", "dogs"), asked), result, projection, RealPictures(data))
    classes, prompts, _ = asked[0]
    assert len(classes) == 10
    assert classes == [{"0": "cats", "1": "dogs"}[prompt] for prompt in prompts]


def test_sweeps():
    assert parse_sweep("guidance_scale=1:4:0.5") == ("guidance_scale", [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
    assert parse_sweep("temperature=0.8:1.1:0.1") == ("temperature", [0.8, 0.9, 1.0, 1.1])
    assert parse_sweep("top_k=100:300:100") == ("top_k", [100, 200, 300])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidance=1:2:1", r'"guidance" is no number among the sampling settings \(did you mean "guidance_scale"\?\)'),
        ("guidance_schedule=1:2:1", "is no number"),
        ("guidance_scale", "must read guidance_scale=first:last:step"),
        ("guidance_scale=1:2", "must read guidance_scale=first:last:step"),
        ("guidance_scale=1:2:0", "step must be above 0"),
        ("guidance_scale=2:1:1", "first value at most the last"),
        ("guidance_scale=1:nan:1", "first value at most the last"),
        ("guidance_scale=0:1000:1", "at most 100"),
        ("top_k=1:2:0.5", "whole numbers"),
        ("top_p=0.5:1.5:0.5", r"top_p must be in \(0, 1\]"),
    ],
)
def test_other_sweeps_are_one_line(text, message):
    from wvq.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        parse_sweep(text)


def test_samples_without_classes_are_shown_without(result):
    asked = []
    result["settings"]["classes"] = None
    blocks = generation_blocks(drawing(("cats", "dogs"), asked), result, None)
    assert asked == [(None, 3 + 8 * row, {}) for row in range(4)]
    assert blocks[0][1] == "The first seeds, none picked."
