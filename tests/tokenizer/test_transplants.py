"""The published protocol in small: a network as an import gives it, a new codebook in it, then its decoder refined."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.peers import peer
from wvq.data.dataset import load_images
from wvq.errors import ConfigError
from wvq.pipelines.published.importing import import_published
from wvq.pipelines.published.recipes import ImportRecipe
from wvq.settings.parser import load_recipe
from wvq.tokenizer.evaluation import evaluate_tokenizer
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.published.registry import write_tokenizer
from wvq.tokenizer.quantizers.alignment import gaussian_wasserstein
from wvq.tokenizer.recipes import TokenizerRecipe
from wvq.tokenizer.train import train_tokenizer
from wvq.training.tracking import read_log

SHARED = {"base_channels": 32, "channel_multipliers": [1, 1, 2], "num_res_blocks": 1, "downsample": "asymmetric"}
SHARED |= {"patch_size": 1, "attention": True, "end_kernel": 3, "latent_channels": 8, "quantizer": "vanilla"}
VAR = {**SHARED, "latent_kernel": 3, "code_dim": 8, "scales": [1, 2, 4], "num_codes": 32}
LLAMAGEN = {**SHARED, "code_dim": 4, "l2_normalize": True, "num_codes": 32}
POST_QUANT_CONV = "decoder.0.weight"


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_tokenizer_recipe):
    """A function that gives the folder of a small tokenizer, imported from a file in the form of a published one."""
    folders = {}

    def make(name: str) -> Path:
        if name not in folders:
            root, fields = tmp_path_factory.mktemp(name), {"var": VAR, "llamagen": LLAMAGEN}[name]
            train_tokenizer(tiny_tokenizer_recipe(root / "theirs", model=fields, train={"images": 192}))
            save_file(
                write_tokenizer(name, WassersteinVQModel.from_pretrained(root / "theirs")), root / "file.safetensors"
            )
            sizes = {"image_size": 16, "scales": fields.get("scales")}
            out = str(root / "imported")
            import_published(ImportRecipe(name=name, out=out, tokenizer=str(root / "file.safetensors"), **sizes))
            folders[name] = root / "imported"
        return folders[name]

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory, picture_folder, tiny_data):
    """A function that runs a shipped recipe in small, from a start; returns the folder."""

    def train(recipe: str, start: Path, images: int, **changes) -> Path:
        out = tmp_path_factory.mktemp("run")
        loop = {"batch_size": 16, "log_every": 16, "evaluate_every": 0, "num_workers": 0, "mixed_precision": "no"}
        small = {"out": str(out), "start": str(start), "loss.perceptual_weight": 0.0, "train.channels_last": False}
        small |= {f"train.{name}": value for name, value in {**loop, "images": images}.items()}
        settings = load_recipe(TokenizerRecipe, f"imagenet_256/{recipe}", {**small, **changes})
        settings.data = tiny_data(picture_folder)
        train_tokenizer(settings)
        return out

    return train


@pytest.fixture(scope="module")
def transplanted(run, published):
    """A function that gives the folder of a transplant over a published network."""
    folders = {}
    rates = {"train.codebook_learning_rate": 0.02, "train.learning_rate": 1e-3}
    var = {"model.num_codes": 64, "model.residual_projector": 16, "model.window_size": 672}
    var |= {"model.scales": [1, 2, 4], "model.scale_weights": [1, 2, 5]}

    def make(name: str) -> Path:
        if name not in folders:
            changes = {**rates, **(var if name == "var" else {"model.num_codes": 64})}
            folders[name] = run(f"tokenizer_transplant_{name}", published(name), 480, **changes)
        return folders[name]

    return make


def changed(before: Path, after: Path) -> set[str]:
    """Parts with a weight that differs in any bit."""
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    same = {name for name in old.keys() & new.keys() if torch.equal(old[name], new[name])}
    return {name.partition(".")[0] for name in (old.keys() | new.keys()) - same}


def codes(folder: Path, pictures) -> torch.Tensor:
    return WassersteinVQModel.from_pretrained(folder).encode(pictures).codes


@pytest.fixture(scope="module")
def held_out(picture_folder, tiny_data):
    return load_images(tiny_data(picture_folder)).validation


@pytest.fixture(scope="module")
def pictures(held_out):
    return torch.stack([held_out[i]["pixel_values"] for i in range(len(held_out))])


@pytest.mark.parametrize("name", ["var", "llamagen"])
def test_a_new_codebook_trains_in_a_network_that_stays(name, published, transplanted, held_out):
    """Encoder and decoder are the published ones to the bit; E falls, and more codes are in use, more evenly."""
    folder = transplanted(name)
    moved = {"quantizer", "residual_projector"} if name == "var" else {"quantizer"}
    assert changed(published(name), folder) == moved
    before, after = (
        evaluate_tokenizer(WassersteinVQModel.from_pretrained(one), held_out) for one in (published(name), folder)
    )
    assert after["quantization_error"] < 0.8 * before["quantization_error"]
    assert 64 * after["utilization"] > 1.2 * 32 * before["utilization"]
    assert after["perplexity"] > 1.2 * before["perplexity"]
    first, *_, last = (row for row in read_log(folder / "training") if row["kind"] == "train")
    assert last["alignment"] < first["alignment"]
    assert first["learning_rate_codebook"] == last["learning_rate_codebook"] == 0.02
    if name == "var":
        assert last["feature"] < first["feature"]
        assert first["learning_rate_scale_convs"] == last["learning_rate_scale_convs"] == 0.001
        assert last["learning_rate_matrices"] < 0.2 * first["learning_rate_matrices"]
    else:
        vectors = WassersteinVQModel.from_pretrained(folder).quantizer.lookup(torch.arange(64))
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize("name", ["var", "llamagen"])
def test_then_the_decoder_trains_and_codes_stay(name, transplanted, run, pictures):
    start = transplanted(name)
    adversary = {"discriminator.network": "patchgan", "discriminator.base_channels": 8, "discriminator.num_layers": 1}
    later = {"discriminator.generator_start_images": 0, "discriminator.ramp_images": 0, "train.warmup_images": 0}
    recipe = "tokenizer_refine_var" if name == "var" else "tokenizer_refine"
    folder = run(recipe, start, 48, **adversary, **later)
    assert changed(start, folder) == ({"decoder", "residual_projector"} if name == "var" else {"decoder"})
    assert torch.equal(codes(start, pictures), codes(folder, pictures))
    before, after = (WassersteinVQModel.from_pretrained(one) for one in (start, folder))
    assert before.codes_hash() == after.codes_hash()
    assert not torch.equal(before.state_dict()[POST_QUANT_CONV], after.state_dict()[POST_QUANT_CONV])
    row = [row for row in read_log(folder / "training") if row["kind"] == "train"][-1]
    assert row["adversarial_weight"] > 0


# ---- the term of the features


def test_the_feature_error_is_that_of_what_is_decoded(transplanted, pictures):
    model = WassersteinVQModel.from_pretrained(transplanted("var"))
    encoded = model.encode(pictures)
    restored = encoded.quantized + model.residual_projector(encoded.quantized)
    output = model(pictures)
    expected = (restored - encoded.features).square().mean()
    torch.testing.assert_close(output.feature_error, expected)
    torch.testing.assert_close(output.reconstruction.clamp(-1, 1), model.decode(encoded.quantized))
    model.freeze(["encoder", "decoder"])
    model(pictures).feature_error.backward()
    moved = {name.partition(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert moved == {"residual_projector"}


def test_without_a_residual_projector_there_is_none(published, run, pictures):
    folder = published("llamagen")
    assert WassersteinVQModel.from_pretrained(folder)(pictures).feature_error is None
    with pytest.raises(ConfigError, match=r"^loss\.feature_weight is for a residual projector, which this tokenizer"):
        run("tokenizer_transplant_llamagen", folder, 16, **{"loss.feature_weight": 1.0})


# ---- the alignment


def test_the_alignment_is_that_of_the_authors():
    """Theirs divides covariances by N - 1 and adds 1e-6 to their diagonals; ours divides by N, and adds nothing."""
    theirs = peer("wasserstein_var_tokenizer")
    features = theirs.io["alignment_features"].double()
    codebook = theirs.weights["quantizer.embedding.weight"].double()
    value = theirs.io["alignment_value"].item()
    mean, covariance = features.mean(0), torch.cov(features.T, correction=0)
    ours = gaussian_wasserstein(mean, covariance, codebook, normalize=False, target_scale=0.5).item()
    assert ours == pytest.approx(value, rel=0.01)  # of 64 codes, 1/64 of whose covariance is a part of the value
    count, ridge = len(codebook), 1e-6 * torch.eye(8, dtype=torch.float64)
    wider = codebook.mean(0) + (codebook - codebook.mean(0)) * (count / (count - 1)) ** 0.5
    unbiased = torch.cov(features.T) + ridge
    same = gaussian_wasserstein(mean, unbiased, wider, normalize=False, target_scale=0.5).item()
    assert same == pytest.approx(value, rel=5e-6)
