"""Every command of the README and the docs runs: as it is written, on tiny pictures and models in the place of yours.

What a reader has to bring (pictures, models, weight files) lies where the command looks for it. Options are added that
make sizes and steps small; a preset's number of samples and size are made small too. Launchers are left out.
"""

import dataclasses
import json
import runpy
import shlex
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.drawings import write_pictures
from tests.published import SCALES, SIDE, offer_tiny_models, write_published
from tests.stand_ins import draw_pictures
from tests.test_readme import WVQ_LINES, command_lines, wvq_arguments
from tests.tiny import (
    TINY_GENERATOR,
    TINY_TOKENIZER,
    make_layout_pipeline,
    make_pipeline,
    save_text_encoder,
    tiny_stage_recipes,
)
from tests.vision import save_vit
from tests.wvq.data.test_token_files import write_folders, write_lines
from wvq.app import quickstart
from wvq.app.cli import main
from wvq.data.pictures import read_picture
from wvq.data.pixels import center_crop, to_pixels
from wvq.eval import presets
from wvq.eval.real.archive import write_archive
from wvq.files.names import FINGERPRINT_NAME
from wvq.pipelines.published.catalogue import CATALOGUE
from wvq.pipelines.published.importing import import_published
from wvq.pipelines.published.recipes import ImportRecipe
from wvq.tokenizer.modeling import WassersteinVQModel

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
PICTURES = ("path/to/pictures", "path/to/imagenet", "path/to/ffhq", "path/to/folder")
SHORT = ["--train.images=16", "--train.batch_size=8", "--train.num_workers=0", "--train.warmup_images=0"]
SHORT += ["--train.log_every=8", "--train.evaluate_every=0", "--train.save_every=0"]


@pytest.fixture(scope="module")
def things(tiny_tokenizer_dir, tiny_codes_dir, picture_folder, caption_folder, tmp_path_factory):
    """What the commands read, by the names that the docs give it."""
    folder = tmp_path_factory.mktemp("things")
    encoder = save_text_encoder(folder / "encoder")
    # Without what it says of its pictures: others stand in for those that the docs train it on.
    tokenizer = folder / "tokenizer"
    shutil.copytree(tiny_tokenizer_dir, tokenizer, ignore=shutil.ignore_patterns(FINGERPRINT_NAME))
    classes = [f"class {index}" for index in range(1_000)]
    make_pipeline(tokenizer, class_names=classes).save_pretrained(folder / "imagenet")
    make_pipeline(tokenizer, encoder, ["flags", "faces"]).save_pretrained(folder / "openmoji")
    make_pipeline(tokenizer, encoder, ()).save_pretrained(folder / "captioned")
    named = dict.fromkeys(PICTURES, picture_folder) | {"path/to/folder": caption_folder, "encoder": encoder}
    write_pictures(folder / "few", per_class=8)  # of which Inception takes its time
    named["path/to/imagenet"] = folder / "few"
    make_pipeline(tokenizer).save_pretrained(folder / "mine")  # its classes are those of the pictures
    make_layout_pipeline("multi-scale").save_pretrained(folder / "scales")
    for name, num_classes in {"llamagen-b": 1_000, "llamagen-few": 3}.items():
        write_published(folder / "files" / name, "llamagen", generator_name="generator.pt", num_classes=num_classes)
        files = (str(folder / "files" / name / f"{part}.pt") for part in ("tokenizer", "generator"))
        import_published(ImportRecipe("llamagen", str(folder / name), *files, image_size=SIDE, num_heads=2))
    names = ("imagenet", "openmoji", "captioned", "mine", "scales", "llamagen-b", "llamagen-few")
    named |= {f"runs/{name}": folder / name for name in names}
    Image.new("RGB", (24, 24), "red").save(folder / "photo.png")
    Image.new("L", (24, 24), "white").save(folder / "mask.png")
    named |= {name: folder / name for name in ("photo.png", "mask.png")}
    named |= {"runs/vqgan": tokenizer, "vit": save_vit(folder / "vit")}
    named |= {f"runs/{name}/tokenizer": tokenizer for name in ("mine", "openmoji")}
    codes = ("runs/codes", "runs/mine/codes", "runs/captioned_codes", "runs/my_codes")
    return named | dict.fromkeys(codes, tiny_codes_dir)


@pytest.fixture
def place(things, random_inception_file, lpips_file, tmp_path, monkeypatch):
    """A function that puts things into an empty folder, which is then the current one."""
    monkeypatch.chdir(tmp_path)

    def put(name: str, thing: str | None = None) -> None:
        target, thing = Path(name), thing or name
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if thing in things:
            target.symlink_to(things[thing])
        elif name == "weights.pth":
            target.symlink_to(random_inception_file)
        elif name == "lpips.pth":
            target.symlink_to(lpips_file)
        elif name == "prompts.txt":
            target.write_text("red circle\nblue cross\n")

    return put


@pytest.fixture(autouse=True)
def _tiny_settings(things, tmp_path, monkeypatch):
    """Of what no option makes small: a preset, and the quick start."""
    monkeypatch.setattr(quickstart, "stage_recipes", tiny_stage_recipes(things["encoder"]))
    monkeypatch.setattr(quickstart, "SEARCH_SHARE", 0)
    offer_tiny_models(monkeypatch, tmp_path / "hub")
    preset = dataclasses.replace(presets.find_preset("llamagen_b_256"), num_images=9, image_size=16)
    monkeypatch.setitem(presets.PRESETS, "llamagen_b_256", preset)


def own_recipe(name: str) -> dict:
    """What a reader's my_*.yaml may hold."""
    if "generator" in name:
        return {"tokenizer": "runs/vqgan", "codes": "runs/codes", "out": "runs/own"}
    data = {"path": "path/to/pictures", "image_size": 16}
    return {"data": data} if "tokenizer" in name else {"data": data, "tokenizer": "runs/vqgan", "out": "runs/own"}


def prepare(arguments: list[str], place) -> list[str]:
    """Put what a command reads into its place; the options that make it small."""
    given = dict(pairwise(arguments))
    for word in arguments:
        place(word) if word in (*PICTURES, "weights.pth", "prompts.txt") else None
    for option in {"--tokenizer", "--codes"} & set(given):
        place(given[option])
    if "--start" in given:
        place(given["--start"], None if arguments[0] == "train-generator" else "runs/vqgan")
    if (config := given.get("--config", "")).startswith("my_"):
        Path(config).write_text(json.dumps(own_recipe(config)))
        for name in ("runs/vqgan", "runs/codes", "path/to/pictures"):
            place(name)
    command = arguments[0]
    if command == "quickstart":
        return []
    if command == "train-tokenizer":
        place("path/to/pictures")
        small = ["--data.image_size=16" if "--start" in given else "--data.image_size=32", *SHORT]
        small += [] if "--data.path" in given else ["--data.path=path/to/pictures", "--data.classes=null"]
        if "--start" not in given:
            quantizer = [option for option in TINY_TOKENIZER if option.startswith("--model.quantizer")]
            kept = quantizer if "--model.quantizer" in given else []
            small += [o for o in TINY_TOKENIZER if o not in kept and not o.startswith("--train")]
        config = given.get("--config", "")
        if config.endswith("_var"):
            small += [f"--model.{name}=[1,2,4]" for name in ("scales", "scale_weights") if "transplant" in config]
        if any(word in config for word in ("gan", "refine", "_var")):
            place("lpips.pth"), place("vit")
            small += ["--loss.perceptual_weights=lpips.pth", "--discriminator.backbone=vit"]
            small += ["--discriminator.start_images=0", "--discriminator.generator_start_images=8"]
        return small
    if command == "export-codes":
        return ["--data.image_size=16"]
    if command == "import-codes":
        place("path/to/imagenet")
        write_token_files(Path(arguments[1]))
        return []
    if command == "train-generator":
        place("encoder")
        sizes = [o for o in TINY_GENERATOR if not o.startswith("--train")] + ["--model.size=null"]
        sizes = [] if "--start" in given else [*sizes, "--model.code_dim=4"]
        return [*sizes, *SHORT, "--condition.text_encoder=encoder", "--condition.text_length=5"]
    if command == "sample":
        for word in (arguments[1], *({"photo.png", "mask.png"} & set(arguments))):
            place(word)
        return ["--num_images=4"]
    if command == "info":
        if arguments[1].endswith(".png"):
            place("runs/imagenet")
            assert main(["sample", "runs/imagenet", "--seed=17", "--out=many"]) == 0
        else:
            place(arguments[1])
        return []
    if command == "import":
        return prepare_import(arguments[1], given)
    if command == "export":
        place(arguments[2])
        return []
    if command == "study":
        return ["--num_codes=8", "--num_features=64", "--evaluation_features=64", "--steps=2", "--code_dim=2"]
    return prepare_evaluation(arguments, given, place)


def prepare_import(name: str, given: dict) -> list[str]:
    """Write the files that an import is given; options that say what those of no published name do not show."""
    if "--tokenizer" not in given:
        return []
    family = CATALOGUE[name].family if name in CATALOGUE else name
    write_published(Path(), family, given["--tokenizer"], given.get("--generator"), num_classes=1_000)
    files = {"tokenizer": given["--tokenizer"], "generator": given.get("--generator")}
    if ImportRecipe(name, given["--out"], **files).published is not None:
        return []
    return [f"--image_size={SIDE}", f"--scales={SCALES}"]


def write_token_files(target: Path) -> None:
    """The codes of ``path/to/imagenet`` by ``runs/vqgan`` as another project has them, in the form of a name."""
    tokenizer = WassersteinVQModel.from_pretrained("runs/vqgan")
    files = sorted(Path("path/to/imagenet").glob("*/*.*"))
    pixels = torch.stack([to_pixels(center_crop(read_picture(file), 16)) for file in files])
    codes = tokenizer.encode(pixels).codes.flatten(1)[:, None].expand(-1, 10, -1).numpy()
    if target.suffix == ".jsonl":
        rows = [{"class_id": 0, "tokens": crop} for crops in codes.tolist() for crop in crops]
        write_lines(target, rows)
    else:
        write_folders(target.parent, codes, [0] * len(codes), target.name.removesuffix("_codes"))


def prepare_evaluation(arguments: list[str], given: dict, place) -> list[str]:
    if arguments[1] == "compare":
        place("runs/mine"), place("path/to/pictures")
        for name in arguments[2:]:
            command = ["evaluate", "generation", "runs/mine", "--data.path=path/to/pictures", "--num_images=9"]
            assert main([*command, "--data.image_size=16", f"--out={name}"]) == 0
        return []
    mine = "runs/mine" if arguments[1] == "generation" else "runs/vqgan"
    place(arguments[2], "runs/llamagen-few" if arguments[2] == "runs/llamagen-b" else mine)
    place("path/to/pictures")
    small = ["--data.image_size=16", "--data.validation_fraction=0.2", "--batch_size=16"]
    if "--data.path" not in given:
        small += ["--data.path=path/to/pictures", "--data.classes=null"]
    if "--num_images" in given:
        small += ["--num_images=9"]
    if "--reference" in given:
        write_archive(given["--reference"], [draw_pictures(12)], 12)
        small = []
    return small


# Of lines that differ in their launcher or comment only, one.
@pytest.mark.parametrize("line", {tuple(wvq_arguments(line)): line for line in WVQ_LINES}.values())
def test_commands_run(line, place):
    arguments = wvq_arguments(line)
    small = prepare(arguments, place)
    if "--resume" in arguments:
        assert main([word for word in [*arguments, *small] if word != "--resume"]) == 0
        next(Path(dict(pairwise(arguments))["--out"]).glob("00*.png")).unlink()
    assert main([*arguments, *small]) == 0


@pytest.mark.parametrize("line", [line for line in command_lines() if "-m benchmarks." in line])
def test_benchmarks_start_and_know_their_options(line, monkeypatch, capsys):
    """They run for minutes to hours, on data of the reader's."""
    words = shlex.split(line, comments=True)
    module = words[words.index("-m") + 1]
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in shown
