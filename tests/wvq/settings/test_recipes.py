"""Recipes: ranges of every field, YAML with overrides, one clear line for each mistake, and the shipped ones."""

import contextlib
import re
from dataclasses import asdict, fields
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

from wvq.app.recipes import QuickstartRecipe
from wvq.errors import ConfigError
from wvq.eval.recipes import AtomicRecipe, EvaluationRecipe, GenerationEvaluation, ReconstructionEvaluation
from wvq.generator.kinds import CONFIGS
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe, ObjectiveConfig
from wvq.settings.data import DataConfig
from wvq.settings.parser import Parser, load_recipe, recipe_file, recipe_of, shipped_recipes
from wvq.settings.train import TrainConfig
from wvq.tokenizer.configuration import WassersteinVQConfig
from wvq.tokenizer.recipes import (
    DiscriminatorConfig,
    ExportRecipe,
    ImportCodesRecipe,
    LossConfig,
    TokenizerRecipe,
    TokenizerTrainConfig,
)

# Kind of layout by a word in the name of a generator's recipe; grid by default.
LAYOUTS = {"product": "product", "next_scale": "multi-scale"}


@pytest.mark.parametrize(
    "settings", [TokenizerRecipe(), ExportRecipe(), GeneratorRecipe(), QuickstartRecipe()], ids=type
)
def test_defaults_are_in_range(settings):
    settings.check()


OUT_OF_RANGE = [
    (TrainConfig, "train.images", 0),
    (TrainConfig, "train.batch_size", -1),
    (TrainConfig, "train.gradient_accumulation_steps", 0),
    (TrainConfig, "train.learning_rate", 0.0),
    (TrainConfig, "train.learning_rate", float("nan")),
    (TokenizerTrainConfig, "train.codebook_learning_rate", -0.1),
    (TokenizerTrainConfig, "train.scale_conv_learning_rate", 0.0),
    (TokenizerTrainConfig, "train.codebook_schedule", "cosine"),
    (TokenizerTrainConfig, "train.final_alignment", 1.5),
    (TrainConfig, "train.schedule", "cosin"),
    (TrainConfig, "train.final_learning_rate", 1.5),
    (TrainConfig, "train.warmup_images", -1),
    (TrainConfig, "train.beta1", 1.0),
    (TrainConfig, "train.beta2", -0.1),
    (TrainConfig, "train.weight_decay", -0.1),
    (TrainConfig, "train.clip_norm", -1.0),
    (TrainConfig, "train.ema_decay", 1.0),
    (TrainConfig, "train.mixed_precision", "fp8"),
    (TrainConfig, "train.max_minutes", 0.0),
    (TrainConfig, "train.log_every", 0),
    (TrainConfig, "train.evaluate_every", -1),
    (TrainConfig, "train.save_every", -1),
    (TrainConfig, "train.keep_checkpoints", 0),
    (TrainConfig, "train.num_workers", -1),
    (TrainConfig, "train.seed", -1),
    (DataConfig, "data.validation_fraction", 1.0),
    (DataConfig, "data.image_size", 0),
    (DataConfig, "data.shuffle_buffer", 0),
    (DataConfig, "data.image_size", [16, 0]),
    (DataConfig, "data.image_size", [16, 24, 32]),
    (DataConfig, "data.image_size", "16 by 24"),
    (DataConfig, "data.fit", "stretch"),
    (DataConfig, "data.pad_color", "red"),
    (DataConfig, "data.classes", "cat"),
    (DataConfig, "data.crop", "middle"),
    (DataConfig, "data.min_crop_fraction", 0.0),
    (DataConfig, "data.crop_scales", [0.5]),
    (DataConfig, "data.seed", -1),
    (DataConfig, "data.unreadable", "drop"),
    (DataConfig, "data.layout", "folders"),
    (LossConfig, "loss.l1_weight", -1.0),
    (LossConfig, "loss.l2_weight", -1.0),
    (LossConfig, "loss.perceptual_weight", -1.0),
    (LossConfig, "loss.feature_weight", -1.0),
    (LossConfig, "loss.perceptual_network", "vgg"),
    (ExportRecipe, "num_crops", 0),
    (ExportRecipe, "batch_size", 0),
    (ConditionConfig, "condition.text_length", 0),
    (ConditionConfig, "condition.class_dropout", 1.0),
    (ConditionConfig, "condition.text_dropout", -0.1),
    (ConditionConfig, "condition.joint_dropout", 1.0),
    (ConditionConfig, "condition.text_cleaning", "upper"),
    (ConditionConfig, "condition.text_cache", "ram"),
    (DiscriminatorConfig, "discriminator.network", "stylegan"),
    (DiscriminatorConfig, "discriminator.loss", "wgan"),
    (DiscriminatorConfig, "discriminator.base_channels", 0),
    (DiscriminatorConfig, "discriminator.num_layers", 0),
    (DiscriminatorConfig, "discriminator.backbone_layers", []),
    (DiscriminatorConfig, "discriminator.weight", -0.5),
    (DiscriminatorConfig, "discriminator.max_adaptive_weight", 0.0),
    (DiscriminatorConfig, "discriminator.start_images", -1),
    (DiscriminatorConfig, "discriminator.generator_start_images", -1),
    (DiscriminatorConfig, "discriminator.ramp_images", -1),
    (DiscriminatorConfig, "discriminator.lecam_weight", -1.0),
    (DiscriminatorConfig, "discriminator.r1_weight", -1.0),
    (DiscriminatorConfig, "discriminator.r1_interval", 0),
    (DiscriminatorConfig, "discriminator.consistency_weight", -1.0),
    (DiscriminatorConfig, "discriminator.learning_rate", 0.0),
    (DiscriminatorConfig, "discriminator.beta1", 1.0),
    (DiscriminatorConfig, "discriminator.beta2", 1.0),
    (DiscriminatorConfig, "discriminator.weight_decay", -0.1),
    (ObjectiveConfig, "objective.label_smoothing", 1.0),
    (ObjectiveConfig, "objective.random_order", -0.1),
    (ObjectiveConfig, "objective.order_anneal", [0.5]),
    (QuickstartRecipe, "minutes", 0.0),
    (QuickstartRecipe, "seed", -1),
    (QuickstartRecipe, "fit", "stretch"),
]


@pytest.mark.parametrize(("kind", "name", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_names_its_field_and_its_range(kind, name, value):
    with pytest.raises(
        ConfigError, match=rf"^{name} must be (an?|at least|in|one|two) .*, got {re.escape(repr(value))}$"
    ):
        kind(**{name.rpartition(".")[2]: value}).check()


GROUPS = [
    TrainConfig,
    TokenizerTrainConfig,
    DataConfig,
    LossConfig,
    DiscriminatorConfig,
    ConditionConfig,
    ObjectiveConfig,
]


@pytest.mark.parametrize("kind", GROUPS)
def test_every_number_and_choice_has_a_range(kind):
    """A field added without a check is found here."""
    checked = {name.rpartition(".")[2] for each, name, _ in OUT_OF_RANGE if issubclass(kind, each)}
    free = {name for name, value in asdict(kind()).items() if isinstance(value, bool)}  # a flag has no range
    free |= {"perceptual_weights", "backbone", "text_encoder"}  # a path; whether it exists is asked when it is read
    free |= {"path", "subset", "train_split", "validation_split"}  # compared with the data
    free |= {"image_column", "label_column", "caption_column"}
    assert set(asdict(kind())) - checked - free == set()


@pytest.mark.parametrize("kind", GROUPS)
def test_a_value_of_another_type_is_out_of_range_too(kind):
    """From Python; a recipe file and the command line are typed by the parser already."""
    for name in [field.name for field in fields(kind) if field.type.startswith(("int", "float", "bool"))]:
        with pytest.raises(ConfigError, match=rf"\.{name} must be .*, got '1'$"):
            kind(**{name: "1"}).check()


@pytest.mark.parametrize(
    ("recipe", "group"),
    [
        (TokenizerRecipe(data=DataConfig(image_size=0)), "data.image_size"),
        (TokenizerRecipe(loss=LossConfig(l1_weight=-1)), "loss.l1_weight"),
        (TokenizerRecipe(discriminator=DiscriminatorConfig(r1_interval=0)), "discriminator.r1_interval"),
        (TokenizerRecipe(train=TokenizerTrainConfig(batch_size=0)), "train.batch_size"),
        (ExportRecipe(data=DataConfig(seed=-1)), "data.seed"),
        (GeneratorRecipe(condition=ConditionConfig(text_length=0)), "condition.text_length"),
        (GeneratorRecipe(objective=ObjectiveConfig(random_order=2)), "objective.random_order"),
        (GeneratorRecipe(train=TrainConfig(batch_size=0)), "train.batch_size"),
    ],
)
def test_a_recipe_checks_its_groups(recipe, group):
    with pytest.raises(ConfigError, match=rf"^{group} must be"):
        recipe.check()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (TokenizerRecipe(train=TrainConfig()), "^train must be a TokenizerTrainConfig, got a TrainConfig$"),
        (GeneratorRecipe(train=TokenizerTrainConfig()), "^train must be a TrainConfig, got a TokenizerTrainConfig$"),
        (GeneratorRecipe(objective=ObjectiveConfig(order_anneal=0.5)), r"^objective\.order_anneal must be two shares"),
        (GeneratorRecipe(objective=ObjectiveConfig(order_anneal=["a", "b"])), r"^objective\.order_anneal must be two"),
        (TokenizerRecipe(discriminator=DiscriminatorConfig(backbone_layers=3)), "backbone_layers must be at least one"),
    ],
)
def test_a_value_of_another_type_is_one_clear_error(recipe, message):
    with pytest.raises(ConfigError, match=message):
        recipe.check()


KINDS_OF_VALUES = [None, [], {}, "a", 1.5, -1, True, object(), [object()], {1: 2}]
RECIPES = {
    kind: list(needed)
    for kind, *needed in [
        (TokenizerRecipe,),
        (ExportRecipe,),
        (ImportCodesRecipe, "source"),
        (GeneratorRecipe,),
        (QuickstartRecipe,),
        (AtomicRecipe,),
        (ReconstructionEvaluation, "tokenizer"),
        (GenerationEvaluation, "pipeline"),
        *((kind,) for kind in GROUPS),
    ]
}


def _is(value, kind):
    """Whether a value is of an annotated type; a number may stand for a float, a tuple for a list."""
    if get_origin(kind) in (Union, UnionType):
        return any(_is(value, one) for one in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list | tuple) and all(_is(one, get_args(kind)[0]) for one in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is(key, get_args(kind)[0]) for key in value)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return kind is Any or type(value) is kind


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, field.name) for kind in RECIPES for field in fields(kind)], ids=lambda x: str(x)
)
def test_a_field_takes_values_of_its_type_alone(kind, name):
    """Any other value is one line that names the field."""
    given = dict.fromkeys(RECIPES[kind], "somewhere")
    for value in KINDS_OF_VALUES:
        recipe = kind(**given | {name: value})
        if _is(value, get_type_hints(kind)[name]):
            with contextlib.suppress(ConfigError):  # it may be out of range
                recipe.check()
        else:
            with pytest.raises(ConfigError, match=rf"^(\w+\.)?{name} must be .*, got .*$"):
                recipe.check()


# ---- YAML


@pytest.fixture
def write(tmp_path):
    def make(text):
        file = tmp_path / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return make


def test_fields_that_are_not_given_keep_their_defaults(write):
    recipe = load_recipe(TokenizerRecipe, write("data:\n  path: mine\ntrain:\n  learning_rate: 1e-3\n"))
    assert recipe == TokenizerRecipe(data=DataConfig(path="mine"), train=TokenizerTrainConfig(learning_rate=1e-3))
    assert type(recipe.data) is DataConfig
    assert type(recipe.train) is TokenizerTrainConfig


def test_overrides_by_dotted_name(write):
    file = write("out: here\nmodel:\n  num_codes: 8\n  code_dim: 3\ntrain:\n  images: 10\n")
    overrides = {"train.images": 20, "out": "there", "model.num_codes": 16, "model.quantizer": "vanilla"}
    recipe = load_recipe(TokenizerRecipe, file, overrides)
    assert recipe.train.images == 20
    assert recipe.out == "there"
    assert recipe.model == {"num_codes": 16, "code_dim": 3, "quantizer": "vanilla"}


def test_a_saved_recipe_loads_again(write):
    recipe = TokenizerRecipe(
        out="größer",
        data=DataConfig(classes=["a", "no"], flip=True),
        model={"channel_multipliers": [1, 2.5], "commitment_weight": 1e-5, "attention": False},
        train=TokenizerTrainConfig(learning_rate=3e-5, mixed_precision="no", max_minutes=None),
    )
    file = write(yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True))
    assert load_recipe(TokenizerRecipe, file) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  imagess: 3\n", r'unknown option train.imagess \(did you mean "train.images"\?\)'),
        ("trian:\n  images: 3\n", r'unknown option trian.images \(did you mean "train.images"\?\)'),
        ("outt: here\n", r'unknown option outt \(did you mean "out"\?\)'),
        ("train:\n  images: lots\n", r'"train.images": expected int. Got value: lots'),
        ("train:\n  images: 3.5\n", r'"train.images": expected int. Got value: 3.5'),
        ("train:\n  max_minutes: fast\n", r'"train.max_minutes": expected float or null. Got value: fast'),
        ("data:\n  classes: a\n", r'"data.classes": expected list\[str\] or null. Got value: a'),
        ("- a\n", "recipe.yaml"),
        ("out: [\n", "recipe.yaml"),
        ("", "recipe.yaml"),
    ],
)
def test_a_mistake_in_the_file_is_one_clear_error(write, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_recipe(TokenizerRecipe, write(text))
    assert "\n" not in str(error.value)
    assert "recipe.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.imags": 5}, r'unknown option train.imags \(did you mean "train.images"\?\)'),
        ({"train.images": "many"}, '"train.images": expected int. Got value: many'),
    ],
)
def test_a_mistake_in_an_override_is_one_clear_error(write, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(TokenizerRecipe, write("out: here\n"), overrides)


def test_an_unknown_recipe_names_the_near_match_and_the_shipped_ones():
    with pytest.raises(
        ConfigError, match=r'openmoji_32/tokeniser: no such file \(did you mean "openmoji_32/tokenizer"'
    ):
        recipe_file("openmoji_32/tokeniser")


def test_shipped_recipes_are_found_by_any_of_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no file of that name lies
    expected = shipped_recipes()["openmoji_32/tokenizer"]
    for name in ("openmoji_32/tokenizer", "configs/openmoji_32/tokenizer.yaml", str(expected)):
        assert recipe_file(name).samefile(expected)


KINDS = {
    "tokenizer": TokenizerRecipe,
    "codes": ExportRecipe,
    "generator": GeneratorRecipe,
    "evaluation": EvaluationRecipe,
}


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid(name):
    kind = next(kind for prefix, kind in KINDS.items() if name.split("/")[1].startswith(prefix))
    recipe = load_recipe(kind, name)
    if kind is TokenizerRecipe:
        recipe.check()
        config = WassersteinVQConfig(**recipe.model, image_size=recipe.data.image_size)
        assert config.grid[0] >= 2
    elif kind is ExportRecipe:
        recipe.check()
    elif kind is EvaluationRecipe:
        trained = load_recipe(TokenizerRecipe, name.replace("evaluation", "tokenizer")).data
        for field in ("path", "classes", "image_size", "seed", "validation_fraction"):
            assert getattr(recipe.data, field) == getattr(trained, field)
    else:
        recipe.check()
        layout = next((kind for word, kind in LAYOUTS.items() if word in name), "grid")
        scales = {"scales": [1, 2, 4]} if layout == "multi-scale" else {}
        CONFIGS[layout](**recipe.model, **scales, num_codes=16, grid=[4, 4], num_classes=2)


def test_shipped_recipes_of_one_folder_fit_together():
    names = shipped_recipes()
    for folder in {name.split("/")[0] for name in names}:
        if {f"{folder}/codes", f"{folder}/tokenizer"} <= names.keys():
            tokenizer = load_recipe(TokenizerRecipe, f"{folder}/tokenizer")
            codes = load_recipe(ExportRecipe, f"{folder}/codes")
            assert codes.data.image_size == tokenizer.data.image_size
            assert codes.data.path == tokenizer.data.path
            assert codes.data.seed == tokenizer.data.seed  # the same pictures are held out


@pytest.mark.parametrize(
    "text",
    [
        "data: {class_path: planted_module.X}",
        "train: {class_path: planted_module.X, init_args: {}}",
        "loss: planted_module.X",
        "data.class_path: planted_module.X",
        "model: {channels: {class_path: planted_module.X}}",
        "model: {channels: [{class_path: planted_module.X}]}",
        "data: null",
    ],
)
def test_a_recipe_imports_nothing(text, tmp_path, monkeypatch):
    (tmp_path / "planted_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n\nclass X: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=r"must hold fields by name, (and no class|got)"):
        load_recipe(TokenizerRecipe, tmp_path / "recipe.yaml")
    assert not (tmp_path / "ran").exists()


def test_a_recipe_loads_no_other_one(tmp_path):
    (tmp_path / "other.yaml").write_text("train: {images: 1}\n")
    (tmp_path / "recipe.yaml").write_text(f"config: {tmp_path / 'other.yaml'}\n")
    with pytest.raises(ConfigError, match=r"a recipe cannot load another one"):
        load_recipe(TokenizerRecipe, tmp_path / "recipe.yaml")


@pytest.mark.parametrize("joined", [False, True])
def test_a_file_of_one_group_imports_nothing_either(joined, tmp_path, monkeypatch):
    (tmp_path / "planted_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n\nclass X: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "data.yaml").write_text("class_path: planted_module.X\n")
    parser = Parser()
    parser.add_class_arguments(TokenizerRecipe)
    words = ["--data", str(tmp_path / "data.yaml")]
    with pytest.raises(ConfigError, match=r"data must hold fields by name, and no class"):
        parser.parse(["=".join(words)] if joined else words)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "data.yaml").write_text("image_size: 48\n")
    assert parser.parse(words).data.image_size == 48


# ---- fields of earlier versions


FORMER = "train:\n  images: 10\n  codebook_learning_rate: null\n  codebook_schedule: constant\n  final_alignment: 1.0\n"


def test_a_recipe_of_an_earlier_version_is_read_without_the_fields_that_did_nothing(write, recwarn):
    assert load_recipe(GeneratorRecipe, write(FORMER)).train == TrainConfig(images=10)
    assert not recwarn.list


@pytest.mark.parametrize("value", [0.02, None])
def test_an_override_of_a_field_that_did_nothing_is_taken_as_in_the_file(write, recwarn, value):
    overrides = {"train.codebook_learning_rate": value, "train.images": 10}
    assert load_recipe(GeneratorRecipe, write("out: here\n"), overrides).train == TrainConfig(images=10)
    said = [str(warning.message) for warning in recwarn.list]
    assert said == (
        []
        if value is None
        else ["train.codebook_learning_rate 0.02 is a setting of the tokenizer and does nothing here"]
    )


def test_a_value_that_did_nothing_is_said_to_do_nothing(write):
    file = write(FORMER.replace("null", "0.02"))
    with pytest.warns(UserWarning, match=r"^train.codebook_learning_rate 0.02 is a setting of the tokenizer and does"):
        assert load_recipe(GeneratorRecipe, file).train == TrainConfig(images=10)


@pytest.mark.parametrize("words", [["--train.final_alignment=0.5"], ["--train.final_alignment", "0.5"]])
def test_an_option_that_did_nothing_is_taken_and_hidden(words):
    parser = Parser()
    parser.add_recipe(GeneratorRecipe)
    with pytest.warns(UserWarning, match="train.final_alignment 0.5 is a setting of the tokenizer"):
        values = parser.build(parser.parse([*words, "--train.images=10"]))
    assert recipe_of(values, GeneratorRecipe).train == TrainConfig(images=10)
    assert "final_alignment" not in parser.format_help()


def test_the_tokenizer_keeps_its_fields(write):
    recipe = load_recipe(TokenizerRecipe, write(FORMER.replace("1.0", "0.5")))
    assert recipe.train == TokenizerTrainConfig(images=10, final_alignment=0.5)
