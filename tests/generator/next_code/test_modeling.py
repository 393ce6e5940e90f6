"""ImageCodeTransformer: first loss, causality, cache, rotary positions, padding, null conditions, saving."""

import math

import pytest
import torch

from tests.tiny import TEXT_DIM, make_generator
from wvq.errors import CheckpointError, ConfigError
from wvq.generator.base.body import attention_mask, rotary_table, rotate
from wvq.generator.base.cache import KeyValueCache, cache_shape
from wvq.generator.base.conditioning import Condition
from wvq.generator.base.sampling_settings import SamplingSettings
from wvq.generator.next_code.configuration import ImageCodeTransformerConfig
from wvq.generator.next_code.modeling import ImageCodeTransformer
from wvq.generator.sampling import sample_codes

CLASS = {"num_classes": 3}
TEXT = {"text_dim": TEXT_DIM, "text_length": 5}
CONDITIONS = {"none": {}, "class": CLASS, "text": TEXT, "both": CLASS | TEXT}
VARIANTS = {
    "grouped_query": {"num_heads": 4, "num_kv_heads": 2},
    "one_kv_head": {"num_heads": 4, "num_kv_heads": 1},
    "qk_norm": {"qk_norm": True},
    "rectangle": {"grid": [2, 5]},
    "tall": {"grid": [5, 2]},
    "code_dim": {"code_dim": 4},
    "targets": {"target_positions": True},
    "tied": {"head": "tied"},
    "bias_class": CLASS | {"condition_bias": True},
    "bias_text": TEXT | {"condition_bias": True},
    "bias_none": {"condition_bias": True},
    "all": {
        "condition_bias": True,
        **CLASS,
        **TEXT,
        "grid": [3, 4],
        "num_heads": 4,
        "num_kv_heads": 2,
        "qk_norm": True,
        "code_dim": 4,
        "target_positions": True,
    },
}


def inputs(config, count: int = 3, seed: int = 1) -> dict:
    """Codes, and whatever the config is conditioned on; one text of each batch is short, one is null."""
    draw = torch.Generator().manual_seed(seed)
    batch = {"codes": torch.randint(config.num_codes, (count, *config.grid), generator=draw)}
    if config.num_classes:
        batch["class_labels"] = torch.tensor([0, 2, -1])[torch.arange(count) % 3]
    if config.text_dim:
        lengths = torch.tensor([config.text_length, 2, 0])[torch.arange(count) % 3]
        batch["text_mask"] = torch.arange(config.text_length) >= config.text_length - lengths[:, None]
        batch["text_features"] = torch.randn(count, config.text_length, config.text_dim, generator=draw)
    return batch


def fresh(**changes) -> ImageCodeTransformer:
    """A model as training starts it, with a zero head."""
    sizes = {"num_codes": 32, "grid": [4, 4], "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    return ImageCodeTransformer(ImageCodeTransformerConfig(**{**sizes, **changes}))


def condition_of(batch: dict) -> Condition:
    return Condition(batch.get("class_labels"), batch.get("text_features"), batch.get("text_mask"))


# ---- loss


@pytest.mark.parametrize("name", [name for name in (*CONDITIONS, *VARIANTS) if name != "tied"])
def test_first_loss_is_ln_k(name):
    changes = (CONDITIONS | VARIANTS)[name]
    model = fresh(**changes)
    if model.config.code_dim:
        model.take_quantizer({"codebook": torch.randn(32, 4)})
    assert not model(**inputs(model.config)).logits.any()
    assert model(**inputs(model.config)).loss.item() == pytest.approx(math.log(32), abs=1e-5)


def test_a_normal_head_starts_near_ln_k_and_a_tied_one_shares_the_embedding():
    for head in ("normal", "tied"):
        model = fresh(head=head, **CLASS)
        logits = model(**inputs(model.config)).logits
        assert logits.any()
        assert model(**inputs(model.config)).loss.item() == pytest.approx(math.log(32), abs=0.2)
    assert not any(name.startswith("head") for name, _ in model.named_parameters())
    model(**inputs(model.config)).loss.backward()
    assert model.code_embedding.weight.grad.abs().sum(1).gt(0).all()  # codes that are not in the batch too


def test_feed_forward_dropout_is_its_own():
    model = make_generator(dropout=0.0, token_dropout=0.0, feed_forward_dropout=0.5).train()
    batch = inputs(model.config)
    assert model(**batch).loss.item() != model(**batch).loss.item()
    assert make_generator(dropout=0.3).config.feed_forward_dropout == 0.3
    still = make_generator(dropout=0.0, token_dropout=0.0, feed_forward_dropout=0.0).train()
    assert still(**batch).loss.item() == still(**batch).loss.item()


def test_drop_path_leaves_out_whole_branches_of_single_pictures():
    model = make_generator(dropout=0.0, token_dropout=0.0, drop_path=0.5, num_layers=3).train()
    rates = [block.attention_dropout[1].p for block in model.blocks if len(block.attention_dropout) > 1]
    assert rates == [0.25, 0.5]  # rising over the layers; none at the first
    codes = inputs(model.config)["codes"][:1].expand(64, -1, -1)
    logits = model(codes).logits[:, -1]
    assert 2 < len(logits.unique(dim=0)) <= 16  # equal pictures differ by which of four branches they kept
    model.eval()
    assert len(model(codes).logits[:, -1].unique(dim=0)) == 1


def test_loss_is_the_mean_cross_entropy_of_the_next_code():
    model = make_generator(**CLASS)
    batch = inputs(model.config)
    output = model(**batch)
    assert output.logits.shape == (3, 16, 32)
    chosen = output.logits.log_softmax(-1).gather(2, batch["codes"].flatten(1)[..., None])
    assert output.loss.item() == pytest.approx(-chosen.mean().item(), rel=1e-5)


def test_a_loss_with_gradients_is_computable_in_eval_mode_and_has_no_dropout():
    model = make_generator(dropout=0.5, token_dropout=0.5, **CLASS)
    batch = inputs(model.config)
    first, second = model(**batch).loss, model(**batch).loss
    assert first.item() == second.item()
    first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.train()
    assert model(**batch).loss.item() != first.item()


@pytest.mark.parametrize("changes", [*CONDITIONS.values(), *VARIANTS.values()], ids=[*CONDITIONS, *VARIANTS])
def test_every_parameter_gets_a_gradient(changes):
    model = make_generator(**changes)
    model(**inputs(model.config)).loss.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_training_is_possible_after_sampling_filled_the_caches_of_tables():
    model = make_generator(grid=[2, 7], rope_theta=123.0, **CLASS | TEXT)  # a table that no other test has made
    batch = inputs(model.config)
    sample_codes(model, condition_of(batch), [0, 1, 2], SamplingSettings(guidance_scale=2.0))
    model(**batch).loss.backward()
    assert model.head.weight.grad.abs().sum() > 0


def test_codes_may_be_a_grid_or_a_row():
    model = make_generator()
    codes = inputs(model.config)["codes"]
    assert torch.equal(model(codes).logits, model(codes.flatten(1)).logits)


def test_wrong_number_of_codes_is_an_error():
    with pytest.raises(
        ConfigError, match=r"codes must hold 16 a picture \(grid codes \(4 x 4 a picture\)\), got \(2, 15\)"
    ):
        make_generator()(torch.zeros(2, 15, dtype=torch.int64))


FIXED = [-0.9788, -1.036, 0.9477, -1.7352, 3.3865]


def test_fixed_values_at_a_fixed_seed():
    model = make_generator(seed=7, num_heads=4, num_kv_heads=2, qk_norm=True, **CLASS | TEXT)
    logits = model(**inputs(model.config)).logits
    torch.testing.assert_close(logits[1, 5, :5], torch.tensor(FIXED), atol=1e-3, rtol=0)


# ---- order


@pytest.mark.parametrize("changes", [*CONDITIONS.values(), *VARIANTS.values()], ids=[*CONDITIONS, *VARIANTS])
def test_cached_decoding_equals_the_full_forward(changes):
    model = make_generator(**changes)
    batch = inputs(model.config)
    expected = model(**batch).logits
    prefix = model.condition(condition_of(batch), 3)
    cache = KeyValueCache(torch.empty(cache_shape(model.config, 3)))
    x, found = prefix.tokens, []
    for position in range(model.config.sequence_length):
        found.append(model.logits(model.run(x, prefix.valid, cache)[:, -1]))
        x = model.embed_codes(batch["codes"].flatten(1)[:, position : position + 1], prefix.bias)
    torch.testing.assert_close(torch.stack(found, 1), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.5  # a comparison of nothing would pass too


def test_several_tokens_at_once_continue_a_cache():
    model = make_generator(**TEXT)
    batch = inputs(model.config)
    prefix = model.condition(condition_of(batch), 3)
    x = torch.cat((prefix.tokens, model.embed_codes(batch["codes"].flatten(1)[:, :-1])), 1)
    cache = KeyValueCache(torch.empty(cache_shape(model.config, 3)))
    parts = [model.run(x[:, a:b], prefix.valid, cache) for a, b in ((0, 5), (5, 12), (12, 20))]
    torch.testing.assert_close(torch.cat(parts, 1), model.run(x, prefix.valid), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", CONDITIONS.values(), ids=CONDITIONS)
def test_a_code_changes_no_logits_before_the_next_position(changes):
    model = make_generator(**changes)
    batch = inputs(model.config)
    before = model(**batch).logits
    for position in (0, 7, 14):
        codes = batch["codes"].flatten(1).clone()
        codes[:, position] = (codes[:, position] + 1) % 32
        after = model(**{**batch, "codes": codes}).logits
        assert torch.equal(after[:, : position + 1], before[:, : position + 1])
        assert (after[:, position + 1] - before[:, position + 1]).abs().max() > 1e-3


# ---- rotary positions


def scores(rows: int, columns: int, prefix: int = 0) -> torch.Tensor:
    """Products (S, S) of one query and one key, each turned to every position."""
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=draw)
    cos, sin = rotary_table(prefix, rows, columns, 16, 100.0, torch.device("cpu"))
    length = prefix + rows * columns
    turned = [rotate(x.expand(1, 1, length, 16), cos, sin)[0, 0] for x in (query, key)]
    return turned[0] @ turned[1].T


def test_scores_depend_on_the_relative_row_and_column_only():
    table = scores(4, 5).view(4, 5, 4, 5)
    by_offset = {}
    for r, c, s, d in torch.cartesian_prod(*map(torch.arange, (4, 5, 4, 5))).tolist():
        by_offset.setdefault((r - s, c - d), []).append(table[r, c, s, d].item())
    means = []
    for values in by_offset.values():
        assert max(values) - min(values) < 1e-4
        means.append(round(values[0], 3))
    assert len(set(means)) > 0.9 * len(by_offset)  # other offsets, other scores


def test_rows_and_columns_turn_different_dims():
    cos, _ = rotary_table(0, 3, 4, 16, 100.0, torch.device("cpu"))
    table = cos.view(3, 4, 8)
    assert torch.equal(table[:, :1, :4].expand(3, 4, 4), table[..., :4])
    assert torch.equal(table[:1, :, 4:].expand(3, 4, 4), table[..., 4:])
    assert not torch.equal(table[..., :4], table[..., 4:])


def test_prefix_tokens_are_not_rotated():
    cos, sin = rotary_table(3, 4, 5, 16, 100.0, torch.device("cpu"))
    assert cos.shape == (23, 8)
    assert torch.equal(cos[:3], torch.ones(3, 8))
    assert torch.equal(sin[:3], torch.zeros(3, 8))
    x = torch.randn(1, 1, 23, 16)
    assert torch.equal(rotate(x, cos, sin)[:, :, :3], x[:, :, :3])
    assert not torch.allclose(rotate(x, cos, sin)[:, :, 5:], x[:, :, 5:])


def test_an_erased_prefix_has_no_queries_and_keys():
    erased = make_generator(num_classes=3, prefix_rotary="erased")
    (cos, sin), (plain, _) = (
        model.rotary_tables(torch.device("cpu")) for model in (erased, make_generator(num_classes=3))
    )
    assert not cos[0].any()
    assert not sin[0].any()
    assert torch.equal(cos[1:], plain[1:])
    x = torch.randn(1, 2, 17, 16)
    assert not rotate(x, cos, sin)[:, :, 0].any()
    codes = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(0))
    logits = [make_generator(num_classes=3, prefix_rotary=kind)(codes).logits for kind in ("erased", "identity")]
    assert (logits[0] - logits[1]).abs().max() > 1e-2


def test_rotation_keeps_lengths():
    cos, sin = rotary_table(1, 3, 3, 16, 100.0, torch.device("cpu"))
    x = torch.randn(2, 2, 10, 16)
    torch.testing.assert_close(rotate(x, cos, sin).norm(dim=-1), x.norm(dim=-1))


# ---- text


@pytest.mark.parametrize("changes", [TEXT, CLASS | TEXT, TEXT | {"condition_bias": True}], ids=["text", "both", "bias"])
def test_what_stands_in_the_padding_never_changes_the_result(changes):
    model = make_generator(**changes)
    batch = inputs(model.config)
    expected = model(**batch).logits
    other = batch["text_features"].clone()
    other[~batch["text_mask"]] = 100.0
    torch.testing.assert_close(model(**{**batch, "text_features": other}).logits, expected, atol=1e-5, rtol=1e-5)
    other[batch["text_mask"]] = 1.0
    assert (model(**{**batch, "text_features": other}).logits - expected).abs().max() > 1e-2


@pytest.mark.parametrize("bias", [False, True])
def test_the_amount_of_padding_never_changes_the_result(bias):
    short, long = (make_generator(text_dim=TEXT_DIM, text_length=n, condition_bias=bias) for n in (3, 8))
    long.load_state_dict(short.state_dict())
    features, codes = torch.randn(2, 3, TEXT_DIM), torch.randint(32, (2, 16))
    padded = torch.cat((torch.randn(2, 5, TEXT_DIM), features), 1)
    mask = torch.arange(8) >= 5
    torch.testing.assert_close(
        long(codes, text_features=padded, text_mask=mask.expand(2, 8)).logits,
        short(codes, text_features=features, text_mask=torch.ones(2, 3, dtype=torch.bool)).logits,
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_row_without_any_token_uses_the_trained_null_text():
    model = make_generator(**TEXT)
    codes = torch.randint(32, (2, 16))
    features, nothing = torch.randn(2, 5, TEXT_DIM), torch.zeros(2, 5, dtype=torch.bool)
    masked = model(codes, text_features=features, text_mask=nothing).logits
    torch.testing.assert_close(masked, model(codes).logits, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        model.condition.null_text.add_(1)
    changed = model(codes, text_features=features, text_mask=nothing).logits
    assert (changed - masked).abs().amax((0, 2)).min() > 1e-3  # every code sees the null token
    everything = torch.ones(2, 5, dtype=torch.bool)
    with_text = model(codes, text_features=features, text_mask=everything).logits
    with torch.no_grad():
        model.condition.null_text.sub_(1)
    assert torch.equal(model(codes, text_features=features, text_mask=everything).logits, with_text)


def test_the_null_class_is_the_row_after_the_last_class():
    model = make_generator(**CLASS)
    codes = torch.randint(32, (1, 16))
    null = model(codes).logits
    assert torch.equal(model(codes, class_labels=torch.tensor([-1])).logits, null)
    with torch.no_grad():
        model.condition.class_embedding.weight[3] += 1
    assert (model(codes).logits - null).abs().max() > 1e-2
    assert torch.equal(model.condition.class_embedding(torch.tensor([3])), model.condition(Condition(), 1).tokens[0])


@pytest.mark.parametrize("part", ["class_labels", "text_features"])
def test_each_condition_changes_the_logits(part):
    model = make_generator(**CLASS | TEXT)
    batch = inputs(model.config, count=1)
    expected = model(**batch).logits
    batch[part] = (batch[part] + 1) if part == "class_labels" else batch[part].flip(1)
    assert (model(**batch).logits - expected).abs().max() > 1e-2


def test_mask_is_causal_hides_padding_and_lets_padding_see_itself():
    valid = torch.tensor([[False, True, True]])
    mask = attention_mask(valid, 0, 5)[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert attention_mask(valid, 4, 5)[0, 0].int().tolist() == [[0, 1, 1, 1, 1]]


# ---- training aids, saving


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the library renames the method in its next major version
def test_gradient_checkpointing_gives_the_same_gradients():
    model = make_generator(dropout=0.0, token_dropout=0.0, **CLASS | TEXT).train()
    batch = inputs(model.config)
    model(**batch).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert all(block.gradient_checkpointing for block in model.blocks)
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], msg=name)


@pytest.mark.parametrize("changes", [*CONDITIONS.values(), *VARIANTS.values()], ids=[*CONDITIONS, *VARIANTS])
def test_save_and_load_is_exact(changes, tmp_path):
    model = make_generator(**changes)
    model.save_pretrained(tmp_path)
    again = ImageCodeTransformer.from_pretrained(tmp_path)
    assert not again.training
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    batch = inputs(model.config)
    assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_missing_weights_are_an_error(tmp_path):
    model = make_generator()
    state = model.state_dict()
    del state["head.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match=r"1 missing \(head\.weight\)"):
        ImageCodeTransformer.from_pretrained(tmp_path)


def test_codebook_is_shown_at_zero_mean_and_unit_variance():
    model = fresh(code_dim=4)
    vectors = 3 + 2 * torch.randn(32, 4)
    model.take_quantizer({"codebook": vectors})
    torch.testing.assert_close(model.codebook.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    ratio = (vectors - vectors.mean(0)) / model.codebook
    torch.testing.assert_close(ratio, torch.full_like(ratio, vectors.std().item()))
    assert "codebook" not in dict(model.named_parameters())


def test_codebook_of_another_shape_is_an_error():
    with pytest.raises(ConfigError, match=r"codebook \(32, 5\) does not fit num_codes 32 x code_dim 4"):
        fresh(code_dim=4).take_quantizer({"codebook": torch.randn(32, 5)})


def test_branches_start_smaller_the_deeper_the_model():
    torch.manual_seed(0)
    model = fresh(num_layers=8, hidden_size=64)
    block = model.blocks[0]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for last in (block.attention.out, block.feed_forward.down):
        assert last.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.head.weight.abs().max() == 0


def test_a_loss_alone_is_the_loss():
    model, codes = make_generator(), torch.randint(32, (2, 16))
    alone = model(codes, return_logits=False)
    assert alone.logits is None
    assert torch.equal(alone.loss, model(codes).loss)
