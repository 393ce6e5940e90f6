"""Pipeline evaluation: balanced classes, prompts, equal N, floors, seeds and every refusal."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from wvq.errors import ConfigError, DataError
from wvq.eval.features import shards as streaming
from wvq.eval.generation import evaluate_generation
from wvq.eval.real.archive import read_archive, write_archive
from wvq.eval.real.references import RealPictures
from wvq.eval.samples.drawing import resized, sample_pictures
from wvq.files.locks import sole_writer
from wvq.generator.sampling_settings import SamplingSettings

CLASSES = ("animals", "flags", "food")


class FakePipeline:
    """Draws a seeded noise picture a sample, tinted by its class; records what it was asked for."""

    def __init__(self, class_names=CLASSES, image_size=16):
        self.class_names = class_names
        self.generator = SimpleNamespace(config=SimpleNamespace(num_classes=len(class_names)))
        self.sampling = SamplingSettings(temperature=0.7)
        self.image_size = image_size
        self.labels, self.prompts, self.calls = [], [], []

    def former_hashes(self):
        return {"generator": "a", "tokenizer": "b"}

    def weights_hashes(self, former):
        return {name: f"{value} and config" for name, value in former.items()}

    def numerics(self):
        return {"dtype": {"generator": "float32"}, "averaging_decay": {"generator": 0.5}, "device": "cpu"}

    def __call__(self, class_labels=None, prompt=None, *, num_images, seed, output_type, batch_size, **sampling):
        assert output_type == "pt"
        self.labels += class_labels or []
        self.prompts += prompt or []
        self.calls.append(sampling)
        pictures = []
        for offset in range(num_images):
            generator = torch.Generator().manual_seed(seed + offset)
            pictures.append(torch.rand(3, self.image_size, self.image_size, generator=generator) * 2 - 1)
        return SimpleNamespace(images=torch.stack(pictures))


def evaluate(pipeline, data, num_images, network, **settings):
    return evaluate_generation(
        pipeline, data, num_images, feature_network=network, batch_size=5, progress=False, **settings
    )


@pytest.fixture
def labelled(pictures, picture_set):
    labels = [0, 1, 1, 1, 2, 1] * 5
    captions = [f"picture {index}" for index in range(30)]
    return picture_set(pictures(30), labels, CLASSES, captions)


def test_classes_are_exactly_balanced(labelled, projection):
    pipeline = FakePipeline()
    result = evaluate(pipeline, labelled, 12, projection)
    assert Counter(pipeline.labels) == {0: 4, 1: 4, 2: 4}
    assert result["settings"]["classes"] == "balanced"
    with pytest.raises(ConfigError, match="cannot be balanced over 3 classes; use 12 or 15, or classes"):
        evaluate(pipeline, labelled, 13, projection)


def test_chosen_classes_by_name_and_id(labelled, projection):
    pipeline = FakePipeline()
    result = evaluate(pipeline, labelled, 8, projection, classes=["flags", 0])
    assert Counter(pipeline.labels) == {"flags": 4, 0: 4}
    assert result["settings"]["classes"] == ["flags", 0]


def test_reference_classes_are_matched_by_name(labelled, projection):
    pipeline = FakePipeline(class_names=("food", "flags", "animals"))
    evaluate(pipeline, labelled, 30, projection, classes="reference")
    assert Counter(pipeline.labels) == {"flags": 20, "animals": 5, "food": 5}


def test_prompts_cycle_and_captions_can_serve(labelled, projection):
    pipeline = FakePipeline(class_names=())
    evaluate(pipeline, labelled, 5, projection, prompts=["red apple", "blue car"])
    assert pipeline.prompts == ["red apple", "blue car"] * 2 + ["red apple"]
    assert pipeline.labels == []
    pipeline = FakePipeline(class_names=())
    evaluate(pipeline, labelled, 6, projection, prompts="reference")
    assert len(set(pipeline.prompts)) == 6
    assert set(pipeline.prompts) <= set(labelled.captions)


@pytest.fixture
def partly_labelled(pictures, picture_set):
    """A third of the pictures has no class; each caption names its picture."""
    labels = [0, -1, 1, 2, 1, -1] * 5
    captions = [f"picture {index}" for index in range(30)]
    return picture_set(pictures(30), labels, CLASSES, captions)


@pytest.mark.parametrize("num_images", [12, 45])
def test_classes_and_captions_of_the_reference_are_of_the_same_pictures(partly_labelled, projection, num_images):
    pipeline = FakePipeline()
    asked = {"classes": "reference", "prompts": "reference"}
    result = evaluate(pipeline, partly_labelled, num_images, projection, **asked)
    assert len(pipeline.labels) == len(pipeline.prompts) == num_images
    shown = [CLASSES[partly_labelled.labels[int(prompt.split()[1])]] for prompt in pipeline.prompts]
    assert pipeline.labels == shown
    assert not any("captions" in line for line in result["warnings"])


def test_captions_of_the_reference_beside_other_classes_are_warned_of(partly_labelled, projection):
    for classes, warned in (("balanced", True), (["food"], True), (None, False), ("reference", False)):
        result = evaluate(FakePipeline(), partly_labelled, 6, projection, classes=classes, prompts="reference")
        assert any("takes both from the same pictures" in line for line in result["warnings"]) == warned


def test_pictures_without_a_class_do_not_count_as_one(pictures, picture_set, projection):
    data = picture_set(pictures(40), [-1] * 28 + [0, 1, 2] * 4, CLASSES)
    assert not any("balanced" in line for line in evaluate(FakePipeline(), data, 39, projection)["warnings"])
    data = picture_set(pictures(8), [-1] * 8, CLASSES)
    with pytest.raises(DataError, match="none of the reference pictures has a class"):
        evaluate(FakePipeline(), data, 6, projection, classes="reference")


def test_no_condition_where_the_pipeline_has_none(labelled, projection):
    pipeline = FakePipeline(class_names=())
    result = evaluate(pipeline, labelled, 7, projection)
    assert pipeline.labels == pipeline.prompts == []
    assert result["settings"]["classes"] is None


def test_with_enough_pictures_the_floor_has_the_samples_n(labelled, projection):
    result = evaluate(FakePipeline(), labelled, 15, projection)
    assert (result["num_images"], result["num_reference"], result["num_floor"]) == (15, 15, 15)
    names = {f"{name}_projection" for name in ("fd", "kd", "precision", "recall", "density", "coverage")}
    assert set(result["metrics"]) == names == set(result["floor"])
    assert result["metrics"]["fd_projection"] > result["floor"]["fd_projection"] > 0


def test_with_fewer_pictures_metrics_at_the_floors_n_are_added(labelled, projection):
    result = evaluate(FakePipeline(), labelled, 24, projection)
    assert (result["num_images"], result["num_reference"], result["num_floor"]) == (24, 24, 15)
    assert "fd_projection_at_floor_n" in result["metrics"]
    result = evaluate(FakePipeline(), labelled, 36, projection)
    assert (result["num_reference"], result["num_floor"]) == (30, 15)
    assert any("36 samples are compared with 30 pictures" in line for line in result["warnings"])


def test_real_pictures_as_samples_score_like_the_floor(labelled, projection, pictures):
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


def test_other_pictures_are_taken_for_unreadable_ones(labelled, projection):
    whole = evaluate(FakePipeline(), labelled, 10, projection, classes="reference", seed=2)
    order = RealPictures(labelled).order()
    labelled.broken = (order[0], order[12])
    pipeline = FakePipeline()
    result = evaluate(pipeline, labelled, 10, projection, classes="reference", prompts="reference", seed=2)
    assert (result["num_images"], result["num_reference"], result["num_floor"]) == (10, 10, 10)
    assert (whole["num_unreadable"], result["num_unreadable"]) == (0, 2)
    assert pipeline.prompts == [labelled.captions[index] for index in order[1:11]]
    assert pipeline.labels == [CLASSES[labelled.labels[index]] for index in order[1:11]]
    assert any(line.startswith("2 of 22 pictures cannot be read: ") for line in result["warnings"])


def test_samples_do_not_depend_on_the_batch_size():
    whole, parts = (torch.cat(list(sample_pictures(FakePipeline(), 7, batch_size=size))) for size in (7, 3))
    assert whole.dtype == torch.uint8
    assert torch.equal(whole, parts)


def test_inception_score_only_with_logits(labelled, projection_with_logits):
    result = evaluate(FakePipeline(), labelled, 12, projection_with_logits)
    assert result["metrics"]["inception_score"] >= 1
    assert result["floor"]["inception_score"] >= 1


def test_settings_reach_the_pipeline_and_the_result(labelled, projection):
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


def test_small_and_unbalanced_sets_are_warned_about(pictures, picture_set, projection):
    data = picture_set(pictures(40), [0] * 36 + [1] * 2 + [2] * 2, CLASSES)
    warnings = evaluate(FakePipeline(), data, 36, projection)["warnings"]
    assert any("classes='reference'" in line for line in warnings)
    warnings = evaluate(FakePipeline(), data, 6, projection)["warnings"]
    assert any("samples: N = 6 is below" in line for line in warnings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"classes": ["birds"]}, ConfigError, 'class "birds" is unknown'),
        ({"classes": [3]}, ConfigError, "class id 3 is out of range"),
        ({"classes": []}, ConfigError, "empty"),
        ({"classes": "all"}, ConfigError, "classes must be"),
        ({"prompts": "a cat"}, ConfigError, "prompts must be .reference."),
        ({"prompts": []}, ConfigError, "empty"),
    ],
)
def test_bad_conditions_are_refused(labelled, projection, settings, error, message):
    with pytest.raises(error, match=message):
        evaluate(FakePipeline(), labelled, 6, projection, **settings)


def test_bad_sets_are_refused(labelled, projection, pictures, picture_set):
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


def test_samples_are_held_against_training_pictures_only(labelled, projection):
    with pytest.raises(ConfigError, match=r"takes a train reference, and this one is validation: .*--force-reference"):
        RealPictures(labelled, "validation")
    with pytest.raises(ConfigError, match="reference_kind must be train or validation, not 'test'"):
        RealPictures(labelled, "test")
    result = evaluate(FakePipeline(), RealPictures(labelled, "validation", force=True), 6, projection)
    reference = result["settings"]["reference"]
    assert (reference["kind"], reference["forced"]) == ("validation", True)
    assert any("validation pictures: not comparable" in line for line in result["warnings"])
    assert "forced" not in evaluate(FakePipeline(), labelled, 6, projection)["settings"]["reference"]


def test_a_stopped_evaluation_goes_on_and_ends_alike(labelled, projection, tmp_path):
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


def test_another_evaluation_is_not_mixed_in(labelled, projection, tmp_path):
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


@pytest.mark.parametrize("name", ["pngs", "samples.npz"])
def test_what_is_there_is_not_overwritten_at_a_second_try(name, labelled, projection, tmp_path):
    target = tmp_path / name
    if name == "pngs":
        target.mkdir()
    (target / "000000.png" if name == "pngs" else target).write_bytes(b"mine")
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"{name} already holds pictures|{name} is there already"):
            evaluate(FakePipeline(), labelled, 12, projection, work=tmp_path / "w", save_samples=target)
    assert (target / "000000.png" if name == "pngs" else target).read_bytes() == b"mine"


def test_several_processes_need_a_result_file_before_anything_is_read(labelled, projection, monkeypatch):
    state = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    monkeypatch.setattr(streaming, "processes", lambda: state)
    labelled.broken = range(30)  # reading would fail
    with pytest.raises(ConfigError, match=r"several processes needs a result file \(--out\)"):
        evaluate(FakePipeline(), labelled, 12, projection)


def test_samples_can_be_kept_as_pictures_or_as_an_archive(labelled, projection, tmp_path):
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


def test_an_archive_can_be_the_reference(labelled, projection, pictures, tmp_path):
    write_archive(tmp_path / "r.npz", [pictures(24, seed=5)], 24)
    archive = read_archive(tmp_path / "r.npz")
    result = evaluate(FakePipeline(), archive, 12, projection)
    assert (result["num_reference"], result["num_floor"]) == (12, 12)
    assert result["settings"]["reference"]["file"] == "r.npz"
    result = evaluate(FakePipeline(), archive, 36, projection)
    assert any("the metrics compare 36 samples with 24 pictures of r.npz" in line for line in result["warnings"])
    with pytest.raises(DataError, match="needs pictures with classes"):
        evaluate(FakePipeline(), archive, 12, projection, classes="reference")


def test_the_cache_changes_nothing(labelled, projection, tmp_path):
    plain = evaluate(FakePipeline(), labelled, 12, projection)
    for _ in range(2):
        cached = evaluate(FakePipeline(), RealPictures(labelled, cache=tmp_path / "cache"), 12, projection)
        for name in ("metrics", "floor", "settings", "warnings"):
            assert cached[name] == plain[name]


class CountLetters:
    """Stands in for a CLIP model: the length of each text."""

    def __call__(self, images, texts):
        assert len(images) == len(texts)
        return torch.tensor([float(len(text)) for text in texts])

    def description(self):
        return {"clip": "letters", "clip_sha256": "0"}


def test_clip_scores_are_averaged_over_all_samples(labelled, projection):
    pipeline = FakePipeline(class_names=())
    result = evaluate(pipeline, labelled, 7, projection, prompts=["a", "four", "red"], clip=CountLetters())
    assert result["metrics"]["clip_score"] == pytest.approx((1 + 4 + 3 + 1 + 4 + 3 + 1) / 7)
    assert result["settings"]["clip"] == "letters"
    with pytest.raises(ConfigError, match="needs prompts"):
        evaluate(pipeline, labelled, 7, projection, clip=CountLetters())


def test_several_evaluations_take_the_features_of_their_reference_once(labelled, projection):
    real = RealPictures(labelled)
    first = evaluate(FakePipeline(), real, 12, projection)
    pool = real.pool(projection, 12)
    again = evaluate(FakePipeline(), real, 12, projection, temperature=0.5)
    assert real.pool(projection, 12) is pool
    assert again["floor"] == first["floor"]
    other = evaluate(FakePipeline(), labelled, 12, projection, seed=7)
    assert other["settings"]["reference"] == first["settings"]["reference"]  # so that seeds compare
    assert other["settings"]["samples"] != first["settings"]["samples"]


def test_samples_can_be_resized_before_they_are_measured(labelled, projection, tmp_path):
    result = evaluate(FakePipeline(image_size=32), labelled, 6, projection, resize=16, save_samples=tmp_path / "s.npz")
    assert result["settings"]["samples"]["image_size"] == 16
    assert result["settings"]["resize"] == 16
    assert result["settings"]["resize_filter"].startswith("bicubic")
    assert not any(line.startswith("image_size") for line in result["warnings"])
    drawn = next(sample_pictures(FakePipeline(image_size=32), 6, list("abcabc")))
    with np.load(tmp_path / "s.npz") as stored:
        assert stored["arr_0"].shape == (6, 16, 16, 3)
    assert drawn.shape[-1] == 32
    with pytest.raises(ConfigError, match="resize must be from 1 to 4,096 pixels, got 0"):
        evaluate(FakePipeline(), labelled, 6, projection, resize=0)


def test_resizing_keeps_what_a_bicubic_filter_keeps():
    ramp = torch.linspace(-1, 1, 24).expand(1, 3, 24, 24)
    small = resized(ramp, 16)
    centres = (torch.arange(16) + 0.5) * 24 / 16 - 0.5  # half-pixel centres; a linear ramp stays one
    torch.testing.assert_close(small[0, 0, 0, 2:-2], (centres / 23 * 2 - 1)[2:-2], atol=5e-3, rtol=0)
    assert resized(ramp, 24) is ramp
    assert resized(ramp, None) is ramp


def test_statistics_without_pictures_have_no_floor_and_say_so(labelled, projection_with_logits, pictures, tmp_path):
    network = projection_with_logits
    network.name = "inception"
    features = network(pictures(24, seed=5)).features.double()
    np.savez(tmp_path / "r.npz", mu=features.mean(0), sigma=np.cov(features.numpy(), rowvar=False))
    result = evaluate(FakePipeline(), read_archive(tmp_path / "r.npz"), 12, network)
    assert result["floor"] == {}
    assert any(line.startswith("no floor: r.npz holds statistics and no pictures") for line in result["warnings"])


def test_a_refused_evaluation_leaves_nothing_in_the_way(labelled, projection, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        evaluate(FakePipeline(), labelled, 6, projection, work=tmp_path / "w", save_samples=tmp_path / "file" / "s")
    assert not (tmp_path / "w").exists()
    evaluate(FakePipeline(), labelled, 6, projection, work=tmp_path / "w")
