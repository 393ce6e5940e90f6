"""What files hold is shown, and never obeyed by the terminal; progress bars and pictures of our own still work."""

import copy
import io
import json
import os
import sys
import warnings

import pytest
from PIL import Image
from tqdm import tqdm

from tests.processes import run
from wvq.app import terminal
from wvq.app.cli import main
from wvq.eval.report.markdown import markdown_table
from wvq.pipelines.model_card import _table
from wvq.pipelines.sampling_job import PNG_KEY
from wvq.plain_output import PlainStream, one_line, plain_output, printable

HOSTILE = "\x1b]0;owned\x07\x1b[2J\rfine\x9b31m\u202egnp.exe\ud800"
SHOWN = "\\x1b]0;owned\\x07\\x1b[2J\\rfine\\x9b31m\\u202egnp.exe\\ud800"


def test_control_characters_become_their_codes():
    assert printable(HOSTILE) == SHOWN
    assert printable("größe\n\tπ 😀 – ▀") == "größe\n\tπ 😀 – ▀"
    assert one_line("a\n b\t\x1b[m") == "a b \\x1b[m"


def test_a_stream_writes_what_its_encoding_has():
    raw = io.BytesIO()
    stream = PlainStream(io.TextIOWrapper(raw, encoding="ascii"))
    print("größe", HOSTILE, file=stream, flush=True)
    assert raw.getvalue().decode() == f"gr\\xf6\\xdfe {SHOWN}\n"


def test_standard_streams_are_plain_within_and_as_before_behind(capsys):
    before = sys.stdout, sys.stderr
    with plain_output():
        print(HOSTILE)
        print("\x1b[2Jx\r\x1b[A", file=sys.stderr)
        with plain_output():  # nothing is written twice over
            print("\\x1b")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == (SHOWN + "\n\\x1b\n", "\\x1b[2Jx\r\x1b[A\n")


def test_a_stream_that_was_replaced_within_stays(monkeypatch):
    other = io.StringIO()
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with plain_output():
        sys.stdout = other  # as after a broken pipe
    assert sys.stdout is other


def test_bars_and_pictures_reach_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with plain_output():
        monkeypatch.setattr(sys.stdout.stream, "isatty", lambda: True, raising=False)
        terminal.show(Image.new("RGB", (1, 2)))
        with tqdm(total=2) as outer, tqdm(total=2):
            outer.update(2)
    written = capsys.readouterr()
    assert written.out.startswith("\x1b[38;2;0;0;0;48;2;0;0;0m▀\x1b[0m")
    assert "\r" in written.err
    assert "\\x" not in written.err + written.out


def test_the_command_line_shows_settings_of_a_picture_as_they_are(tmp_path, capsys):
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_itxt(PNG_KEY, json.dumps({"prompt": HOSTILE}))
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png", pnginfo=info)
    assert main(["info", str(tmp_path / "a.png")]) == 0
    assert SHOWN in capsys.readouterr().out


def test_errors_and_warnings_are_one_line_of_text(tmp_path, capsys, fails):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": HOSTILE}))
    line = fails("info", tmp_path)
    assert "\\x1b]0;owned" in line
    assert "\x1b" not in line
    with warnings.catch_warnings(record=True):
        main(["--version"])
        text = warnings.formatwarning(HOSTILE + "\nnext", UserWarning, "f", 1)
    assert text == f"warning: {one_line(HOSTILE)} next\n"


def test_a_file_name_that_is_no_text_is_shown(tmp_path):
    name = str(tmp_path).encode() + b"/\xff\x1b[31m.json"
    with open(name, "w") as opened:
        json.dump({"kind": "generation", "metrics": {"fid": 1.0}, "num_images": 4}, opened)
    done = run(["-m", "wvq", "info", os.fsdecode(name)])
    assert done.returncode == 0, done.stderr
    assert "\\udcff\\x1b[31m.json: generation result" in done.stdout


def test_no_cell_of_a_table_leaves_its_place():
    table = markdown_table(["a", "b|c"], [["x\n| y |", "\x1b[m"]])
    assert table.splitlines() == ["| a | b\\|c |", "| --- | --- |", "| x \\| y \\| | \\x1b[m |"]
    assert (
        _table({"tokenizer": {"psnr |\n# heading": 1.0}}).splitlines()[-1] == "| tokenizer | psnr \\| # heading | 1 |"
    )


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_a_page_shows_markup_as_text(text):
    from wvq.eval.report.page import Report

    report = Report(text, text).section(text, text).warning(text).code(text, text)
    report.table([[text, text]], [text, "b"], text).cards([(text, text, text)])
    report.figure(Image.new("RGB", (1, 1)), text, text)
    page = report.html()
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_a_copy_of_a_plain_stream_is_one_too():
    stream = io.StringIO()
    copy.copy(PlainStream(stream)).write("\x1b[2Ja")
    assert stream.getvalue() == "\\x1b[2Ja"
