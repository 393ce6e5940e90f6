"""The pictures of a page match what was measured."""

from types import SimpleNamespace

import pytest
import torch

from wvq.eval.real.references import DatasetReference
from wvq.eval.report.blocks import generation_blocks
from wvq.eval.report.summary import markdown, summary_files, write_summary


def drawing(class_names, asked):
    def draw(class_labels=None, prompt=None, *, num_images=None, seed, output_type, **sampling):
        asked.append((class_labels, seed, sampling) if prompt is None else (class_labels, prompt, seed))
        num_images = num_images or len(prompt)
        pictures = torch.rand(num_images, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        return SimpleNamespace(images=pictures, codes=torch.full((num_images, 2, 2), 5))

    config = SimpleNamespace(num_classes=len(class_names), class_names=list(class_names), text_dim=8, num_codes=8)
    draw.class_names, draw.generator = class_names, SimpleNamespace(config=config)
    return draw


@pytest.mark.parametrize("names", [("cats", "dogs"), ()])
def test_the_page_shows_samples_neighbours_codes_and_the_sweep(
    names, result, projection, pictures, picture_set, tmp_path
):
    asked, data = [], picture_set(pictures(12))
    result["settings"]["classes"] = "balanced" if names else None
    result["sweep"] = {"field": "guidance_scale", "rows": [{"guidance_scale": s, "fid": 6 - s} for s in (1.0, 1.5)]}
    blocks = generation_blocks(drawing(names, asked), result, projection, DatasetReference(data), {"top_k": 3})
    assert [title for title, _, _ in blocks] == ["Samples", "Nearest real pictures", "Codes", "Sweep"]
    expected = [(number, 3, {"top_k": 3}) for number in range(len(names))]
    assert asked == (expected or [(None, 3 + 8 * row, {"top_k": 3}) for row in range(4)])
    assert "| guidance_scale | fid |" in markdown(result)
    assert "| 1.5000 | 4.5000 |" in markdown(result)
    write_summary(tmp_path / "r.json", result, blocks)
    text, page = summary_files(tmp_path / "r.json")
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
    blocks = generation_blocks(drawing((), asked), result, projection, DatasetReference(data))
    assert [title for title, _, _ in blocks] == ["Samples", "Nearest real pictures", "Codes"]
    order = DatasetReference(data).order()
    result["settings"]["resize"] = 24  # the samples' features are then those that were measured
    assert (
        generation_blocks(drawing((), []), result, projection, DatasetReference(data))[1][0] == "Nearest real pictures"
    )
    assert asked == [(None, [captions[index] for index in order[:10]], 3)]
    result["settings"] |= {"prompts": ["red", "blue"], "classes": ["cats"]}
    generation_blocks(drawing(("cats", "dogs"), asked), result, projection)
    assert asked[1] == ([0] * 10, ["red", "blue"] * 5, 3)


def test_classes_and_captions_on_the_page_are_of_the_same_pictures(result, projection, pictures, picture_set):
    labels = [0, -1, 1] * 4
    data, asked = picture_set(pictures(12), labels, ("cats", "dogs"), [f"{label}" for label in labels]), []
    result["settings"] |= {"prompts": "reference", "classes": "reference"}
    generation_blocks(drawing(("cats", "dogs"), asked), result, projection, DatasetReference(data))
    classes, prompts, _ = asked[0]
    assert len(classes) == 10
    assert classes == [int(prompt) for prompt in prompts]


def test_samples_without_classes_are_shown_without(result):
    asked = []
    result["settings"]["classes"] = None
    blocks = generation_blocks(drawing(("cats", "dogs"), asked), result, None)
    assert asked == [(None, 3 + 8 * row, {}) for row in range(4)]
    assert blocks[0][1] == "The first seeds, none picked."
