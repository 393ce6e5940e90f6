"""Tiny pipelines that the tests of this folder share: with text, without, saved, and a copy to damage."""

import shutil

import pytest

from tests.tiny import make_layout_pipeline, make_pipeline, save_text_encoder


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp("text_encoder"))


@pytest.fixture(scope="module")
def pipe(tiny_tokenizer_dir, encoder_dir):
    """Conditional on class and text."""
    return make_pipeline(tiny_tokenizer_dir, encoder_dir)


@pytest.fixture(scope="module")
def class_pipe(tiny_tokenizer_dir):
    return make_pipeline(tiny_tokenizer_dir)


@pytest.fixture(scope="module")
def scale_pipe(encoder_dir):
    """Of multi-scale codes, conditional on class and text."""
    return make_layout_pipeline("multi-scale", encoder_dir)


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    """Folder of the saved pipeline; do not write into it."""
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of the saved pipeline to damage."""
    shutil.copytree(saved, tmp_path / "pipeline")
    return tmp_path / "pipeline"
