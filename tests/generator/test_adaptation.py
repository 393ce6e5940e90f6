"""Training a generator from a trained one: what is kept, what is new, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.tiny import CLASS_NAMES, make_generator, make_layout_pipeline, make_tokenizer, save_text_encoder
from wvq.data.codes import CodeDataset
from wvq.data.imagenet import imagenet_classes
from wvq.errors import CheckpointError, ConfigError
from wvq.files.fingerprint import DataFingerprint
from wvq.generator.adaptation import Start
from wvq.generator.kinds import CONFIGS
from wvq.generator.models import load_generator, new_generator
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe
from wvq.generator.text.encoder import TextEncoder
from wvq.generator.train import train_generator
from wvq.settings.train import TrainConfig
from wvq.training.trainer import Trainer


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_codes_dir, tiny_tokenizer_dir):
    """A function that makes the recipe of a run in a new folder: without a start, of a small model."""

    def make(condition: ConditionConfig | None = None, **changes) -> GeneratorRecipe:
        loop = {"images": 320, "batch_size": 16, "learning_rate": 5e-3, "log_every": 16} | changes.pop("train", {})
        fields = {"out": str(tmp_path_factory.mktemp("run")), "codes": str(tiny_codes_dir)}
        fields |= {"tokenizer": str(tiny_tokenizer_dir), "condition": condition or ConditionConfig()}
        if "start" not in changes:
            sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2}
            fields["model"] = {**sizes, "dropout": 0.0, "token_dropout": 0.0}
        return GeneratorRecipe(**{**fields, "train": TrainConfig(**loop), **changes})

    return make


@pytest.fixture(scope="module")
def train(recipe, tokenizer):
    """A function that trains a generator by such a recipe; returns its folder and the result."""

    def run(*arguments, **changes):
        settings = recipe(*arguments, **changes)
        result = train_generator(settings, tokenizer)
        return Path(settings.out) / "generator", result

    return run


@pytest.fixture(scope="module")
def trained(train):
    """Folder of a class-conditional generator; do not write into it."""
    return train()[0]


@pytest.fixture(scope="module")
def text_trained(train, encoder_dir):
    """Folder of a text-conditional generator; do not write into it."""
    return train(ConditionConfig(classes=False, text=True, text_encoder=str(encoder_dir), text_length=5))[0]


def weights(folder):
    return load_generator(folder).state_dict()


def changed(config, **changes):
    return type(config)(**{**{name: getattr(config, name) for name in config.fields()}, **changes})


def passed_on(folder, **changes):
    """The model that a run with some fields changed would start with, and what is said of it."""
    start = Start.find(str(folder))
    torch.manual_seed(1)
    model = new_generator(changed(start.config, **changes))
    return model, start.pass_on(model)


def said_of_the_start(capsys):
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("start: "))


# ---- runs


def test_fine_tuning_starts_from_the_loss_of_the_trained_model_and_beats_a_new_start(train, trained, tiny_codes_dir):
    held_out = CodeDataset(tiny_codes_dir, "validation")
    codes = held_out.codes(range(len(held_out)))
    labels = torch.tensor([held_out.label(i) for i in range(len(held_out))])
    with torch.no_grad():
        before = load_generator(trained)(codes, labels).loss.item()
    still, result = train(start=str(trained), train={"images": 16, "learning_rate": 1e-12})
    assert result["loss"] == pytest.approx(before, abs=1e-5)
    short = {"images": 96, "learning_rate": 1e-3}
    _, tuned = train(start=str(trained), train=short)
    _, anew = train(train=short)
    assert tuned["loss"] < before < anew["loss"] - 0.1
    assert json.loads((still / "config.json").read_text())["class_names"] == CLASS_NAMES


def test_a_stopped_run_goes_on_to_the_same_weights(recipe, train, trained, tokenizer, monkeypatch):
    settings = {"start": str(trained), "train": {"images": 96, "ema_decay": 0.9, "save_every": 48}}
    whole, _ = train(**settings)
    step = Trainer._step

    def interrupted(self, batches):
        if self.progress.images_seen == 64:
            raise InterruptedError
        return step(self, batches)

    stopped = recipe(**settings)
    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(InterruptedError):
        train_generator(stopped, tokenizer)
    monkeypatch.setattr(Trainer, "_step", step)
    monkeypatch.setattr(Start, "pass_on", None)  # a checkpoint holds the weights
    train_generator(stopped, tokenizer, resume=True)
    resumed, expected = weights(Path(stopped.out) / "generator"), weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in resumed.items())


def test_a_pipelines_folder_is_a_start_and_its_pictures_are_remembered(train, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "generator", ignore=shutil.ignore_patterns("training"))
    (tmp_path / "model_index.json").write_text("{}")
    out, _ = train(start=str(tmp_path), train={"images": 16})
    assert DataFingerprint.read(out).trained_on.count == DataFingerprint.read(trained).train.count


def test_text_with_the_same_encoder_keeps_its_projections(train, text_trained, encoder_dir, capsys):
    condition = ConditionConfig(classes=False, text=True, text_encoder=str(encoder_dir), text_length=4)
    out, _ = train(condition, start=str(text_trained), train={"images": 16, "learning_rate": 1e-12})
    assert said_of_the_start(capsys) == f"start: the weights of {text_trained}"
    before, after = weights(text_trained), weights(out)
    assert load_generator(out).config.text_length == 4
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)


def test_another_encoder_starts_new_projections_from_the_captions(train, text_trained, tmp_path, capsys):
    encoder = save_text_encoder(tmp_path / "encoder")
    file = encoder / "config.json"
    file.write_text(file.read_text().replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-6'))
    condition = ConditionConfig(classes=False, text=True, text_encoder=str(encoder), text_length=5)
    loop = {"images": 16, "learning_rate": 1e-12}
    out, _ = train(condition, start=str(text_trained), train=loop)
    said = said_of_the_start(capsys)
    assert said.endswith("; new: the projections of text; left out: its projections of text")
    new, _ = train(condition, train=loop)
    before, after, fitted = weights(text_trained), weights(out), weights(new)
    name = "condition.text_projection.weight"
    assert not torch.allclose(after[name], before[name], atol=1e-3)
    assert float(after[name].std()) == pytest.approx(float(fitted[name].std()), rel=0.3)  # whitened, as in a new run
    assert torch.allclose(after["condition.null_text"], before["condition.null_text"], atol=1e-6)


def test_text_and_classes_replace_each_other(train, trained, text_trained, encoder_dir, capsys):
    """Without its condition, the model draws what it drew before."""
    text = ConditionConfig(classes=False, text=True, text_encoder=str(encoder_dir), text_length=5)
    for start, condition, said in (
        (trained, text, "new: the projections of text; left out: 3 of 3 classes"),
        (text_trained, ConditionConfig(), "new: 3 of 3 classes; left out: its projections of text"),
    ):
        out, _ = train(condition, start=str(start), train={"images": 16, "learning_rate": 1e-12})
        assert said_of_the_start(capsys) == f"start: the weights of {start}; {said}"
        codes = torch.arange(32).view(2, 16) % 32
        with torch.no_grad():
            logits = [load_generator(folder)(codes).logits for folder in (start, out)]
        torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)


def test_of_a_pipeline_on_the_hub_the_generator_alone_is_fetched(trained, tmp_path, monkeypatch):
    fetched = []

    def download(name, allow_patterns, **options):
        fetched.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "generator").symlink_to(trained)
    start = Start.find("owner/pipeline")
    assert start.folder == tmp_path / "generator"
    assert start.config.hidden_size == 32
    assert fetched[0] == ["model_index.json", "config.json"]
    assert all(pattern.startswith("generator/") for pattern in fetched[1])


# ---- weights


@pytest.mark.parametrize("kind", CONFIGS)
def test_rows_of_known_classes_pass_to_them_and_new_classes_start_as_the_null(kind, tmp_path):
    options = {} if kind == "multi-scale" else {"condition_bias": True}
    source = make_layout_pipeline(kind, class_names=["a", "crane", "crane", "b"], **options).generator
    source.save_pretrained(tmp_path)
    names = ["crane", "new", "b", "crane", "crane"]
    model, said = passed_on(tmp_path, class_names=names, num_classes=5)
    assert said == f"start: the weights of {tmp_path}; new: 2 of 5 classes; left out: 1 of 4 classes"
    before, after = source.state_dict(), model.state_dict()
    tables = [name for name in before if name.startswith("condition.class_")]
    assert len(tables) == 1 + len(options)
    for name in tables:
        assert torch.equal(after[name], before[name][[1, 4, 3, 2, 4, 4]])
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - set(tables))


def test_classes_without_names_are_known_by_their_ids(tmp_path):
    make_generator(num_classes=3).save_pretrained(tmp_path)
    model, said = passed_on(tmp_path, class_names=["2", "new", "0"])
    before, after = (state["condition.class_embedding.weight"] for state in (weights(tmp_path), model.state_dict()))
    assert torch.equal(after, before[[2, -1, 0, -1]])
    assert said.endswith("new: 1 of 3 classes; left out: 1 of 3 classes")


def test_the_folders_of_imagenet_are_its_classes(tmp_path):
    names = imagenet_classes()
    make_generator(num_classes=1_000, class_names=names).save_pretrained(tmp_path)
    folders = [f"n{number:08}" for number in range(1_000)]
    model, said = passed_on(tmp_path, class_names=folders)
    before, after = (state["condition.class_embedding.weight"] for state in (weights(tmp_path), model.state_dict()))
    assert torch.equal(after, before)
    assert "new" not in said
    _, said = passed_on(tmp_path, class_names=[*folders[1:], folders[0]])
    assert "new: 1,000 of 1,000 classes" in said


def test_a_model_without_conditions_starts_one_with_classes_and_text(tmp_path):
    source = make_layout_pipeline("grid", class_names=[]).generator
    source.save_pretrained(tmp_path)
    model, said = passed_on(tmp_path, class_names=["a"], num_classes=1, text_dim=16, text_length=3)
    assert said == f"start: the weights of {tmp_path}; new: 1 of 1 classes and the projections of text"
    null = source.condition.class_embedding.weight[-1]
    assert torch.equal(model.condition.class_embedding.weight, null.expand(2, -1))
    assert torch.equal(model.condition.null_text, null)


def test_both_conditions_share_no_null(tmp_path, encoder_dir):
    source = make_layout_pipeline("grid", encoder_dir).generator
    source.save_pretrained(tmp_path)
    model, _ = passed_on(tmp_path, class_names=[], num_classes=0)  # text alone
    assert torch.equal(model.condition.null_text, source.condition.null_text)
    assert torch.equal(model.condition.text_projection.weight, source.condition.text_projection.weight)


PUBLISHED_TEXT = {"text_projection": "mlp", "null_text": "features", "text_cleaning": "lower"}


def published_text(folder, encoder_dir):
    """A generator with the text of a published one, saved in a folder."""
    fields = TextEncoder(encoder_dir, 5, cleaning="lower").config_fields()
    generator = make_generator(**{**fields, **PUBLISHED_TEXT})
    generator.save_pretrained(folder)
    return generator


def test_a_null_text_of_features_goes_with_its_encoder_and_length(tmp_path, encoder_dir):
    source = published_text(tmp_path, encoder_dir)
    before, said = source.state_dict(), f"start: the weights of {tmp_path}"
    text = {name for name in before if name.startswith("condition.")}
    assert text == {
        "condition.null_text",
        "condition.text_projection.out.weight",
        "condition.text_projection.up.weight",
    }
    for changes, fresh, new in (
        ({}, set(), ""),
        ({"text_length": 4}, {"condition.null_text"}, "; new: the null text"),
        (
            {"text_encoder_hash": "0" * 64},
            text,
            "; new: the projections of text and the null text; left out: its projections of text",
        ),
    ):
        model, line = passed_on(tmp_path, **changes)
        assert line == said + new
        after = model.state_dict()
        assert {name for name in before if not torch.equal(before[name], after[name])} == fresh
    plain = {
        "text_dim": 0,
        "text_length": 0,
        "text_projection": "linear",
        "null_text": "token",
        "text_cleaning": "none",
    }
    _, line = passed_on(tmp_path, **plain, num_classes=2, class_names=["a", "b"])
    assert line == f"{said}; new: 2 of 2 classes; left out: its projections of text"


def test_the_form_of_the_text_is_inherited_or_new_with_the_encoder(train, tmp_path, encoder_dir):
    published_text(tmp_path / "published", encoder_dir)
    start, loop = str(tmp_path / "published"), {"images": 16}
    text = {"classes": False, "text": True, "text_encoder": str(encoder_dir), "text_length": 5}
    with pytest.raises(ConfigError, match=r"text_cleaning lower; set condition\.text_cleaning to that"):
        train(ConditionConfig(**text), start=start, train=loop)
    cleaned = ConditionConfig(**text, text_cleaning="lower")
    out, _ = train(cleaned, start=start, train=loop)
    config = load_generator(out).config
    assert {name: getattr(config, name) for name in PUBLISHED_TEXT} == PUBLISHED_TEXT
    with pytest.raises(ConfigError, match="was trained with text_projection mlp, which cannot change"):
        train(cleaned, start=start, model={"text_projection": "linear"}, train=loop)
    out, _ = train(start=start, train=loop)  # classes
    assert load_generator(out).config.null_text == "token"
    out, _ = train(cleaned, start=str(out), model={"text_projection": "mlp"}, train=loop)
    assert load_generator(out).config.text_projection == "mlp"


def test_an_encoder_that_was_not_recorded_is_trusted_by_its_width(tmp_path, encoder_dir):
    source = make_layout_pipeline("grid", encoder_dir, text_encoder_hash=None).generator
    source.save_pretrained(tmp_path)
    start = Start.find(str(tmp_path))
    assert start.reads(changed(start.config, text_encoder_hash="0" * 64))
    assert not start.reads(changed(start.config, text_dim=8))


# ---- settings


def test_training_settings_may_change(train, trained):
    out, _ = train(start=str(trained), model={"dropout": 0.3, "drop_path": 0.1, "size": None}, train={"images": 16})
    config = load_generator(out).config
    assert (config.dropout, config.feed_forward_dropout, config.drop_path) == (0.3, 0.3, 0.1)
    assert (config.hidden_size, config.num_layers) == (32, 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"hidden_size": 64}, "was trained with hidden_size 32, which cannot change, and here it is 64; leave it out"),
        ({"size": "S"}, "was trained with hidden_size 32, which cannot change, and here it is 384"),
        ({"qk_norm": True}, "was trained with qk_norm False, which cannot change, and here it is True"),
        ({"head": "tied"}, r"the network in .* is another one \(head.weight\); leave it out of model"),
    ],
)
def test_another_network_is_one_clear_error(train, trained, model, message):
    with pytest.raises(ConfigError, match=message):
        train(start=str(trained), model=model)


@pytest.mark.parametrize(
    ("changes", "kind"), [({"num_codes": 16}, "grid"), ({"image_size": 32}, "grid"), ({}, "product")]
)
def test_other_codes_are_one_clear_error(train, trained, tmp_path, changes, kind):
    pipeline = make_layout_pipeline(kind)
    generator = pipeline.generator
    if changes:
        tokenizer = make_tokenizer(**changes)
        fields = {"num_codes": tokenizer.config.num_codes, "grid": list(tokenizer.config.grid)}
        generator = new_generator(changed(generator.config, **fields))
    generator.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^start: .* draws .* codes \(.* of K = \d+, and .* holds grid codes \(4"):
        train(start=str(tmp_path))


def test_a_start_that_is_none_is_one_clear_error(train, trained, tmp_path, tiny_tokenizer_dir):
    with pytest.raises(CheckpointError, match=r"^start: .*no such generator folder"):
        train(start="./nowhere")
    with pytest.raises(CheckpointError, match=r'^start: .*model of type "wasserstein_vq"'):
        train(start=str(tiny_tokenizer_dir))
    with pytest.raises(CheckpointError, match=r"^start: .*holds no generator"):
        train(start=str(tmp_path))


def test_a_start_on_other_codes_of_the_same_form_is_a_warning(train, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "other", ignore=shutil.ignore_patterns("training"))
    file = tmp_path / "other" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_hash": "0" * 64}))
    with pytest.warns(UserWarning, match=r"^start: .* was trained on codes of another tokenizer than "):
        train(start=str(tmp_path / "other"), train={"images": 16})


def test_a_start_on_pictures_that_are_held_out_here_is_a_warning(train, trained, tmp_path):
    start = tmp_path / "other"
    shutil.copytree(trained, start, ignore=shutil.ignore_patterns("training"))
    before = DataFingerprint.read(trained)
    DataFingerprint(before.validation, before.train).save(start)
    with pytest.warns(UserWarning, match=r"other was trained on 12 of these 12 held-out pictures in .*: held-out"):
        out, _ = train(start=str(start), train={"images": 16})
    assert DataFingerprint.read(out).trained_on.count == 60
