"""Training from a trained tokenizer: frozen parts, another quantizer, and an adversary that joins the run in time."""

from dataclasses import replace

import pytest
import torch

from wvq.data.dataset import load_images
from wvq.errors import CheckpointError, ConfigError
from wvq.tokenizer.adaptation import build_tokenizer
from wvq.tokenizer.modeling import WassersteinVQModel
from wvq.tokenizer.recipes import DiscriminatorConfig, TokenizerRecipe
from wvq.tokenizer.train import train_tokenizer
from wvq.training.tracking import read_log

FROM_DATA = {"image_size": 16, "class_names": ["circle", "cross", "square"]}
TRANSPLANTS = [
    {"quantizer": "vanilla"},
    {"num_codes": 64},
    {"code_dim": 3},
    {"quantizer": "ema", "num_codes": 16, "code_dim": 6},
    {"quantizer": "fsq", "levels": [5, 5, 4], "num_codes": 100, "code_dim": 3},
    {"num_groups": 2},
]


@pytest.fixture
def recipe(tmp_path, tiny_tokenizer_dir, tiny_tokenizer_recipe):
    """A function that makes the recipe of 3 steps from the tiny tokenizer, some fields changed."""

    def make(model=None, train=None, **changes) -> TokenizerRecipe:
        loop = {"images": 48, "log_every": 16, **(train or {})}
        whole = tiny_tokenizer_recipe(tmp_path / "run", train=loop)
        start = {"start": str(tiny_tokenizer_dir), "model": model or {}}
        return replace(whole, **{**start, **changes})

    return make


@pytest.fixture
def pixel_values(recipe):
    validation = load_images(recipe().data).validation
    return torch.stack([validation[i]["pixel_values"] for i in range(len(validation))])


def changed(before: WassersteinVQModel, after: WassersteinVQModel) -> set[str]:
    """Parts with a weight that differs in any bit."""
    old, new = before.state_dict(), after.state_dict()
    same = {name for name in old.keys() & new.keys() if torch.equal(old[name], new[name])}
    return {name.partition(".")[0] for name in (old.keys() | new.keys()) - same}


def test_a_start_alone_takes_over_everything(recipe, tiny_tokenizer_dir):
    source = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    model = build_tokenizer(recipe(), FROM_DATA)
    assert changed(source, model) == set()
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(getattr(model.config, name) == getattr(source.config, name) for name in source.config.fields())


@pytest.mark.parametrize(
    ("freeze", "moved"),
    [
        ("encoder,quantizer", {"decoder"}),
        (" quantizer , ", {"encoder", "decoder"}),
        ("encoder, decoder", {"quantizer"}),
    ],
)
def test_frozen_parts_stay_to_the_bit(recipe, tiny_tokenizer_dir, pixel_values, freeze, moved):
    train_tokenizer(recipe(freeze=freeze))
    source, model = (WassersteinVQModel.from_pretrained(folder) for folder in (tiny_tokenizer_dir, recipe().out))
    assert changed(source, model) == moved
    if moved == {"decoder"}:
        assert torch.equal(model.encode(pixel_values).codes, source.encode(pixel_values).codes)
    rows = [row for row in read_log(f"{recipe().out}/training") if row["kind"] == "train"]
    assert ("learning_rate_codebook" in rows[0]) == ("quantizer" in moved)
    assert ("learning_rate_matrices" in rows[0]) == (moved != {"quantizer"})


@pytest.mark.parametrize("model", TRANSPLANTS, ids=str)
def test_a_transplant_keeps_encoder_and_decoder(recipe, tiny_tokenizer_dir, pixel_values, model):
    source = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    built = build_tokenizer(recipe(model), FROM_DATA)
    parts = {"quantizer", "projector"} if "code_dim" in model else {"quantizer"}
    assert changed(source, built) == parts
    for name, value in model.items():
        assert getattr(built.config, name) == value
    assert built.config.encoder_dim == 4
    assert built.config.channels == source.config.channels
    features = source.encoder(pixel_values)
    torch.testing.assert_close(built.encoder(pixel_values), features)
    if built.projector is not None and built.config.code_dim >= 4:
        vectors = built.projector.to_codes(features.movedim(1, -1))
        torch.testing.assert_close(built.projector.from_codes(vectors), features.movedim(1, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", TRANSPLANTS[3:5], ids=str)
def test_a_transplant_trains_and_loads_again(recipe, pixel_values, model):
    result = train_tokenizer(recipe(model))
    assert result["skipped_steps"] == 0
    loaded = WassersteinVQModel.from_pretrained(recipe().out)
    assert loaded.projector is not None
    encoded = loaded.encode(pixel_values)
    assert encoded.quantized.shape[1] == model["code_dim"]
    assert torch.equal(loaded.decode_codes(encoded.codes), loaded.decode(encoded.quantized))
    again = build_tokenizer(
        recipe({"code_dim": 2, "levels": None, "quantizer": "vanilla"}, start=recipe().out), FROM_DATA
    )
    assert changed(loaded, again) == {"quantizer", "projector"}
    assert again.projector.in_weight.shape == (2, 4)


def test_a_transplant_trains_around_a_frozen_network(recipe, tiny_tokenizer_dir):
    train_tokenizer(recipe(TRANSPLANTS[3], freeze="encoder,decoder", train={"ema_decay": 0.0}))
    source, model = (WassersteinVQModel.from_pretrained(folder) for folder in (tiny_tokenizer_dir, recipe().out))
    assert changed(source, model) == {"quantizer", "projector"}


SIZES = {"patch_size": 2, "base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1, "num_codes": 32}
SIZES |= {"code_dim": 4}
# A network as others publish it.
PUBLISHED = {"attention": "middle", "downsample": "asymmetric", "end_kernel": 3, "latent_channels": 6}
PUBLISHED |= {"latent_kernel": 3, "pixel_range": "unit", "residual_projector": 8, "quantizer": "vanilla"}


@pytest.fixture
def published(recipe, tmp_path):
    """The folder of a tokenizer with the options of published networks, trained for 3 steps."""
    train_tokenizer(recipe(PUBLISHED | SIZES, start=None, out=str(tmp_path / "published"), train={"ema_decay": 0.0}))
    return str(tmp_path / "published")


def test_a_published_network_is_refined_and_gets_another_codebook(recipe, published, pixel_values):
    source = WassersteinVQModel.from_pretrained(published)
    assert source.residual_projector[-1].weight.abs().max() > 0
    loop = {"ema_decay": 0.0}
    train_tokenizer(recipe(start=published, freeze="encoder,quantizer", train=loop))
    refined = WassersteinVQModel.from_pretrained(recipe().out)
    assert changed(source, refined) == {"decoder", "residual_projector"}
    assert refined.codes_hash() == source.codes_hash()
    other = {"quantizer": "sliced", "num_codes": 64}
    built = build_tokenizer(recipe(other, start=published, freeze="encoder,decoder"), FROM_DATA)
    assert changed(source, built) == {"quantizer", "residual_projector"}
    assert built.residual_projector[-1].weight.abs().max() == 0  # what it was trained for are other codes
    wider = build_tokenizer(recipe({"code_dim": 6}, start=published), FROM_DATA)
    assert changed(source, wider) == {"quantizer", "projector", "residual_projector"}
    assert wider(pixel_values).reconstruction.shape == pixel_values.shape


def test_a_residual_projector_joins_a_trained_tokenizer_and_leaves_its_codes(recipe, tiny_tokenizer_dir):
    source = WassersteinVQModel.from_pretrained(tiny_tokenizer_dir)
    train_tokenizer(recipe({"residual_projector": 8}, freeze="encoder,quantizer,decoder", train={"ema_decay": 0.0}))
    model = WassersteinVQModel.from_pretrained(recipe().out)
    assert changed(source, model) == {"residual_projector"}
    assert model.residual_projector[-1].weight.abs().max() > 0
    assert model.codes_hash() == source.codes_hash()
    dropped = build_tokenizer(recipe({"residual_projector": None}, start=recipe().out), FROM_DATA)
    assert dropped.residual_projector is None


def test_codes_of_length_one_pass_to_another_method_and_products_do_not(recipe, tmp_path):
    fields = {**SIZES, "quantizer": "vanilla", "l2_normalize": True, "similarity": "dot"}
    train_tokenizer(recipe(fields, start=None, out=str(tmp_path / "unit")))
    start = str(tmp_path / "unit")
    built = build_tokenizer(recipe({"quantizer": "sliced"}, start=start), FROM_DATA)
    assert (built.config.l2_normalize, built.config.similarity) == (True, "euclidean")
    with pytest.raises(ConfigError, match='l2_normalize must be false: quantizer "ema" does not'):
        build_tokenizer(recipe({"quantizer": "ema"}, start=start), FROM_DATA)


REFUSED = [
    ({"model": {"latent_channels": 4}}, "^start: the network in .* is another one"),
    ({"model": {"downsample": "asymmetric"}}, r"^start: the network in .* is another one \(downsample\); leave"),
    ({"model": {"pixel_range": "unit"}}, r"^start: the network in .* is another one \(pixel_range\); leave"),
    (
        {"freeze": "residual_projector", "model": {"residual_projector": 8}},
        "^freeze: the residual_projector is new and would stay untrained; leave it out of freeze$",
    ),
    ({"freeze": "residual_projector"}, '^freeze: there is no part "residual_projector"; one of encoder, '),
    (
        {"model": {"base_channels": 16}},
        r"^start: the network in .* is another one \(.*\); leave its sizes out of model$",
    ),
    ({"model": {"num_res_blocks": 2}}, "^start: the network in .* is another one"),
    ({"model": {"channel_multipliers": [1, 2, 2]}}, "^start: the network in .* is another one"),
    ({"model": {"attention": True}}, "^start: the network in .* is another one"),
    ({"model": {"feature_dim": 5}}, "^start: the network in .* is another one"),
    ({"model": {"num_code": 5}}, r'no field "num_code" \(did you mean "num_codes"\?\)'),
    (
        {"freeze": "encoder,decodr"},
        r'^freeze: there is no part "decodr" \(did you mean "decoder"\?\); one of encoder, ',
    ),
    ({"freeze": "encoder,quantizer,decoder"}, "^freeze: with all parts frozen there is nothing to train"),
    ({"freeze": "encoder", "start": None}, "^freeze: encoder would stay untrained; give a trained tokenizer by start$"),
    (
        {"freeze": "quantizer", "model": {"num_codes": 64}},
        "^freeze: the quantizer is new: model.num_codes differs from ",
    ),
    (
        {"freeze": "quantizer,encoder", "model": {"quantizer": "vanilla"}},
        "^freeze: the quantizer is new: model.quantizer differs from ",
    ),
]


@pytest.mark.parametrize(
    ("changes", "message"), REFUSED, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_what_does_not_fit_is_refused_before_a_folder_is_made(recipe, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        train_tokenizer(recipe(**changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_refined_decoder_leaves_caches_and_generators_valid(recipe, tiny_tokenizer_dir):
    train_tokenizer(recipe(freeze="encoder,quantizer"))
    source, model = (WassersteinVQModel.from_pretrained(folder) for folder in (tiny_tokenizer_dir, recipe().out))
    assert changed(source, model) == {"decoder"}
    assert model.codes_hash() == source.codes_hash()
    with torch.no_grad():
        model.quantizer.codebook[0, 0] += 1
    assert model.codes_hash() != source.codes_hash()


def test_a_run_with_nothing_left_to_train_is_refused(recipe, tmp_path):
    """A fixed grid of codes has no parameters of its own."""
    model = {"quantizer": "fsq", "levels": [2, 2, 2, 2], "num_codes": 16}
    with pytest.raises(ConfigError, match="freeze"):
        train_tokenizer(recipe(model, freeze="encoder,decoder"))
    assert not (tmp_path / "run").exists()


def test_a_start_that_does_not_load_is_refused(recipe, tmp_path):
    with pytest.raises(CheckpointError, match="no such"):
        train_tokenizer(recipe(start=str(tmp_path / "none")))
    assert not (tmp_path / "run").exists()


def adversary(**changes) -> DiscriminatorConfig:
    settings = {"network": "patchgan", "base_channels": 4, "num_layers": 2, "weight": 0.1}
    return DiscriminatorConfig(**{**settings, **changes})


def train_rows(folder) -> dict[int, dict]:
    return {row["images"]: row for row in read_log(f"{folder}/training") if row["kind"] == "train"}


def test_the_adversary_joins_in_time(recipe):
    """Its own figures from start_images on, the tokenizer's from generator_start_images on."""
    regularisers = {"r1_weight": 1.0, "lecam_weight": 0.1, "consistency_weight": 1.0, "r1_interval": 3}
    times = {"start_images": 32, "generator_start_images": 64, "ramp_images": 32}
    settings = adversary(learning_rate=1e-3, **regularisers, **times)
    result = train_tokenizer(recipe(discriminator=settings, train={"images": 160}))
    assert result["skipped_steps"] == result["skipped_discriminator_steps"] == 0
    rows = train_rows(recipe().out)
    assert list(rows) == list(range(16, 161, 16))
    own = {"discriminator_loss", "logits_real", "logits_fake", "lecam", "consistency", "gradient_norm_discriminator"}
    for images, row in rows.items():
        begins = images - 16
        assert row.keys() & own == (own if begins >= 32 else set())
        assert ("adversarial_weight" in row) == (begins >= 32)
        assert ("adversarial" in row) == (begins > 64)
        assert ("r1" in row) == (begins >= 32 and begins // 16 % 3 == 0)
        assert row["learning_rate_discriminator"] <= 1e-3
    assert rows[64]["adversarial_weight"] == rows[80]["adversarial_weight"] == 0
    assert rows[96]["adversarial_weight"] > 0


def test_without_an_adaptive_weight_the_ramp_is_the_weight(recipe):
    settings = adversary(adaptive_weight=False, ramp_images=32)
    train_tokenizer(recipe(discriminator=settings))
    weights = [row["adversarial_weight"] for row in train_rows(recipe().out).values()]
    assert weights == pytest.approx([0, 0.05, 0.1])


def test_a_run_with_an_adversary_logs_the_sum_of_its_terms_and_saves_the_tokenizer_alone(recipe, tiny_tokenizer_dir):
    train_tokenizer(recipe(discriminator=adversary(), freeze="encoder,quantizer"))
    for row in train_rows(recipe().out).values():
        quantizer = row["codebook"] + 0.1 * row["commitment"] + 0.5 * row["alignment"]
        others = row["l1"] + row["l2"] + quantizer
        assert row["loss"] == pytest.approx(others + row["adversarial_weight"] * row["adversarial"], rel=1e-4)
    source, model = (WassersteinVQModel.from_pretrained(folder) for folder in (tiny_tokenizer_dir, recipe().out))
    assert model.state_dict().keys() == source.state_dict().keys()
    assert changed(source, model) == {"decoder"}


def test_an_adaptive_weight_at_a_frozen_decoder_is_one_clear_error(recipe, tmp_path):
    """The ratio is measured at the decoder's last layer, which then has no gradient."""
    with pytest.raises(ConfigError, match="adaptive_weight"):
        train_tokenizer(recipe(discriminator=adversary(), freeze="decoder"))
    assert not (tmp_path / "run").exists()


def test_a_frozen_decoder_goes_with_a_plain_weight(recipe, tiny_tokenizer_dir):
    train_tokenizer(recipe(discriminator=adversary(adaptive_weight=False), freeze="decoder"))
    source, model = (WassersteinVQModel.from_pretrained(folder) for folder in (tiny_tokenizer_dir, recipe().out))
    assert changed(source, model) == {"encoder", "quantizer"}


def test_pictures_too_small_for_the_discriminator_are_refused(recipe, tmp_path):
    """16 x 16 pixels through three levels leave nothing for the last convolution."""
    with pytest.raises(ConfigError, match=r"^discriminator\.num_layers"):
        train_tokenizer(recipe(discriminator=adversary(num_layers=3)))
    assert not (tmp_path / "run").exists()


def test_a_wrong_adversary_is_refused_before_a_folder_is_made(recipe, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^discriminator.generator_start_images must be at least start_images \(32\)"
    ):
        train_tokenizer(recipe(discriminator=adversary(start_images=32)))
    with pytest.raises(CheckpointError, match="no such vision model folder"):
        train_tokenizer(recipe(discriminator=adversary(network="dino", backbone=str(tmp_path / "none"))))
    assert not (tmp_path / "run").exists()
