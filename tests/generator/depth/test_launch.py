"""Training over product codes on two processes, plain and sharded: they learn what one process learns."""

import json
import shutil

import pytest
import torch

from tests.generator.test_launch import losses, run
from wvq.generator.depth.modeling import DepthTransformer
from wvq.training.checkpoints import find_checkpoints

VECTORS = "--model.code_dim=4"


@pytest.fixture(scope="module")
def one(tmp_path_factory, product_codes_dir, product_tokenizer_dir):
    out = tmp_path_factory.mktemp("one") / "run"
    run("one", out, product_codes_dir, product_tokenizer_dir, VECTORS)
    return out


@pytest.mark.parametrize("kind", ["two", "sharded"])
def test_two_processes_learn_what_one_learns_and_resume_exactly(
    kind, one, tmp_path, product_codes_dir, product_tokenizer_dir
):
    out, options = tmp_path / "run", (VECTORS, "--train.save_every=32", "--train.keep_checkpoints=9")
    run(kind, out, product_codes_dir, product_tokenizer_dir, *options)
    first, second = (json.loads((folder / "generator" / "result.json").read_text()) for folder in (one, out))
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
    assert dict(losses(out)) == pytest.approx(dict(losses(one)), rel=1e-4)
    expected, trained = (DepthTransformer.from_pretrained(folder / "generator") for folder in (one, out))
    for (name, value), other in zip(expected.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(other, value, rtol=1e-2, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.equal(expected.codebook, trained.codebook)

    whole = losses(out)
    for checkpoint in find_checkpoints(out / "generator" / "training")[1:]:
        shutil.rmtree(checkpoint)
    for name in ("model.safetensors", "result.json"):
        (out / "generator" / name).unlink()
    run(kind, out, product_codes_dir, product_tokenizer_dir, *options, "--resume")
    assert losses(out) == whole
    assert json.loads((out / "generator" / "result.json").read_text())["loss"] == second["loss"]
