"""What `wvq info` says of each kind of folder and file, and of damaged ones."""

import contextlib
import json
import re
import shutil

import numpy as np
import pytest

from tests.tiny import save_pipeline
from wvq.app.describe import describe
from wvq.errors import DataError, WVQError
from wvq.eval.features.shards import Batch, FeatureShards, stream_features
from wvq.eval.real.archive import write_archive
from wvq.eval.real.dataset import dataset_features
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.sampling_job import sample_to_folder

WITHOUT_WEIGHTS = shutil.ignore_patterns("training", "*.safetensors", "wvq_*")


@pytest.fixture(scope="module")
def pipeline_dir(tiny_tokenizer_dir, tmp_path_factory):
    return save_pipeline(tiny_tokenizer_dir, tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def copied(pipeline_dir, tmp_path):
    shutil.copytree(pipeline_dir, tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_a_tokenizer(tiny_tokenizer_dir):
    text = describe(tiny_tokenizer_dir)
    result = json.loads((tiny_tokenizer_dir / "result.json").read_text())
    for part in (
        "image tokenizer", "16 x 16 px", "4 x 4 a picture, K = 32, D = 4", "sliced", "0: circle, 1: cross, 2: square",
        f"psnr_rgb {result['psnr_rgb']:.4g}", "640 pictures",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [("l2_normalize", True, "features and codes at length 1"), ("similarity", "dot", "codes by the largest product")],
)
def test_how_a_tokenizer_compares_codes(tiny_tokenizer_dir, tmp_path, field, value, text):
    shutil.copytree(tiny_tokenizer_dir, tmp_path / "tokenizer", ignore=WITHOUT_WEIGHTS)
    file = tmp_path / "tokenizer" / "config.json"
    config = json.loads(file.read_text())
    assert text not in describe(tmp_path / "tokenizer")
    file.write_text(json.dumps({**config, field: value}))
    assert f"sliced, {text}" in describe(tmp_path / "tokenizer")


def test_fingerprints_are_shown_wherever_they_are(tiny_tokenizer_dir, tiny_codes_dir, pipeline_dir, tmp_path):
    rows = {}
    for folder in (tiny_tokenizer_dir, tiny_codes_dir, pipeline_dir):
        (rows[folder],) = (line.split(maxsplit=1)[1] for line in describe(folder).splitlines() if "  data  " in line)
    assert rows[tiny_tokenizer_dir] == rows[pipeline_dir]  # of its tokenizer; its generator was not trained
    for row in rows.values():
        assert re.fullmatch(r"training 48 pictures \([0-9a-f]{16}\), held out 12 pictures \([0-9a-f]{16}\)", row)
    result = {"kind": "generation", "metrics": {}, "num_images": 4, "num_reference": 4, "settings": {}}
    result["settings"]["data_fingerprint"] = {"data": {"training": "9 pictures (0a)", "held out": "1 pictures (b)"}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert re.search(
        r"pictures of data +training 9 pictures \(0a\), held out 1 pictures", describe(tmp_path / "result.json")
    )
    result["settings"]["data_fingerprint"] = {"data": 3}
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert "pictures of data" not in describe(tmp_path / "result.json")


def test_a_generator(pipeline_dir):
    text = describe(pipeline_dir / "generator")
    for part in ("generator of image codes", "2 layers, width 32, 2 heads", "3 classes and text of up to 5 tokens"):
        assert part in text, part
    assert "trained for" not in text  # no figures of a run are there


def test_a_pipeline(pipeline_dir):
    text = describe(pipeline_dir)
    first, *rest = text.splitlines()
    assert first == f"{pipeline_dir}: image generation pipeline"
    for part in ("image tokenizer", "generator of image codes", "text encoder"):
        assert any(part in line for line in rest), part


@pytest.mark.parametrize("part", ["tokenizer", "generator", "text_encoder"])
def test_a_pipeline_without_a_part_says_so(part, copied):
    shutil.rmtree(copied / part)
    assert f"WITHOUT its {part}" in describe(copied)


def test_damaged_weights_are_told(copied):
    file = copied / "generator" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    for path in (copied, copied / "generator"):
        with pytest.raises(WVQError, match="is not the file that was saved"):
            describe(path)
    assert describe(copied / "text_encoder").endswith("text encoder")


def test_a_code_cache(tiny_codes_dir):
    text = describe(tiny_codes_dir)
    header = json.loads((tiny_codes_dir / "header.json").read_text())
    for part in (
        "code cache", "48 train, 12 validation", "2 a training picture", "4 x 4 a picture, K = 32",
        "0: circle, 1: cross, 2: square", header["tokenizer_hash"][:12],
    ):  # fmt: skip
        assert part in text, part
    assert any(line.split() == ["captions", "yes"] for line in text.splitlines())


def test_a_result_file(tmp_path):
    file = tmp_path / "result.json"
    metrics = {"fd_efficientnet_lite0": 512.25, "psnr_rgb": 21.5}
    floor = {"fd_efficientnet_lite0": 490.125}
    result = {"kind": "generation", "metrics": metrics, "floor": floor, "num_images": 420, "num_reference": 400}
    result |= {"settings": {"reference": {"kind": "train"}}, "warnings": ["few pictures"], "num_floor": 420}
    file.write_text(json.dumps(result))
    text = describe(file)
    assert "400 (train pictures)" in text
    assert text.endswith("warning: few pictures")
    result["metrics"]["fd_efficientnet_lite0_at_floor_n"] = 530.5
    file.write_text(json.dumps(result | {"num_floor": 210}))
    other = describe(file)  # a floor at another N stands beside the figure of its N only
    assert other.count("real against real") == 1
    assert "530.5  (real against real 490.1)" in other
    assert "generation result" in text
    assert "512.2  (real against real 490.1)" in text
    assert [line.split() for line in text.splitlines() if "psnr" in line] == [["psnr_rgb", "21.5"]]
    assert "420" in text


def test_a_run_under_way(tmp_path):
    (tmp_path / "training").mkdir()
    assert "has not ended" in describe(tmp_path)


def test_samples(pipeline_dir, tmp_path):
    pipe = ImageGenerationPipeline.from_pretrained(pipeline_dir)
    files = sample_to_folder(pipe, tmp_path / "s", num_images=3, seed=5, top_k=4, progress=False)
    rows = [line.split(maxsplit=1) for line in describe(tmp_path / "s").splitlines()[1:]]
    assert rows[0] == ["pictures", "3"]
    assert ["seeds", "from 5"] in rows
    assert ["sampling", "guidance_scale 1.5, top_k 4"] in rows  # what differs from the defaults, and no more
    files[1].unlink()
    assert "2 of 3; --resume goes on" in describe(tmp_path / "s")


def test_features_and_unfinished_evaluations(projection, pictures, picture_set, tmp_path):
    for kind in ("train", "validation"):
        dataset_features(picture_set(pictures(6)), projection, kind, 4, cache=tmp_path / "all", progress=False)
    text = describe(tmp_path / "all")
    assert "features that evaluations keep" in text
    assert text.count("features of real pictures") == 2
    assert "6 (train)" in text
    assert "16 px, center" in text
    (folder,) = (tmp_path / "all").glob("train-*")
    next(folder.glob("*.safetensors")).unlink()
    assert " of 6 (train)" in describe(folder)
    shards = FeatureShards(tmp_path / "r.json.partial", {"pipeline_weights": {}, "num_images": 12})
    with contextlib.suppress(KeyError):
        images = pictures(6)
        draw = {range(0, 4): Batch(images[:4], [0, 1, 2, 3])}.__getitem__
        stream_features(draw, range(12), projection, shards, 4)
    text = describe(tmp_path / "r.json.partial")
    assert "an evaluation that has not ended" in text
    assert "4 of 12 measured" in text


def test_archives(pictures, tmp_path):
    write_archive(tmp_path / "a.npz", [pictures(5)], 5)
    assert "5 of 16 x 16 px" in describe(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", mu=np.zeros(4), sigma=np.eye(4), mu_s=np.zeros(3), sigma_s=np.eye(3))
    rows = [line.split(maxsplit=1) for line in describe(tmp_path / "b.npz").splitlines()]
    assert ["pictures", "none"] in rows
    assert ["statistics", "of 4 Inception features"] in rows
    np.savez(tmp_path / "d.npz", more=np.zeros(4))
    with pytest.raises(DataError, match="holds neither pictures"):
        describe(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", mu=np.zeros(()))
    with pytest.raises(DataError, match="a single number"):
        describe(tmp_path / "e.npz")
    (tmp_path / "c.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"c\.npz is no \.npz file"):
        describe(tmp_path / "c.npz")


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        describe(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no pipeline, tokenizer, .*, samples or features of wvq"):
        describe(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[1]", "3", '{"kind": "generation"}', '{"kind": "x", "metrics": 3}', b"\xff\xfe\x00"]
)
def test_another_file_is_one_line(content, tmp_path):
    file = tmp_path / "some.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match="is no result file of wvq evaluate"):
        describe(file)


def test_another_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match='a model of type "bert", which is not one of wvq'):
        describe(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "result.json"])
@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_tokenizer_is_one_line_that_names_the_file(file, content, tiny_tokenizer_dir, tmp_path):
    shutil.copytree(
        tiny_tokenizer_dir, tmp_path / "t", ignore=shutil.ignore_patterns("training", "*.safetensors", "wvq_*")
    )
    (tmp_path / "t" / file).write_text(content)
    with pytest.raises(WVQError, match=file) as caught:
        describe(tmp_path / "t")
    assert len(str(caught.value).splitlines()) == 1


def test_figures_that_are_no_numbers_are_left_out(tiny_tokenizer_dir, tmp_path):
    shutil.copytree(
        tiny_tokenizer_dir, tmp_path / "t", ignore=shutil.ignore_patterns("training", "*.safetensors", "wvq_*")
    )
    (tmp_path / "t" / "result.json").write_text('{"psnr_rgb": "high", "ssim": 0.5, "images": 10}')
    assert "ssim 0.5" in describe(tmp_path / "t")
    assert "psnr_rgb" not in describe(tmp_path / "t")


def test_a_damaged_cache_is_one_line(tiny_codes_dir, tmp_path):
    (tmp_path / "header.json").write_text("{")
    with pytest.raises(WVQError, match=r"header\.json cannot be read as JSON"):
        describe(tmp_path)
