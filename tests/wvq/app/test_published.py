"""The commands over other projects' models: import, its list, info and sample over what it wrote, export."""

from pathlib import Path

import pytest

from tests.published import SCALES, offer_tiny_models, write_published
from wvq.app.cli import main
from wvq.pipelines.published.catalogue import CATALOGUE, catalogue_text

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def files(tmp_path):
    """Folder with the files of a tiny LlamaGen."""
    write_published(tmp_path / "files", "llamagen", generator_name="generator.pt")
    return tmp_path / "files"


def test_the_list_needs_nothing_else(capsys):
    assert main(["import", "--list"]) == 0
    assert capsys.readouterr().out == catalogue_text() + "\n"


def test_files_become_a_pipeline_that_other_commands_take(files, capsys):
    given = [f"--tokenizer={files / 'tokenizer.pt'}", f"--generator={files / 'generator.pt'}", "--out=runs/own"]
    assert main(["import", "llamagen", *given, "--image-size", "16", "--num_heads", "2"]) == 0
    shown = capsys.readouterr().out
    for part in ('tokenizer: tokenizer.pt, weights under "model", SHA-256', "pipeline of LlamaGen in runs/own"):
        assert part in shown
    assert shown.endswith("next: wvq sample runs/own\n")
    assert main(["info", "runs/own"]) == 0
    shown = capsys.readouterr().out
    assert "imported from     LlamaGen (tokenizer.pt, generator.pt)" in shown
    assert "licence           not known" in shown
    assert main(["sample", "runs/own", "--class", "1", "--num_images", "2", "--out=samples"]) == 0
    assert main(["export", "llamagen", "runs/own", "--out=gpt.pt", "--tokenizer-out=vq.pt"]) == 0
    shown = capsys.readouterr().out
    assert "generator in gpt.pt, tokenizer in vq.pt" in shown
    assert "n_head=2" in shown
    again = ["--tokenizer=vq.pt", "--generator=gpt.pt", "--out=runs/again", "--image_size=16", "--num_heads=2"]
    assert main(["import", "llamagen", *again]) == 0


def test_an_imported_generator_is_trained_on_and_written_out_again(files, picture_folder, capsys):
    given = [f"--tokenizer={files / 'tokenizer.pt'}", f"--generator={files / 'generator.pt'}", "--out=lg"]
    assert main(["import", "llamagen", *given, "--image_size=16", "--num_heads=2"]) == 0
    data = [f"--data.path={picture_folder}", "--data.image_size=16", "--data.validation_fraction=0.2"]
    assert main(["export-codes", "--tokenizer=lg/tokenizer", *data, "--out=codes"]) == 0
    short = ["--train.images=32", "--train.batch_size=8", "--train.num_workers=0", "--train.warmup_images=0"]
    assert (
        main(["train-generator", "--start=lg", "--tokenizer=lg/tokenizer", "--codes=codes", *short, "--out=own"]) == 0
    )
    card = Path("own/README.md").read_text()
    for text in ("The tokenizer has", "The generator started from"):
        assert f"{text} weights of LlamaGen (tokenizer.pt, generator.pt), licence not known." in card
    assert main(["sample", "own", "--class", "cross", "--num_images=2", "--out=samples"]) == 0
    assert main(["export", "llamagen", "own", "--out=gpt.pt"]) == 0
    assert "num_classes=3" in capsys.readouterr().out


def test_a_tokenizer_by_itself(tmp_path, capsys):
    write_published(tmp_path, "var")
    scales = f"[{','.join(map(str, SCALES))}]"
    assert main(["import", "var", f"--tokenizer={tmp_path / 'tokenizer.pt'}", "--out=vq", "--scales", scales]) == 0
    assert "tokenizer of VAR in vq; next: wvq export-codes --tokenizer vq" in capsys.readouterr().out
    assert main(["info", "vq"]) == 0
    assert "imported from     VAR (tokenizer.pt)" in capsys.readouterr().out


def test_a_model_by_its_name(tmp_path, monkeypatch, capsys):
    offer_tiny_models(monkeypatch, tmp_path / "hub")
    assert main(["import", "var-d16", "--out=var"]) == 0
    capsys.readouterr()
    assert main(["info", "var"]) == 0
    shown = capsys.readouterr().out
    assert "imported from     VAR, var-d16 (vae_ch160v4096z32.pth, var_d16.pth)" in shown
    assert f"published         {CATALOGUE['var-d16'].figure} (preset var_d16_256)" in shown


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["name: give a published model"]),
        (["var-d16"], ["out: give a new folder"]),
        (["lamagen", "--out=o"], ['"lamagen" is no published model', '"llamagen"']),
        (["var", "--out=o", "--tokenizer=nothing.pt"], ["nothing.pt: no such file"]),
        (["var", "--out=o", "--tokenizer=t.pt", "--scales", "[4,2]"], ["scales must be a rising list"]),
        (["var", "--out=o", "--tokenizer=t.pt", "--num_heads", "2"], ["num_heads is of a generator"]),
        (["var", "--out=o", "--tokeniser=t.pt"], ['did you mean "tokenizer"']),
        (["var-d16", "--out=o"], ["could not be fetched from the Hub", "--tokenizer"]),
    ],
)
def test_what_an_import_cannot_do_is_one_line(arguments, parts, fails, tmp_path):
    line = fails("import", *arguments)
    for part in parts:
        assert part in line


def test_what_cannot_be_exported_is_one_line(files, fails, tmp_path):
    assert 'needs "llamagen"' in fails("export", "runs/own")
    write_published(tmp_path / "var", "var", generator_name="generator.pt")
    given = [f"--{part}={tmp_path / 'var' / part}.pt" for part in ("tokenizer", "generator")]
    assert main(["import", "var", *given, "--out=var", "--scales=[1,2,4]", "--num_heads=2"]) == 0
    assert "it draws one code a position" in fails("export", "llamagen", "var", "--out=gpt.pt")
