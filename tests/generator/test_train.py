"""Training the generator: falling loss, written files, exact resume."""

import gc
import json
import math
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
import yaml

from tests.tiny import CLASS_NAMES, TEXT_DIM
from wvq.data.codes import CodeDataset
from wvq.errors import ConfigError
from wvq.generator.base.conditioning import Condition, ConditionEmbedder
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.conditioned_codes import ConditionedCodes
from wvq.generator.models import load_generator
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.recipes import ConditionConfig, GeneratorRecipe, ObjectiveConfig
from wvq.generator.sampling import sample_codes
from wvq.generator.task import random_order
from wvq.generator.text.encoder import TextEncoder
from wvq.generator.train import train_generator
from wvq.models.pretrained import weights_hash
from wvq.settings.parser import load_recipe
from wvq.training.checkpoints import find_checkpoints
from wvq.training.tracking import read_log

# ---- runs


def test_a_run_learns_and_writes_its_files(recipe, tokenizer, tmp_path):
    settings = recipe({"ema_decay": 0.9, "evaluate_every": 80})
    result = train_generator(settings, tokenizer)
    out = tmp_path / "run" / "generator"
    rows = read_log(out / "training")
    train = [row for row in rows if row["kind"] == "train"]
    assert train[0]["loss"] == pytest.approx(math.log(32), abs=1e-3)  # the first step: a zero head
    assert train[-1]["loss"] < train[0]["loss"] - 0.3
    assert result["loss"] < math.log(32) - 0.1
    assert result["images"] == 160
    assert result["skipped_steps"] == 0
    assert result["cut_short"] is False
    assert len([row for row in rows if row["kind"] == "validation"]) == 2
    assert json.loads((out / "result.json").read_text()) == result
    assert yaml.safe_load((out / "recipe.yaml").read_text())["train"]["images"] == 160
    assert len(list((out / "training").rglob("*.png"))) == 2
    assert list((out / "training").rglob("events.out.tfevents*"))
    generator = ImageCodeTransformer.from_pretrained(out)
    assert generator.config.class_names == CLASS_NAMES
    assert generator.config.grid == [4, 4]
    assert generator.config.tokenizer_hash == tokenizer.codes_hash()
    assert result["parameters"] == sum(p.numel() for p in generator.parameters())


def test_reported_loss_is_the_mean_over_the_held_out_pictures(recipe, tokenizer, tmp_path, tiny_codes_dir):
    result = train_generator(recipe(), tokenizer)
    generator = ImageCodeTransformer.from_pretrained(tmp_path / "run" / "generator")
    held_out, train = CodeDataset(tiny_codes_dir, "validation"), CodeDataset(tiny_codes_dir, "train")
    codes = held_out.codes(range(len(held_out)))
    labels = torch.tensor([held_out.label(i) for i in range(len(held_out))])
    with torch.no_grad():
        output = generator(codes, labels)
    assert result["loss"] == pytest.approx(output.loss.item(), rel=1e-5)
    assert result["accuracy"] == pytest.approx((output.logits.argmax(-1) == codes).float().mean().item(), rel=1e-5)
    shares = torch.bincount(train.codes(range(2 * len(train))).flatten(), minlength=32).double()
    shares = shares[shares > 0] / shares.sum()
    assert result["unigram_entropy"] == pytest.approx(-(shares * shares.log()).sum().item(), rel=1e-6)


def test_text_and_code_vectors(recipe, tokenizer, tmp_path, text_condition):
    settings = recipe({"images": 64}, {"code_dim": 4}, condition=text_condition)
    result = train_generator(settings, tokenizer)
    generator = ImageCodeTransformer.from_pretrained(tmp_path / "run" / "generator")
    config = generator.config
    assert (config.num_classes, config.text_dim, config.text_length, config.code_dim) == (3, TEXT_DIM, 5, 4)
    assert result["loss"] < math.log(32)
    vectors = tokenizer.quantizer.lookup(torch.arange(32))
    expected = (vectors - vectors.mean(0)) / vectors.std()
    torch.testing.assert_close(generator.codebook, expected, atol=1e-5, rtol=1e-5)
    assert generator.condition.null_text.abs().sum() > 0


def test_conditions_of_llamagen_are_trained_and_drawn(recipe, tokenizer, tmp_path, tiny_codes_dir, text_condition):
    """Cleaned captions, a null text under their masks, and a prefix that is erased."""
    condition = replace(text_condition, classes=False, text_cleaning="lower", text_dropout=0.5)
    model = {"prefix_rotary": "erased", "null_text": "features", "text_projection": "mlp", "hidden_size": 48}
    shutil.copytree(tiny_codes_dir, tmp_path / "codes", ignore=shutil.ignore_patterns("text"))
    settings = recipe(model=model, condition=condition, codes=str(tmp_path / "codes"))
    result = train_generator(settings, tokenizer)
    assert result["loss"] < math.log(32)
    generator = load_generator(tmp_path / "run" / "generator")
    config = generator.config
    assert (config.text_cleaning, config.null_text, config.prefix_rotary) == ("lower", "features", "erased")
    assert generator.condition.null_text.shape == (5, TEXT_DIM)
    encoder = TextEncoder(condition.text_encoder, 5, cleaning="lower")
    assert config.text_encoder_hash == encoder.identity()
    assert len(list((tmp_path / "codes" / "text").iterdir())) == 2  # of both splits, by the key of this cleaning
    texts = CodeDataset(tmp_path / "codes", "train"), CodeDataset(tmp_path / "codes", "validation")
    for codes in texts:
        ConditionedCodes(codes, False, TextEncoder(condition.text_encoder, 5))
    assert len(list((tmp_path / "codes" / "text").iterdir())) == 4
    features, mask = encoder.encode(["red circle", "blue cross"])
    drawn = sample_codes(generator, Condition(None, features, mask), [0, 1], SamplingSettings(guidance_scale=3.0))
    assert drawn.shape == (2, 4, 4)


def test_code_vectors_of_other_dims_are_refused_before_a_folder_is_made(recipe, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.code_dim is 3, but .* are vectors of 4: set it to 4, or"):
        train_generator(recipe(model={"code_dim": 3}), tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_classes_can_be_left_out(recipe, tokenizer, tmp_path):
    train_generator(recipe({"images": 16}, condition=ConditionConfig(classes=False)), tokenizer)
    config = ImageCodeTransformer.from_pretrained(tmp_path / "run" / "generator").config
    assert (config.num_classes, config.class_names) == (0, [])


def test_items_carry_each_pictures_own_condition(tiny_codes_dir, encoder_dir):
    codes = CodeDataset(tiny_codes_dir, "train")
    encoder = TextEncoder(encoder_dir, 5)
    items = ConditionedCodes(codes, True, encoder)
    assert len(items) == len(codes)
    for index in (0, 7, len(items) - 1):
        item = items[index]
        assert set(item) == {"codes", "class_labels", "text_features", "text_mask"}
        features, mask = encoder.encode([codes.caption(index)])
        assert torch.equal(item["text_mask"], mask[0])
        torch.testing.assert_close(item["text_features"][mask[0]].float(), features[0][mask[0]], atol=2e-3, rtol=1e-3)
        assert CLASS_NAMES[item["class_labels"]] in codes.caption(index)
    assert set(ConditionedCodes(codes, False, None)[0]) == {"codes"}
    assert len({codes.caption(i) for i in range(len(codes))}) == len(items.text)  # each text encoded once


def test_of_several_captions_one_is_drawn_by_position(tiny_codes_dir, encoder_dir, monkeypatch):
    several = {0: ("red circle", "blue cross", "green square"), 1: ("blue cross",)}
    monkeypatch.setattr(CodeDataset, "texts", lambda self, index: several.get(index, ("red circle",)))
    encoder = TextEncoder(encoder_dir, 5)
    items = ConditionedCodes(CodeDataset(tiny_codes_dir, "train"), True, encoder)
    encoded = [encoder.encode([text]) for text in several[0]]
    first, second, third = (features[0].half() * mask[0, :, None] for features, mask in encoded)  # padding is 0
    assert torch.equal(items[0]["text_features"], first)
    drawn = [items[position, 0]["text_features"] for position in range(60)]
    counts = [sum(torch.equal(features, text) for features in drawn) for text in (first, second, third)]
    assert sum(counts) == 60
    assert min(counts) > 10
    assert all(torch.equal(items[position, 0]["text_features"], drawn[position]) for position in (3, 41))
    assert torch.equal(items[9, 1]["text_features"], second)


def test_captions_may_lie_on_disk_in_memory_or_nowhere(recipe, tokenizer, tmp_path, tiny_codes_dir, text_condition):
    """The losses of each step and held out: the same to the bit from disk and memory, to half precision on the fly."""
    losses = {}
    shutil.copytree(tiny_codes_dir, tmp_path / "codes", ignore=shutil.ignore_patterns("text"))
    for kept in ("memory", "none", "disk"):
        condition = replace(text_condition, text_cache=kept)
        settings = recipe(model={"condition_bias": True}, codes=str(tmp_path / "codes"), condition=condition)
        result = train_generator(replace(settings, out=str(tmp_path / kept)), tokenizer)
        rows = read_log(tmp_path / kept / "generator" / "training")
        losses[kept] = [result["loss"], *(row["loss"] for row in rows if row["kind"] == "train")]
        assert (tmp_path / "codes" / "text").exists() == (kept == "disk")
    assert losses["disk"] == losses["memory"]
    assert losses["none"] == pytest.approx(losses["disk"], rel=2e-3)
    assert losses["none"] != losses["disk"]


def test_the_encoder_works_on_the_device_and_then_leaves_it(recipe, tokenizer, tmp_path, text_condition, monkeypatch):
    places, alive = [], []
    to, start = TextEncoder.to, TextEncoder.__init__

    def moved(self, device):
        places.append(str(device))
        return to(self, device)

    def started(self, *arguments, **options):
        start(self, *arguments, **options)
        alive.append(weakref.ref(self))

    def run(trainer, resume):
        gc.collect()
        raise InterruptedError([reference() is not None for reference in alive])

    monkeypatch.setattr(TextEncoder, "to", moved)
    monkeypatch.setattr(TextEncoder, "__init__", started)
    monkeypatch.setattr("wvq.training.trainer.Trainer.run", run)
    for kept, stays, expected in (("memory", False, "cpu"), ("none", True, None)):
        places.clear()
        alive.clear()
        condition = replace(text_condition, text_cache=kept)
        with pytest.raises(InterruptedError) as raised:
            train_generator(recipe(out=str(tmp_path / kept), condition=condition), tokenizer)
        assert raised.value.args == ([stays],)
        assert expected is None or places[-1] == expected
    assert len(places) == 1  # where nothing is kept, it stays


def test_whitening_takes_a_bounded_sample(recipe, tokenizer, tmp_path, text_condition, monkeypatch):
    taken = []
    fit = ConditionEmbedder.fit_text

    def counted(self, batches):
        batches = list(batches)
        taken.append([len(mask) for _, mask in batches])
        return fit(self, batches)

    monkeypatch.setattr(ConditionEmbedder, "fit_text", counted)
    monkeypatch.setattr("wvq.generator.train.MOST_FITTED", 7)
    monkeypatch.setattr("wvq.generator.train.FITTED_AT_ONCE", 3)
    for kept in ("memory", "none"):
        condition = replace(text_condition, text_cache=kept)
        train_generator(recipe({"images": 16}, out=str(tmp_path / kept), condition=condition), tokenizer)
    assert taken == [[3, 3, 1]] * 2


def test_the_same_recipe_gives_the_same_weights(recipe, tokenizer, tmp_path):
    hashes = []
    for name in ("a", "b"):
        train_generator(recipe({"images": 48}, out=str(tmp_path / name)), tokenizer)
        hashes.append(weights_hash(ImageCodeTransformer.from_pretrained(tmp_path / name / "generator")))
    assert hashes[0] == hashes[1]


def test_resume_repeats_the_uninterrupted_run(recipe, tokenizer, tmp_path, text_condition, monkeypatch):
    train = {"images": 160, "save_every": 32, "ema_decay": 0.9, "keep_checkpoints": 1}
    whole = train_generator(recipe(train, out=str(tmp_path / "whole"), condition=text_condition), tokenizer)

    class Interruption(Exception):
        pass

    from wvq.training.trainer import Trainer

    step = Trainer._step

    def interrupted(self, batches):
        if self.progress.images_seen == 112:  # past the checkpoint at 96
            raise Interruption
        return step(self, batches)

    settings = recipe(train, out=str(tmp_path / "cut"), condition=text_condition)
    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(Interruption):
        train_generator(settings, tokenizer)
    monkeypatch.setattr(Trainer, "_step", step)
    resumed = train_generator(settings, tokenizer, resume=True)
    assert resumed["loss"] == whole["loss"]
    logs = [read_log(tmp_path / name / "generator" / "training") for name in ("whole", "cut")]
    losses = [[(row["images"], row["loss"]) for row in log if row["kind"] == "train"] for log in logs]
    assert losses[0] == losses[1]
    first, second = (ImageCodeTransformer.from_pretrained(tmp_path / name / "generator") for name in ("whole", "cut"))
    assert weights_hash(first) == weights_hash(second)


def test_a_run_with_both_conditions_also_drops_them_together(recipe, tokenizer, tmp_path, text_condition):
    """The default of a recipe that does not say; what a run of an earlier version goes on with; what it is saved as."""
    train = {"images": 96, "save_every": 48, "keep_checkpoints": 9}
    results = {}
    for name, share in (("open", None), ("none", 0.0), ("some", 0.1)):
        condition = replace(text_condition, joint_dropout=share)
        results[name] = train_generator(recipe(train, out=str(tmp_path / name), condition=condition), tokenizer)["loss"]
    assert results["open"] == results["some"] != results["none"]
    file = tmp_path / "none" / "generator" / "recipe.yaml"
    saved = yaml.safe_load(file.read_text())
    assert (
        yaml.safe_load((tmp_path / "open" / "generator" / "recipe.yaml").read_text())["condition"]["joint_dropout"]
        == 0.1
    )
    del saved["condition"]["joint_dropout"]
    file.write_text(yaml.safe_dump(saved))
    (file.parent / "model.safetensors").unlink()
    shutil.rmtree(find_checkpoints(file.parent / "training")[-1])
    settings = recipe(train, out=str(tmp_path / "none"), condition=text_condition)
    assert train_generator(settings, tokenizer, resume=True)["loss"] == results["none"]


# ---- objective


def test_training_in_random_order_ends_row_by_row(recipe, tokenizer, tmp_path):
    settings = recipe({"images": 320}, objective=ObjectiveConfig(0.05, 1.0, [0.4, 0.8]))
    result = train_generator(settings, tokenizer)
    model = ImageCodeTransformer.from_pretrained(tmp_path / "run" / "generator")
    assert model.config.target_positions
    with pytest.raises(ConfigError, match="passes needs a generator that was trained in random order to the end"):
        sample_codes(model, Condition(), [0], SamplingSettings(passes=4))
    assert model.target_embedding.weight.std() > 0.02  # where it started
    assert result["loss"] < math.log(32)


def test_the_random_share_falls_between_the_given_shares_of_the_run():
    objective = ObjectiveConfig(random_order=0.8, order_anneal=[0.5, 0.75])
    assert [objective.random_share(x) for x in (0.0, 0.5, 0.625, 0.75, 1.0)] == pytest.approx([0.8, 0.8, 0.4, 0, 0])
    kept = ObjectiveConfig(random_order=0.8, order_anneal=None)
    assert [kept.random_share(x) for x in (0.0, 1.0)] == [0.8, 0.8]


def test_runs_in_random_order_have_the_held_out_loss_in_one_order_a_picture(recipe, tokenizer, tmp_path):
    settings = recipe({"images": 320}, objective=ObjectiveConfig(random_order=1.0, order_anneal=None))
    result = train_generator(settings, tokenizer)
    model = ImageCodeTransformer.from_pretrained(tmp_path / "run" / "generator")
    held_out = ConditionedCodes(CodeDataset(settings.codes, "validation"), True, None, "none", torch.device("cpu"))
    batch = held_out.collate_fn(held_out.__getitems__(range(len(held_out))))
    order = torch.stack([torch.rand(16, generator=torch.Generator().manual_seed(i)) for i in range(len(held_out))])
    with torch.no_grad():
        expected = model(**batch, order=order.argsort(1)).loss.item()
    assert model.config.any_order
    assert result["loss_random_order"] == pytest.approx(expected, rel=1e-5)
    assert abs(result["loss_random_order"] - result["loss"]) > 1e-4
    assert "loss_random_order" not in train_generator(recipe({"images": 32}, out=str(tmp_path / "plain")), tokenizer)


@pytest.mark.parametrize("folder", ["openmoji_32", "cifar10_32", "imagenet_256"])
def test_recipes_of_any_order_train_a_generator_that_draws_several_codes_a_pass(folder, recipe, tokenizer, tmp_path):
    shipped = load_recipe(GeneratorRecipe, f"{folder}/generator_any_order", {})
    small = {"size": None, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    small |= {"code_dim": tokenizer.config.code_dim} if "code_dim" in shipped.model else {}
    settings = recipe({"images": 32}, model=shipped.model | small, objective=shipped.objective)
    assert "loss_random_order" in train_generator(settings, tokenizer)
    model = load_generator(tmp_path / "run" / "generator")
    codes = sample_codes(model, Condition(torch.tensor([0, 1])), [0, 1], SamplingSettings(passes=4))
    assert codes.shape == (2, 4, 4)
    assert shipped.objective.random_share(1.0) == 1


def test_random_orders_are_permutations_of_a_share_of_the_pictures():
    orders = random_order(200, 9, 0.25)
    assert torch.equal(orders.sort(1).values, torch.arange(9).expand(200, -1))
    assert 25 < (orders != torch.arange(9)).any(1).sum() < 80
    assert torch.equal(random_order(3, 9, 0.0), torch.arange(9).expand(3, -1))


def test_held_out_figures_come_position_by_position(recipe, tokenizer):
    result = train_generator(recipe({"images": 32}), tokenizer)
    length = len(result["loss_per_position"])
    assert length == len(result["accuracy_per_position"])
    assert sum(result["loss_per_position"]) / length == pytest.approx(result["loss"], abs=1e-4)
    assert sum(result["accuracy_per_position"]) / length == pytest.approx(result["accuracy"], abs=1e-4)
    header = CodeDataset(recipe().codes).header
    bits = result["loss"] * length / math.log(2) / header.image_size**2
    assert result["bits_per_pixel"] == pytest.approx(bits)
