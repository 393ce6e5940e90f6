"""The condition of each sample: balanced classes, those of the reference, prompts, and every refusal."""

from collections import Counter
from types import SimpleNamespace

import pytest

from tests.eval.conftest import CLASSES
from tests.stand_ins import FakePipeline
from wvq.data.imagenet import imagenet_classes
from wvq.errors import ConfigError, DataError
from wvq.eval.samples.conditions import condition_plan, reference_choice


def test_classes_are_exactly_balanced(evaluate, labelled, projection):
    pipeline = FakePipeline()
    result = evaluate(pipeline, labelled, 12, projection)
    assert Counter(pipeline.labels) == {0: 4, 1: 4, 2: 4}
    assert result["settings"]["classes"] == "balanced"
    with pytest.raises(ConfigError, match="cannot be balanced over 3 classes; use 12 or 15, or classes"):
        evaluate(pipeline, labelled, 13, projection)


def test_chosen_classes_by_name_and_id(evaluate, labelled, projection):
    pipeline = FakePipeline()
    result = evaluate(pipeline, labelled, 8, projection, classes=["flags", 0])
    assert Counter(pipeline.names) == {"flags": 4, "animals": 4}
    assert result["settings"]["classes"] == ["flags", 0]


def test_reference_classes_are_matched_by_name(evaluate, labelled, projection):
    pipeline = FakePipeline(class_names=("food", "flags", "animals"))
    evaluate(pipeline, labelled, 30, projection, classes="reference")
    assert Counter(pipeline.names) == {"flags": 20, "animals": 5, "food": 5}


def test_the_folders_of_imagenet_are_classes_of_a_model_that_has_their_names():
    folders, names = [f"n{number:08}" for number in range(1_000)], imagenet_classes()
    pictures = SimpleNamespace(class_names=tuple(folders), labels=[387, 0, 999], captions=None)
    for own in (names, folders):
        config = FakePipeline(class_names=own).generator.config
        plan = condition_plan(config, pictures, [0, 1, 2], "reference", None, 3)
        assert plan.labels == [own[387], own[0], own[999]]
        assert list(plan.ids) == [387, 0, 999]


def test_prompts_cycle_and_captions_can_serve(evaluate, labelled, projection):
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
def test_classes_and_captions_of_the_reference_are_of_the_same_pictures(
    evaluate, partly_labelled, projection, num_images
):
    pipeline = FakePipeline()
    asked = {"classes": "reference", "prompts": "reference"}
    result = evaluate(pipeline, partly_labelled, num_images, projection, **asked)
    assert len(pipeline.labels) == len(pipeline.prompts) == num_images
    shown = [CLASSES[partly_labelled.labels[int(prompt.split()[1])]] for prompt in pipeline.prompts]
    assert pipeline.names == shown
    assert not any("captions" in line for line in result["warnings"])


def test_captions_of_the_reference_beside_other_classes_are_warned_of(evaluate, partly_labelled, projection):
    for classes, warned in (("balanced", True), (["food"], True), (None, False), ("reference", False)):
        result = evaluate(FakePipeline(), partly_labelled, 6, projection, classes=classes, prompts="reference")
        assert any("takes both from the same pictures" in line for line in result["warnings"]) == warned


def test_pictures_without_a_class_do_not_count_as_one(evaluate, pictures, picture_set, projection):
    data = picture_set(pictures(40), [-1] * 28 + [0, 1, 2] * 4, CLASSES)
    assert not any("balanced" in line for line in evaluate(FakePipeline(), data, 39, projection)["warnings"])
    data = picture_set(pictures(8), [-1] * 8, CLASSES)
    with pytest.raises(DataError, match="none of the reference pictures has a class"):
        evaluate(FakePipeline(), data, 6, projection, classes="reference")


def test_no_condition_where_the_pipeline_has_none(evaluate, labelled, projection):
    pipeline = FakePipeline(class_names=())
    result = evaluate(pipeline, labelled, 7, projection)
    assert pipeline.labels == pipeline.prompts == []
    assert result["settings"]["classes"] is None


def test_small_and_unbalanced_sets_are_warned_about(evaluate, pictures, picture_set, projection):
    data = picture_set(pictures(40), [0] * 36 + [1] * 2 + [2] * 2, CLASSES)
    warnings = evaluate(FakePipeline(), data, 36, projection)["warnings"]
    assert any("classes='reference'" in line for line in warnings)
    warnings = evaluate(FakePipeline(), data, 6, projection)["warnings"]
    assert any("samples: N = 6 is below" in line for line in warnings)


def test_the_conditions_of_a_reference_are_classes_or_else_captions():
    both, captions, none = FakePipeline(), FakePipeline(class_names=()), FakePipeline(class_names=())
    none.generator.config.text_dim = 0
    chosen = [reference_choice(pipeline.generator.config) for pipeline in (both, captions, none)]
    assert chosen == [("reference", None), (None, "reference"), (None, None)]


def test_prompts_for_a_pipeline_without_text_are_refused(evaluate, labelled, projection):
    pipeline = FakePipeline()
    pipeline.generator.config.text_dim = 0
    with pytest.raises(ConfigError, match="prompts: this pipeline is not conditional on text; leave them out"):
        evaluate(pipeline, labelled, 6, projection, prompts=["a cat"])
    assert pipeline.calls == []


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
def test_bad_conditions_are_refused(evaluate, labelled, projection, settings, error, message):
    with pytest.raises(error, match=message):
        evaluate(FakePipeline(), labelled, 6, projection, **settings)
