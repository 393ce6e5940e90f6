"""The quick start on tiny settings: its stages' recipes, its files, its report, and the path without a text encoder."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.drawings import write_letters
from tests.tiny import CLASS_NAMES, save_text_encoder, tiny_stage_recipes
from wvq.app import quickstart
from wvq.app.quickstart import run_quickstart, stage_recipes, text_condition
from wvq.app.quickstart_report import PROMPTS, shown_prompts
from wvq.app.recipes import QuickstartRecipe
from wvq.data import dataset
from wvq.data.codes import CodeHeader
from wvq.data.sources import read_source
from wvq.errors import ConfigError, DataError
from wvq.eval.tuning import CANDIDATES, FEWEST_SETTINGS, FIRST
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.recipes import ConditionConfig
from wvq.pipelines.image_generation import ImageGenerationPipeline
from wvq.tokenizer.processing import ImageProcessor
from wvq.training.tracking import read_log


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp("text_encoder"))


@pytest.fixture
def tiny_stages(monkeypatch):
    """A function that makes the quick start train tiny models for a few steps, with the given text encoder, and search
    among the fewest samples.
    """

    def make_tiny(text_encoder) -> None:
        monkeypatch.setattr(quickstart, "stage_recipes", tiny_stage_recipes(text_encoder))
        monkeypatch.setattr(quickstart, "SEARCH_SHARE", 0)

    return make_tiny


@pytest.fixture
def no_network(monkeypatch):
    """The quick start as without a feature network."""

    def missing(**options):
        raise ConfigError("efficientnet_lite0 is not installed")

    monkeypatch.setattr(quickstart, "default_feature_network", missing)


def run(pictures, out, **changes) -> str:
    report = run_quickstart(QuickstartRecipe(out=str(out), data=str(pictures), **changes))
    assert report == out / "report.html"
    return report.read_text(encoding="utf-8")


def test_a_run_on_captioned_pictures(caption_folder, tiny_stages, encoder_dir, tmp_path, capsys):
    tiny_stages(encoder_dir)
    out = tmp_path / "run"
    html = run(caption_folder, out, minutes=5)
    sections = ("Samples", "Prompts", "Reconstructions", "Nearest training pictures", "Training", "Sampling settings")
    for section in (*sections, "Next"):
        assert f">{section}<" in html, section
    for text in ("Codebook utilization U", "Perplexity C", "PSNR, RGB", "fd_efficientnet_lite0", "wvq sample"):
        assert text in html, text
    assert "The clock ended" not in html
    for link in ('src="http', 'href="http', "<script src", "@import"):  # the report is one file that works offline
        assert link not in html
    for name in ("samples.png", "prompts.png", "reconstructions.png"):
        picture = Image.open(out / name).convert("RGB")
        assert min(picture.size) > 64
        assert len(picture.getcolors(2**24)) > 100

    pipe = ImageGenerationPipeline.from_pretrained(out)
    assert pipe.class_names == CLASS_NAMES
    results = json.loads((out / "result.json").read_text())
    trials = results["sampling"]["trials"]
    [chosen] = [trial for trial in trials if trial["chosen"]]
    assert pipe.sampling.identity().items() <= chosen.items()
    assert (len(trials), results["sampling"]["num_candidates"]) == (FEWEST_SETTINGS, len(CANDIDATES))
    assert "kd_efficientnet_lite0" in chosen
    assert results["generation"]["settings"]["temperature"] == chosen["temperature"]
    assert json.dumps(vars(pipe.sampling)) in (out / "README.md").read_text()
    printed = capsys.readouterr().out
    assert printed.count("held out (") == 1  # what was read is printed once for all stages
    for text in ("conditions: 3 classes and captions", results["sampling"]["reason"]):
        assert text in printed
        assert text[1:] in html
    assert pipe(class_labels="cross", prompt="red cross", seed=0).images[0].size == (16, 16)
    assert "openmoji" not in (out / "README.md").read_text().lower()

    assert results["tokenizer"]["images"] == results["generator"]["images"] == 240
    assert (
        sum(results["codes"]["counts"]) == results["codes"]["num_tokens"] == 60 * pipe.generator.config.sequence_length
    )
    used = sum(count > 0 for count in results["codes"]["counts"]) / 64
    assert results["codes"]["utilization"] == pytest.approx(used)
    assert {"reconstruction", "generation"} <= set(results)
    assert str(out / "samples.png") in printed
    assert {row["kind"] for row in read_log(out / "generator" / "training")} == {"train", "validation"}


def test_drawings_of_odd_shapes_are_padded(tiny_stages, no_network, tmp_path, capsys, monkeypatch):
    tiny_stages("./nowhere")
    times_read = []
    monkeypatch.setattr(dataset, "read_source", lambda *given: times_read.append(1) or read_source(*given))
    write_letters(tmp_path / "letters")
    html = run(tmp_path / "letters", tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())["fit"]
    assert (result["fit"], result["pad_color"]) == ("pad", "white")
    assert f"F{result['reason'][1:]}." in html
    assert result["reason"] in capsys.readouterr().out
    assert ImageProcessor.from_pretrained(tmp_path / "run" / "tokenizer").fit == "pad"
    assert CodeHeader.read(tmp_path / "run" / "codes").crop_recipe["validation"] == "center, pad(white)"
    assert len(times_read) == 1
    html = run(tmp_path / "letters", tmp_path / "cropped", fit="crop")
    assert "Fit: crop, as requested" in html
    assert ImageProcessor.from_pretrained(tmp_path / "cropped" / "tokenizer").fit == "crop"


def test_without_a_text_encoder_it_trains_on_classes(caption_folder, tiny_stages, no_network, tmp_path, capsys):
    tiny_stages("./nowhere")
    html = run(caption_folder, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "conditions: 3 classes; the captions are not used, as ./nowhere is not installed" in printed
    assert "distances between distributions are left out" in printed
    assert "kd_pixels" in printed
    assert "kd_pixels" in html
    assert ">Prompts<" not in html
    assert "Distances between" not in html
    assert not (tmp_path / "run" / "prompts.png").exists()
    pipe = ImageGenerationPipeline.from_pretrained(tmp_path / "run")
    assert (pipe.generator.config.text_dim, pipe.text_encoder, pipe.class_names) == (0, None, CLASS_NAMES)


def test_pictures_without_classes_or_captions(picture_folder, tiny_stages, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in picture_folder.rglob("*.png"):
        shutil.copy(file, flat / f"{file.parent.name}_{file.name}")
    tiny_stages("./nowhere")
    html = run(flat, tmp_path / "run")
    assert "without a condition" in html
    assert "fd_efficientnet_lite0" in html
    pipe = ImageGenerationPipeline.from_pretrained(tmp_path / "run")
    assert pipe.class_names == []
    assert pipe(num_images=2, seed=0).codes.shape[0] == 2
    assert pipe.sampling.guidance_scale == 1  # there is nothing to guide by


def test_captions_without_classes(caption_folder, tiny_stages, encoder_dir, no_network, tmp_path):
    folder = tmp_path / "captions"
    shutil.copytree(caption_folder, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    lines = [json.dumps({name: row[name] for name in ("file_name", "caption")}) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    tiny_stages(encoder_dir)
    html = run(folder, tmp_path / "run")
    assert "Conditions: captions; the pictures have no classes." in html
    assert ImageGenerationPipeline.from_pretrained(tmp_path / "run").class_names == []


def test_more_is_held_out_of_few_pictures_in_many_classes(picture_folder, tiny_stages, no_network, tmp_path):
    files = sorted(picture_folder.rglob("*.png"))
    for number, file in enumerate(files[:36]):
        target = tmp_path / "many" / f"class {number // 3}"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target / f"{number}.png")
    tiny_stages("./nowhere")
    html = run(tmp_path / "many", tmp_path / "run")
    assert "Held out: 20% of each class, as a tenth would be too few to measure on." in html
    held_out = CodeHeader.read(tmp_path / "run" / "codes").num_images["validation"]
    assert f"{36 - held_out} training and {held_out} held-out pictures" in html
    assert held_out > 4


def test_one_class_of_few_pictures(picture_folder, tiny_stages, no_network, tmp_path):
    shutil.copytree(picture_folder / "circle", tmp_path / "one" / "circle")
    shutil.copytree(picture_folder / "cross", tmp_path / "one" / "circle" / "more")
    tiny_stages("./nowhere")
    html = run(tmp_path / "one", tmp_path / "run")
    assert "Conditions: 1 class; the pictures have no captions." in html
    results = json.loads((tmp_path / "run" / "result.json").read_text())
    assert results["sampling"]["num_images"] == FIRST  # the time was over after the first round


def test_the_settings_of_openmoji_are_one_candidate_and_plain_sampling_is_another():
    assert {quickstart.SAMPLING, SamplingSettings()} <= set(CANDIDATES)


def test_the_clock_cuts_a_run_short_and_the_report_says_so(picture_folder, tiny_stages, no_network, tmp_path):
    tiny_stages("./nowhere")
    html = run(picture_folder, tmp_path / "run", minutes=0.001)
    assert "The clock ended the tokenizer" in html
    assert "The clock ended the generator" in html
    assert json.loads((tmp_path / "run" / "result.json").read_text())["tokenizer"]["cut_short"] is True


def test_an_occupied_folder_is_refused(picture_folder, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="already holds a run; choose another output folder"):
        run_quickstart(QuickstartRecipe(out=str(tmp_path), data=str(picture_folder)))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("per_class", "message"),
    [
        (1, "nothing can be held out of 3 pictures"),
        (4, r"few: 11 training and 1 held-out pictures are too few; .* about 25 pictures in all"),
    ],
)
def test_too_few_pictures_are_refused_before_training(per_class, message, picture_folder, tmp_path):
    for file in picture_folder.rglob("*.png"):
        if int(file.stem) < per_class:
            target = tmp_path / "few" / file.parent.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    with pytest.raises(DataError, match=message):
        run_quickstart(QuickstartRecipe(out=str(tmp_path / "run"), data=str(tmp_path / "few"), minutes=0.01))
    assert not (tmp_path / "run").exists()


def test_minutes_must_be_above_zero(picture_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"minutes must be in \(0, inf\]"):
        run_quickstart(QuickstartRecipe(out=str(tmp_path / "run"), data=str(picture_folder), minutes=0))


def test_stages_share_folders_seed_and_minutes():
    tokenizer, export, generator = stage_recipes(QuickstartRecipe(out="runs/x", minutes=10, seed=5))
    assert (tokenizer.out, export.out, generator.out) == ("runs/x/tokenizer", "runs/x/codes", "runs/x")
    assert export.tokenizer == generator.tokenizer == tokenizer.out
    assert generator.codes == export.out
    assert tokenizer.train.max_minutes + generator.train.max_minutes == pytest.approx(10)
    assert (tokenizer.train.seed, generator.train.seed) == (5, 5)
    assert tokenizer.data.path == export.data.path == "openmoji"
    assert tokenizer.data.image_size == export.data.image_size


def test_own_pictures_are_cropped_and_not_flipped(tmp_path):
    tokenizer, export, _ = stage_recipes(QuickstartRecipe(data=str(tmp_path)))
    assert tokenizer.data == export.data
    assert (tokenizer.data.path, tokenizer.data.flip, tokenizer.data.classes) == (str(tmp_path), False, None)
    assert tokenizer.data.image_size == stage_recipes(QuickstartRecipe())[0].data.image_size


def test_shown_prompts_are_well_known_ones_filled_up_with_others():
    def shown(captions) -> list[str]:
        return shown_prompts(SimpleNamespace(captions=captions))

    others = [f"drawing {number}" for number in range(20)]
    assert shown([*others, "banana", "", "banana"]) == ["banana", *others[:7]]
    assert shown([*others, *PROMPTS]) == list(PROMPTS)
    assert shown(["one"]) == ["one"]
    assert shown(None) == []


def test_text_is_left_out_where_there_are_no_captions(encoder_dir):
    wanted = ConditionConfig(text=True, text_encoder=str(encoder_dir))
    assert text_condition(wanted, True) == wanted
    assert text_condition(wanted, False).text is False
    assert wanted.text is True


def test_the_same_seed_gives_the_same_weights_and_settings(
    picture_folder, tiny_stages, no_network, tmp_path, monkeypatch
):
    tiny_stages("./nowhere")
    monkeypatch.setattr(quickstart, "write_report", lambda out, *rest: out / "report.html")
    monkeypatch.setattr(quickstart, "show", lambda sheet: None)
    monkeypatch.setattr(Image, "open", lambda file: Image.new("RGB", (8, 8)))
    codes = []
    for name in ("a", "b"):
        run_quickstart(QuickstartRecipe(out=str(tmp_path / name), data=str(picture_folder)))
        codes.append(ImageGenerationPipeline.from_pretrained(tmp_path / name)(class_labels=[0, 1, 2], seed=0).codes)
    assert torch.equal(*codes)
