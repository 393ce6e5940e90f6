"""Samples do not depend on the batch, are resized as published, and are kept where asked for."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.stand_ins import FakePipeline
from wvq.errors import ConfigError
from wvq.eval.samples.conditions import Conditions
from wvq.eval.samples.drawing import Samples, resized


def test_samples_do_not_depend_on_the_batch_size():
    pipeline = FakePipeline()
    samples = Samples(pipeline, 7, Conditions(list("abcdefg"), list(range(7)), None, None), pipeline.sampling, seed=2)
    whole = samples.draw(range(7))
    assert whole.images.dtype == torch.uint8
    assert whole.numbers == list(range(7))
    parts = [samples.draw(range(start, min(start + 3, 7))) for start in (0, 3, 6)]
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert pipeline.labels == [*range(7), *range(7)]


def test_settings_reach_the_pipeline_and_the_result(evaluate, labelled, projection):
    pipeline = FakePipeline()
    sampling = {"guidance_scale": 3.0, "temperature": 0.9, "top_k": 50, "top_p": 0.95}
    result = evaluate(pipeline, labelled, 6, projection, seed=3, **sampling)
    assert sampling.items() <= pipeline.calls[0].items()
    assert {**sampling, "seed": 3}.items() <= result["settings"].items()
    assert result["kind"] == "generation"
    own = evaluate(FakePipeline(), labelled, 6, projection, top_k=5)["settings"]
    assert (own["temperature"], own["top_k"]) == (0.7, 5)
    assert "torch" in result["versions"]
    assert {"processor", "threads", "processes"} <= set(result["hardware"])
    assert pipeline.numerics().items() <= result["settings"].items()
    json.dumps(result)


@pytest.mark.parametrize("name", ["pngs", "samples.npz"])
def test_what_is_there_is_not_overwritten_at_a_second_try(evaluate, name, labelled, projection, tmp_path):
    target = tmp_path / name
    if name == "pngs":
        target.mkdir()
    (target / "000000.png" if name == "pngs" else target).write_bytes(b"mine")
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"{name} already holds pictures|{name} is there already"):
            evaluate(FakePipeline(), labelled, 12, projection, work=tmp_path / "w", save_samples=target)
    assert (target / "000000.png" if name == "pngs" else target).read_bytes() == b"mine"


def test_samples_can_be_kept_as_pictures_or_as_an_archive(evaluate, labelled, projection, tmp_path):
    evaluate(FakePipeline(), labelled, 6, projection, seed=4, save_samples=tmp_path / "pngs")
    files = sorted((tmp_path / "pngs").iterdir())
    assert [file.name for file in files] == [f"{seed:06d}.png" for seed in range(4, 10)]
    with pytest.raises(ConfigError, match="pngs already holds pictures"):
        evaluate(FakePipeline(), labelled, 6, projection, seed=4, save_samples=tmp_path / "pngs")
    evaluate(FakePipeline(), labelled, 6, projection, seed=4, save_samples=tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as stored:
        assert stored["arr_1"].tolist() == [0, 1, 2, 0, 1, 2]
        for file, picture in zip(files, stored["arr_0"], strict=True):
            assert (np.asarray(Image.open(file)) == picture).all()


def test_samples_can_be_resized_before_they_are_measured(evaluate, labelled, projection, tmp_path):
    result = evaluate(FakePipeline(image_size=32), labelled, 6, projection, resize=16, save_samples=tmp_path / "s.npz")
    assert result["settings"]["samples"]["image_size"] == 16
    assert result["settings"]["resize"] == 16
    assert result["settings"]["resize_filter"].startswith("bicubic")
    assert not any(line.startswith("image_size") for line in result["warnings"])
    with np.load(tmp_path / "s.npz") as stored:
        assert stored["arr_0"].shape == (6, 16, 16, 3)
    with pytest.raises(ConfigError, match="resize must be from 1 to 4,096 pixels, got 0"):
        evaluate(FakePipeline(), labelled, 6, projection, resize=0)


def test_resizing_keeps_what_a_bicubic_filter_keeps():
    ramp = torch.linspace(-1, 1, 24).expand(1, 3, 24, 24)
    small = resized(ramp, 16)
    centres = (torch.arange(16) + 0.5) * 24 / 16 - 0.5  # half-pixel centres; a linear ramp stays one
    torch.testing.assert_close(small[0, 0, 0, 2:-2], (centres / 23 * 2 - 1)[2:-2], atol=5e-3, rtol=0)
    assert resized(ramp, 24) is ramp
    assert resized(ramp, None) is ramp
