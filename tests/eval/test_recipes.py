"""The recipes of evaluations refuse, before anything is loaded, what does not go together."""

from dataclasses import replace

import pytest

from wvq.errors import ConfigError
from wvq.eval.recipes import AtomicRecipe, GenerationEvaluation, ReconstructionEvaluation

SAMPLES, TOKENIZER = GenerationEvaluation(pipeline="p"), ReconstructionEvaluation(tokenizer="t")


def test_a_recipe_of_defaults_is_sound():
    SAMPLES.check()
    TOKENIZER.check()
    AtomicRecipe().check()
    assert (SAMPLES.kind, TOKENIZER.kind) == ("train", "validation")


def test_the_choice_of_classes():
    assert SAMPLES.class_choice == "auto"
    assert replace(SAMPLES, classes="none").class_choice is None
    assert replace(SAMPLES, classes="reference").class_choice == "reference"


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (SAMPLES, {"out": "a.npz"}, r"out: a\.npz must be a JSON file"),
        (TOKENIZER, {"out": "a.html"}, r"out: a\.html must be a JSON file"),
        (SAMPLES, {"inception_weights": "w", "feature_network": "efficientnet_lite0"}, "goes with the feature network"),
        (SAMPLES, {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        (TOKENIZER, {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        (SAMPLES, {"seed": -1}, r"seed must be an integer in \[0, 2\*\*63\), got -1"),
        (SAMPLES, {"seed": 2**63}, r"seed must be an integer in \[0, 2\*\*63\), got 9223372036854775808"),
        (SAMPLES, {"sweep": "guidance=1:2:1"}, 'did you mean "guidance_scale"'),
        (AtomicRecipe(), {"shifts": 3}, "shifts must be a list of one or more numbers, or null, got 3"),
        (AtomicRecipe(), {"quantizers": []}, r"quantizers must be a list of one or more names, or null, got \[\]"),
        (SAMPLES, {"num_images": 3}, "num_images must be an integer of at least 4, or null, got 3"),
        (SAMPLES, {"classes": "ballanced"}, r'classes must be auto, .* or none \(did you mean "balanced"\?\), got'),
        (SAMPLES, {"classes": "hearts"}, "got 'hearts'; for samples of some classes alone name these in data.classes"),
        (SAMPLES, {"reference": "."}, r"reference: \. is no \.npz file .*; pictures of a folder .* as --data\.path"),
        (SAMPLES, {"reference": "a.parquet"}, r"pictures of a folder or a data set are given as --data\.path"),
        (SAMPLES, {"prompts": "prompts.txt"}, "prompts must be one of reference, or null, got 'prompts.txt'"),
        (SAMPLES, {"feature_network": "incepton"}, r'feature_network must be one of .*\(did you mean "inception"\?\)'),
        (TOKENIZER, {"feature_network": "vgg"}, "feature_network must be one of .*, got 'vgg'"),
        (SAMPLES, {"sampling": {"topk": 3}}, r'"topk" is no sampling setting \(did you mean "top_k"\?\)'),
        (SAMPLES, {"sampling": {"top_p": 2}}, r"top_p must be in \(0, 1\]"),
        (AtomicRecipe(), {"seed": -1}, r"seed must be an integer in \[0, 2\*\*32\), got -1"),
        (AtomicRecipe(), {"progress": "no"}, "progress must be true or false, got 'no'"),
        (SAMPLES, {"resize": 0}, "resize must be from 1 to 4,096 pixels, got 0"),
        (SAMPLES, {"reference": "r.npz"}, "--reference-kind must say what r.npz holds"),
        (SAMPLES, {"reference_kind": "validation"}, "--force-reference"),
        (SAMPLES, {"reference_kind": "test"}, "reference_kind must be train or validation, not 'test'"),
        (SAMPLES, {"clip": "model"}, "a CLIP score needs prompts"),
        (SAMPLES, {"preset": "llamagen_b_256"}, "give --reference FILE.npz"),
        (TOKENIZER, {"reference": "r.npz"}, "reconstructions need the pictures themselves"),
        (TOKENIZER, {"reference_kind": "train"}, "--force-reference"),
    ],
)
def test_what_does_not_go_together_is_one_line(recipe, changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(recipe, **changes).check()
