"""Imports: files of other projects become folders that load, and what does not fit is one line and leaves nothing."""

import json
from pathlib import Path

import pytest
import torch

from tests.published import SCALES, TOKENIZERS, published_generator, write_published
from tests.text_encoders import WIDTH, save_encoder
from wvq.errors import CheckpointError, ConfigError
from wvq.files.atomic import file_sha256
from wvq.files.origin import Origin
from wvq.models.pretrained import weights_hash
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.pipelines.published import importing
from wvq.pipelines.published.importing import import_published
from wvq.pipelines.published.recipes import ImportRecipe
from wvq.tokenizer.modeling import WassersteinVQModel

OPTIONS = {"llamagen": {"image_size": 16, "num_heads": 2}, "var": {"scales": SCALES, "image_size": 16, "num_heads": 2}}
OPTIONS |= {"wasserstein-var": {"scales": SCALES, "image_size": 16}}


def options(family: str, whole: bool) -> dict:
    given = dict(OPTIONS.get(family, {"image_size": 16}))
    if not whole:
        given.pop("num_heads", None)
    return given


def recipe(folder: Path, family: str, whole: bool = True, **changes) -> ImportRecipe:
    """The recipe of the files that ``write_published`` has written into ``folder``, with or without a generator."""
    files = {"tokenizer": str(folder / "tokenizer.pt")}
    if whole:
        files["generator"] = str(folder / "generator.pt")
    return ImportRecipe(family, str(folder / "out"), **files | options(family, whole) | changes)


def is_refused(asked: ImportRecipe, error: type[Exception], *parts: str) -> None:
    """The import raises one line with these parts, and leaves nothing."""
    with pytest.raises(error) as caught:
        import_published(asked)
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line
    out = Path(asked.out)
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))


# ---- what is written


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_tokenizer_is_the_one_in_its_file(family, tmp_path):
    written = write_published(tmp_path, family)
    import_published(recipe(tmp_path, family, whole=False))
    read = WassersteinVQModel.from_pretrained(tmp_path / "out")
    pictures = torch.randn(2, 3, 16, 16).clamp(-1, 1)
    with torch.no_grad():
        codes = written.encode(pictures).codes
        assert torch.equal(read.encode(pictures).codes, codes)
        assert torch.equal(read.decode_codes(codes), written.decode_codes(codes))


@pytest.mark.parametrize("family", ["llamagen", "var"])
def test_a_pipeline_draws_by_classes_and_knows_its_origin(family, tmp_path):
    tokenizer = write_published(tmp_path, family, generator_name="generator.pt")
    origin = import_published(recipe(tmp_path, family))
    pipe = ImageGenerationPipeline.from_pretrained(tmp_path / "out")
    assert weights_hash(pipe.tokenizer) == weights_hash(tokenizer)
    assert pipe.generator.config.tokenizer_hash == tokenizer.codes_hash()
    drawn = pipe(class_labels=[0, 2], seed=3, temperature=0)
    expected = ImageGenerationPipeline(tokenizer, published_generator(family, tokenizer))
    assert torch.equal(drawn.codes, expected(class_labels=[0, 2], seed=3, temperature=0).codes)
    assert origin == Origin.read(tmp_path / "out")
    assert [(file.part, file.name, file.level) for file in origin.files] == [
        ("tokenizer", "tokenizer.pt", "model"),
        ("generator", "generator.pt", "model"),
    ]
    assert [file.sha256 for file in origin.files] == [
        file_sha256(tmp_path / name) for name in ("tokenizer.pt", "generator.pt")
    ]
    assert all(file.sha256 in pipe.card for file in origin.files)
    assert "their licence is not known here" in pipe.card
    assert (origin.name, origin.licence, origin.published) == (None, None, "")
    pipe.save_pretrained(tmp_path / "elsewhere")
    assert Origin.read(tmp_path / "elsewhere") == origin


def test_a_generator_of_texts_takes_its_encoder_along(tmp_path):
    encoder = save_encoder("t5", tmp_path / "encoder")
    write_published(tmp_path, "llamagen", generator_name="generator.pt", text_dim=WIDTH, text_length=6)
    is_refused(recipe(tmp_path, "llamagen"), ConfigError, "text_encoder: this generator takes texts")
    import_published(recipe(tmp_path, "llamagen", text_encoder=str(encoder)))
    pipe = ImageGenerationPipeline.from_pretrained(tmp_path / "out")
    assert (pipe.text_encoder.length, pipe.text_encoder.cleaning) == (6, "lower")
    drawn = pipe(prompt=["red circle", "blue square"], seed=0, guidance_scale=4.0)
    assert drawn.codes.shape == (2, 4, 4)
    assert torch.equal(pipe(prompt=["RED circle", "blue square"], seed=0, guidance_scale=4.0).codes, drawn.codes)


def test_an_encoder_of_another_width_or_for_classes_is_refused(tmp_path):
    encoder = str(save_encoder("t5", tmp_path / "encoder"))
    write_published(tmp_path, "llamagen", generator_name="generator.pt", text_dim=WIDTH + 8, text_length=6)
    is_refused(recipe(tmp_path, "llamagen", text_encoder=encoder), ConfigError, "do not fit each other")
    write_published(tmp_path, "llamagen", generator_name="generator.pt")
    is_refused(recipe(tmp_path, "llamagen", text_encoder=encoder), ConfigError, "takes no texts; leave it out")


def test_names_of_classes_come_from_a_file(tmp_path):
    write_published(tmp_path, "llamagen", generator_name="generator.pt")
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\n")
    asked = recipe(tmp_path, "llamagen", class_names=str(names))
    is_refused(asked, ConfigError, "class_names", "2 names for 3 classes")
    names.write_text("ant\nbee\ncow\n")
    import_published(asked)
    pipe = ImageGenerationPipeline.from_pretrained(tmp_path / "out")
    assert pipe.class_names == ["ant", "bee", "cow"]
    assert torch.equal(pipe(class_labels="bee", seed=0).codes, pipe(class_labels=1, seed=0).codes)


def test_a_thousand_classes_have_imagenets_names(tmp_path):
    write_published(tmp_path, "llamagen", generator_name="generator.pt", num_classes=1_000)
    import_published(recipe(tmp_path, "llamagen"))
    pipe = ImageGenerationPipeline.from_pretrained(tmp_path / "out")
    assert torch.equal(pipe(class_labels="golden retriever", seed=0).codes, pipe(class_labels=207, seed=0).codes)
    assert "207: golden retriever" in pipe.card


def test_the_average_is_taken_where_it_is_asked_for(tmp_path):
    tokenizer = write_published(tmp_path, "taming")
    file = tmp_path / "tokenizer.pt"
    weights = torch.load(file)["model"]
    trained = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    torch.save({"model": trained, "ema": weights}, file)
    origin = import_published(recipe(tmp_path, "taming", whole=False, ema=True))
    assert (origin.files[0].level, origin.files[0].other_levels) == ("ema", ("model",))
    assert weights_hash(WassersteinVQModel.from_pretrained(tmp_path / "out")) == weights_hash(tokenizer)


def test_files_with_the_names_of_published_ones_are_those(tmp_path):
    """c2i_B_384.pt has the shapes of c2i_B_256.pt: its name alone shows the size of its pictures."""
    files = {"tokenizer": "a/vq_ds16_c2i.pt", "generator": "b/c2i_B_384.pt"}
    known = ImportRecipe("llamagen", "out", **files)
    assert (known.published, known.options.image_size) == ("llamagen-b-384", 384)
    assert ImportRecipe("llamagen", "out", **files, image_size=384).published == "llamagen-b-384"
    for other in ({"image_size": 32}, {"num_heads": 4}, {"generator": "b/mine.pt"}):
        assert ImportRecipe("llamagen", "out", **files | other).published is None
    assert ImportRecipe("taming", "out", tokenizer="last.ckpt").published is None  # two have the name


def test_files_of_another_size_under_a_published_name_have_none_of_its_figures(tmp_path):
    write_published(tmp_path, "llamagen", generator_name="generator.pt")
    asked = recipe(tmp_path, "llamagen")
    asked.name = "llamagen-b-256"
    origin = import_published(asked)
    assert (origin.name, origin.published, origin.preset) == (None, "", None)


# ---- what is refused


def test_options_that_mean_nothing_are_refused(tmp_path):
    write_published(tmp_path, "taming")
    for name, value in {"num_heads": 2, "scales": [1, 2], "text_encoder": "p"}.items():
        asked = recipe(tmp_path, "taming", whole=False, **{name: value})
        is_refused(asked, ConfigError, f"{name} means nothing to taming-transformers")
    asked = recipe(tmp_path, "llamagen", whole=False, num_heads=2)
    is_refused(asked, ConfigError, "num_heads is of a generator, and none is imported")
    is_refused(recipe(tmp_path, "taming"), ConfigError, "generator: of taming the tokenizer alone can be imported")


def test_what_is_missing_is_asked_for(tmp_path):
    alone = ImportRecipe("llamagen", str(tmp_path / "out"), generator="g.pt")
    is_refused(alone, ConfigError, "tokenizer: a generator is imported with its tokenizer")
    is_refused(ImportRecipe("var", str(tmp_path / "out")), ConfigError, 'a tokenizer of VAR ("var" is a family)')
    by_hand = ImportRecipe("taming-f16-1024", str(tmp_path / "out"))
    is_refused(by_hand, ConfigError, "tokenizer: download it by hand from https://heibox")
    unknown = ImportRecipe("llamagen-b-265", str(tmp_path / "out"))
    is_refused(unknown, ConfigError, 'did you mean "llamagen-b-256"')
    for name, out, part in (("", "out", "name: give"), ("var", "", "out: give a new folder")):
        with pytest.raises(ConfigError, match=part):
            import_published(ImportRecipe(name, out))


def test_files_of_another_family_or_part_are_named(tmp_path):
    for family in ("llamagen", "var"):
        write_published(tmp_path / family, family, generator_name="generator.pt")
    var, llamagen = (tmp_path / family for family in ("var", "llamagen"))
    asked = recipe(llamagen, "llamagen", tokenizer=str(var / "tokenizer.pt"))
    is_refused(asked, CheckpointError, "tokenizer.pt holds a tokenizer of VAR, not a tokenizer of LlamaGen")
    asked = recipe(llamagen, "llamagen", tokenizer=str(llamagen / "generator.pt"))
    is_refused(asked, CheckpointError, "generator.pt holds a generator of LlamaGen", "give it by --generator")
    asked = recipe(llamagen, "llamagen", generator=str(var / "generator.pt"))
    is_refused(asked, CheckpointError, "generator.pt holds a generator of VAR")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    asked = recipe(llamagen, "llamagen", generator=str(tmp_path / "other.pt"))
    is_refused(asked, CheckpointError, "other.pt holds no generator of a known layout")


def test_parts_that_do_not_fit_are_refused(tmp_path):
    write_published(tmp_path, "llamagen", generator_name="generator.pt", num_codes=16)
    parts = ("tokenizer.pt and generator.pt do not fit each other", "the tokenizer has num_codes 32, the generator 16")
    is_refused(recipe(tmp_path, "llamagen"), ConfigError, *parts)
    write_published(tmp_path / "var", "var", generator_name="generator.pt")
    is_refused(recipe(tmp_path / "var", "var", scales=[1, 3, 4]), CheckpointError, "generator.pt draws 21 codes")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    write_published(tmp_path, "taming")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="already holds files"):
        import_published(recipe(tmp_path, "taming", whole=False))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("step", ["model_card", "require_family"])
def test_whatever_fails_leaves_nothing(step, tmp_path, monkeypatch):
    write_published(tmp_path, "llamagen", generator_name="generator.pt")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(importing, step, fail)
    is_refused(recipe(tmp_path, "llamagen"), OSError, "disk full")


def test_a_damaged_origin_is_named(tmp_path):
    write_published(tmp_path, "taming")
    import_published(recipe(tmp_path, "taming", whole=False))
    file = tmp_path / "out" / "origin.json"
    file.write_text(json.dumps({"project": "p"}))
    with pytest.raises(CheckpointError, match=r"origin\.json is damaged"):
        Origin.read(tmp_path / "out")
