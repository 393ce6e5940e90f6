"""Pipeline evaluation: equal N, floors, references, warnings, stops and refusals."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.eval.conftest import CLASSES
from tests.stand_ins import FakePipeline
from wvq.errors import ConfigError, DataError
from wvq.eval.features import shards as streaming
from wvq.eval.real.archive import read_archive, write_archive
from wvq.eval.real.references import DatasetReference
from wvq.files.locks import sole_writer


def test_with_enough_pictures_the_floor_has_the_samples_n(evaluate, labelled, projection):
    result = evaluate(FakePipeline(), labelled, 15, projection)
    assert (result["num_images"], result["num_reference"], result["num_floor"]) == (15, 15, 15)
    names = {f"{name}_projection" for name in ("fd", "kd", "precision", "recall", "density", "coverage")}
    assert set(result["metrics"]) == names == set(result["floor"])
    assert result["metrics"]["fd_projection"] > result["floor"]["fd_projection"] > 0


def test_with_fewer_pictures_metrics_at_the_floors_n_are_added(evaluate, labelled, projection):
    result = evaluate(FakePipeline(), labelled, 24, projection)
    assert (result["num_images"], result["num_reference"], result["num_floor"]) == (24, 24, 15)
    assert "fd_projection_at_floor_n" in result["metrics"]
    result = evaluate(FakePipeline(), labelled, 36, projection)
    assert (result["num_reference"], result["num_floor"]) == (30, 15)
    assert any("36 samples are compared with 30 pictures" in line for line in result["warnings"])


def test_real_pictures_as_samples_score_like_the_floor(evaluate, labelled, projection, pictures):
    class Replay(FakePipeline):
        """Returns other pictures of the same distribution."""

        def __call__(self, *args, num_images, seed, **settings):
            drawn = pictures(15, seed=7)[seed : seed + num_images]
            return SimpleNamespace(images=drawn.float() / 127.5 - 1)

    noise = evaluate(FakePipeline(), labelled, 15, projection)
    replay = evaluate(Replay(), labelled, 15, projection)
    assert replay["metrics"]["fd_projection"] < 2 * replay["floor"]["fd_projection"]
    assert replay["metrics"]["fd_projection"] < noise["metrics"]["fd_projection"] / 2
    assert replay["floor"] == noise["floor"]


def test_other_pictures_are_taken_for_unreadable_ones(evaluate, labelled, projection):
    whole = evaluate(FakePipeline(), labelled, 10, projection, classes="reference", seed=2)
    order = DatasetReference(labelled).order()
    labelled.broken = (order[0], order[12])
    pipeline = FakePipeline()
    result = evaluate(pipeline, labelled, 10, projection, classes="reference", prompts="reference", seed=2)
    assert (result["num_images"], result["num_reference"], result["num_floor"]) == (10, 10, 10)
    assert (whole["num_unreadable"], result["num_unreadable"]) == (0, 2)
    assert pipeline.prompts == [labelled.captions[index] for index in order[1:11]]
    assert pipeline.names == [CLASSES[labelled.labels[index]] for index in order[1:11]]
    assert any(line.startswith("2 of 22 pictures cannot be read: ") for line in result["warnings"])


def test_inception_score_only_with_logits(evaluate, labelled, projection_with_logits):
    result = evaluate(FakePipeline(), labelled, 12, projection_with_logits)
    assert result["metrics"]["inception_score"] >= 1
    assert result["floor"]["inception_score"] >= 1


def test_bad_sets_are_refused(evaluate, labelled, projection, pictures, picture_set):
    bare = picture_set(pictures(8))
    with pytest.raises(DataError, match="at least 4 samples and 4 pictures"):
        evaluate(FakePipeline(), labelled, 3, projection)
    with pytest.raises(DataError, match="no"):
        evaluate(FakePipeline(), bare, 6, projection, prompts="reference")
    with pytest.raises(DataError, match="needs pictures with classes"):
        evaluate(FakePipeline(), bare, 6, projection, classes="reference")
    with pytest.raises(DataError, match="does not know 'animals'"):
        evaluate(FakePipeline(class_names=("x",)), labelled, 30, projection, classes="reference")
    with pytest.raises(ConfigError, match="no classes"):
        evaluate(FakePipeline(class_names=()), labelled, 6, projection, classes="balanced")
    warnings = evaluate(FakePipeline(image_size=32), labelled, 6, projection)["warnings"]
    assert "image_size: samples have 32 px, the real pictures 16 px" in warnings


def test_a_forced_reference_marks_the_result(evaluate, labelled, projection):
    result = evaluate(FakePipeline(), DatasetReference(labelled, "validation", force=True), 6, projection)
    reference = result["settings"]["reference"]
    assert (reference["kind"], reference["forced"]) == ("validation", True)
    assert any("validation pictures: not comparable" in line for line in result["warnings"])
    assert "forced" not in evaluate(FakePipeline(), labelled, 6, projection)["settings"]["reference"]


def test_numbers_of_numpy_are_numbers(evaluate, labelled, projection):
    result = evaluate(FakePipeline(), labelled, np.int64(6), projection, seed=np.int64(3))
    assert json.loads(json.dumps(result)) == json.loads(
        json.dumps(evaluate(FakePipeline(), labelled, 6, projection, seed=3))
    )


def test_a_stopped_evaluation_goes_on_and_ends_alike(evaluate, labelled, projection, tmp_path):
    class Failing(FakePipeline):
        def __call__(self, *arguments, seed, **options):
            if seed >= 10:
                raise KeyboardInterrupt
            return super().__call__(*arguments, seed=seed, **options)

    with pytest.raises(KeyboardInterrupt):
        evaluate(Failing(), labelled, 12, projection, work=tmp_path / "w")
    again = FakePipeline()
    resumed = evaluate(again, labelled, 12, projection, work=tmp_path / "w")
    assert len(again.labels) == 2  # 10 of 12 were there
    last = FakePipeline()
    evaluate(last, labelled, 12, projection, work=tmp_path / "w")
    assert not last.labels  # all were: the folder stays until the result is kept
    whole = evaluate(FakePipeline(), labelled, 12, projection)
    for name in ("metrics", "floor", "settings", "num_images"):
        assert resumed[name] == whole[name]


def test_another_evaluation_is_not_mixed_in(evaluate, labelled, projection, tmp_path):
    class Failing(FakePipeline):
        def __call__(self, *arguments, seed, **options):
            if seed >= 5:
                raise KeyboardInterrupt
            return super().__call__(*arguments, seed=seed, **options)

    with pytest.raises(KeyboardInterrupt):
        evaluate(Failing(), labelled, 12, projection, work=tmp_path / "w")
    with pytest.raises(ConfigError, match="another sampling"):
        evaluate(FakePipeline(), labelled, 12, projection, work=tmp_path / "w", temperature=0.5)
    reduced = FakePipeline()
    reduced.numerics = lambda: {**FakePipeline().numerics(), "dtype": {"generator": "bf16 linear layers"}}
    with pytest.raises(ConfigError, match="another dtype"):
        evaluate(reduced, labelled, 12, projection, work=tmp_path / "w")
    with sole_writer(tmp_path / "w"), pytest.raises(ConfigError, match="being written by another run"):
        evaluate(FakePipeline(), labelled, 12, projection, work=tmp_path / "w")


def test_several_processes_need_a_result_file_before_anything_is_read(evaluate, labelled, projection, monkeypatch):
    state = SimpleNamespace(num_processes=2, process_index=0)
    monkeypatch.setattr(streaming, "processes", lambda: state)
    labelled.broken = range(30)  # reading would fail
    with pytest.raises(ConfigError, match=r"several processes needs a result file \(--out\)"):
        evaluate(FakePipeline(), labelled, 12, projection)


def test_an_archive_can_be_the_reference(evaluate, labelled, projection, pictures, tmp_path):
    write_archive(tmp_path / "r.npz", [pictures(24, seed=5)], 24)
    archive = read_archive(tmp_path / "r.npz")
    result = evaluate(FakePipeline(), archive, 12, projection)
    assert (result["num_reference"], result["num_floor"]) == (12, 12)
    assert result["settings"]["reference"]["file"] == "r.npz"
    result = evaluate(FakePipeline(), archive, 36, projection)
    assert any("the metrics compare 36 samples with 24 pictures of r.npz" in line for line in result["warnings"])
    with pytest.raises(DataError, match="needs pictures with classes"):
        evaluate(FakePipeline(), archive, 12, projection, classes="reference")


def test_the_cache_changes_nothing(evaluate, labelled, projection, tmp_path):
    plain = evaluate(FakePipeline(), labelled, 12, projection)
    for _ in range(2):
        cached = evaluate(FakePipeline(), DatasetReference(labelled, cache=tmp_path / "cache"), 12, projection)
        for name in ("metrics", "floor", "settings", "warnings"):
            assert cached[name] == plain[name]


class CountLetters:
    """Stands in for a CLIP model: the length of each text."""

    def __call__(self, images, texts):
        assert len(images) == len(texts)
        return torch.tensor([float(len(text)) for text in texts])

    def description(self):
        return {"clip": "letters", "clip_sha256": "0"}


def test_clip_scores_are_averaged_over_all_samples(evaluate, labelled, projection):
    pipeline = FakePipeline(class_names=())
    result = evaluate(pipeline, labelled, 7, projection, prompts=["a", "four", "red"], clip=CountLetters())
    assert result["metrics"]["clip_score"] == pytest.approx((1 + 4 + 3 + 1 + 4 + 3 + 1) / 7)
    assert result["settings"]["clip"] == "letters"
    with pytest.raises(ConfigError, match="needs prompts"):
        evaluate(pipeline, labelled, 7, projection, clip=CountLetters())


def test_several_evaluations_take_the_features_of_their_reference_once(evaluate, labelled, projection):
    real = DatasetReference(labelled)
    first = evaluate(FakePipeline(), real, 12, projection)
    pool = real.pool(projection, 12)
    again = evaluate(FakePipeline(), real, 12, projection, temperature=0.5)
    assert real.pool(projection, 12) is pool
    assert again["floor"] == first["floor"]
    other = evaluate(FakePipeline(), labelled, 12, projection, seed=7)
    assert other["settings"]["reference"] == first["settings"]["reference"]  # so that seeds compare
    assert other["settings"]["samples"] != first["settings"]["samples"]


def test_statistics_without_pictures_have_no_floor_and_say_so(
    evaluate, labelled, projection_with_logits, pictures, tmp_path
):
    network = projection_with_logits
    network.name = "inception"
    features = network(pictures(24, seed=5)).features.double()
    np.savez(tmp_path / "r.npz", mu=features.mean(0), sigma=np.cov(features.numpy(), rowvar=False))
    result = evaluate(FakePipeline(), read_archive(tmp_path / "r.npz"), 12, network)
    assert result["floor"] == {}
    assert any(line.startswith("no floor: r.npz holds statistics and no pictures") for line in result["warnings"])


def test_a_refused_evaluation_leaves_nothing_in_the_way(evaluate, labelled, projection, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        evaluate(FakePipeline(), labelled, 6, projection, work=tmp_path / "w", save_samples=tmp_path / "file" / "s")
    assert not (tmp_path / "w").exists()
    evaluate(FakePipeline(), labelled, 6, projection, work=tmp_path / "w")
