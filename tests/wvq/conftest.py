"""What the tests of the command line share: a pipeline, and a command that must fail in one line."""

import pytest

from tests.tiny import save_pipeline
from wvq.app.cli import main


@pytest.fixture(scope="module")
def pipeline_dir(tiny_tokenizer_dir, tmp_path_factory):
    return save_pipeline(tiny_tokenizer_dir, tmp_path_factory.mktemp("cli"))


@pytest.fixture
def fails(capsys):
    """A function that runs a command, asserts exit code 2 and one line on stderr, and returns that line."""

    def run(*arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert caught.value.code == 2
        # Progress bars write to stderr too, each ended by a carriage return.
        written = captured.err.replace("\x1b[A", "")  # what moves the cursor back to a bar
        lines = [line for line in written.splitlines() if line.strip() and "it/s" not in line and "%|" not in line]
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("wvq")
        assert ": error: " in lines[0]
        return lines[0]

    return run


@pytest.fixture
def elsewhere(tmp_path_factory, monkeypatch):
    """A command that runs against expectation writes its default folders here."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
