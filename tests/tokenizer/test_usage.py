"""CodebookUsage: counts over a window, the alarm of a collapsed codebook, and its state."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator

from wvq.tokenizer.usage import ALARM_SHARE, CodebookUsage

NUM_CODES = 100


@pytest.fixture
def accelerator(fresh_accelerator):
    return Accelerator(cpu=True)


def collapsed(codes_in_use: int = 2) -> torch.Tensor:
    return torch.arange(NUM_CODES) % codes_in_use


def used(usage: CodebookUsage, codes: torch.Tensor) -> CodebookUsage:
    usage.update(codes, NUM_CODES)
    return usage


def test_counts_of_codes_of_any_shape():
    usage = CodebookUsage()
    usage.update(torch.tensor([[[0, 1], [1, 3]]]), 5)
    usage.update(torch.tensor([3, 3]), 5)
    assert usage.counts.tolist() == [[1, 2, 0, 3, 0]]


def test_figures_by_hand(accelerator):
    usage = CodebookUsage()
    usage.update(torch.tensor([0, 0, 1, 1, 1, 1, 2, 2]), 4)
    figures, warning = usage.report(accelerator, 0, 1e9)
    entropy = -(0.25 * math.log(0.25) * 2 + 0.5 * math.log(0.5))
    assert figures == pytest.approx({"window_utilization": 0.75, "window_perplexity": math.exp(entropy)})
    assert warning is None


def test_a_report_starts_a_new_window(accelerator):
    usage = used(CodebookUsage(), torch.arange(NUM_CODES))
    assert usage.report(accelerator, 0, 1e9)[0]["window_utilization"] == 1
    figures, _ = used(usage, collapsed(10)).report(accelerator, 0, 1e9)
    assert figures == pytest.approx({"window_utilization": 0.1, "window_perplexity": 10})


def test_too_few_tokens_are_no_report_and_are_kept(accelerator):
    usage = used(CodebookUsage(), torch.zeros(NUM_CODES - 1, dtype=torch.int64))
    assert usage.report(accelerator, 10, 0) == ({}, None)
    figures, warning = used(usage, torch.zeros(1, dtype=torch.int64)).report(accelerator, 10, 0)
    assert figures == pytest.approx({"window_utilization": 0.01, "window_perplexity": 1})
    assert warning


def test_the_alarm_names_figures_and_remedies(accelerator):
    _, warning = used(CodebookUsage(), collapsed()).report(accelerator, 12_345, 12_345)
    assert "\n" not in warning
    assert "perplexity 2 of 100 codes after 12,345 images" in warning
    for remedy in ("model.quantizer: sliced", "train.codebook_learning_rate", "model.commitment_weight"):
        assert remedy in warning


def test_the_alarm_comes_once_and_after_the_warm_up_only(accelerator):
    usage = CodebookUsage()
    alarms = []
    for images in (50, 99, 100, 150):
        figures, warning = used(usage, collapsed()).report(accelerator, images, 100)
        assert figures["window_perplexity"] == pytest.approx(2)
        alarms.append(warning is not None)
    assert alarms == [False, False, True, False]


@pytest.mark.parametrize(("in_use", "alarm"), [(4, True), (6, False), (100, False)])
def test_the_alarm_threshold(accelerator, in_use, alarm):
    assert ALARM_SHARE == 0.05
    codes = collapsed(in_use)
    assert (used(CodebookUsage(), codes).report(accelerator, 0, 0)[1] is not None) == alarm


def test_state_round_trip(accelerator):
    usage = used(CodebookUsage(), collapsed(3))
    twin = CodebookUsage()
    twin.load_state_dict(copy.deepcopy(usage.state_dict()), torch.device("cpu"))
    assert torch.equal(twin.counts, usage.counts)
    assert twin.report(accelerator, 0, 0) == usage.report(accelerator, 0, 0)
    again = CodebookUsage()
    again.load_state_dict(usage.state_dict(), torch.device("cpu"))
    assert used(again, collapsed(3)).report(accelerator, 0, 0)[1] is None
    empty = CodebookUsage()
    empty.load_state_dict(CodebookUsage().state_dict(), torch.device("cpu"))
    assert empty.counts is None


def test_the_state_is_safe_to_save(accelerator, tmp_path):
    usage = used(CodebookUsage(), collapsed(3))
    torch.save(usage.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    assert state["alarmed"] is False
    assert torch.equal(state["counts"][0], usage.counts)


@pytest.mark.parametrize(("world", "rank", "share"), [(2, 0, 0), (2, 1, 1), (1, 0, "sum"), (4, 0, "sum"), (4, 3, None)])
def test_each_process_takes_its_counts_up_again_or_the_first_one_all(world, rank, share, monkeypatch):
    counts = [torch.tensor([[1, 2]]), torch.tensor([[30, 40]])]
    monkeypatch.setattr("wvq.tokenizer.usage.world_size", lambda: world)
    monkeypatch.setattr("wvq.tokenizer.usage.process_rank", lambda: rank)
    monkeypatch.setattr("wvq.tokenizer.usage.is_main_process", lambda: rank == 0)
    usage = CodebookUsage()
    usage.load_state_dict({"counts": counts, "alarmed": True}, torch.device("cpu"))
    expected = {0: counts[0], 1: counts[1], "sum": counts[0] + counts[1], None: 0 * counts[0]}[share]
    assert torch.equal(usage.counts, expected)
    # Older checkpoints: the counts of the first process alone.
    usage.load_state_dict({"counts": counts[0], "alarmed": True}, torch.device("cpu"))
    assert torch.equal(usage.counts, counts[0] if rank == 0 else 0 * counts[0])


def test_a_product_of_two_codebooks(accelerator):
    """Figures are means over the codebooks; a token counts once in each."""
    usage = CodebookUsage()
    codes = torch.tensor([[0, 3], [1, 3], [2, 3], [3, 3]])
    usage.update(codes, 4, 2)
    assert usage.counts.tolist() == [[1, 1, 1, 1], [0, 0, 0, 4]]
    figures, _ = usage.report(accelerator, 0, 1e9)
    assert figures == pytest.approx({"window_utilization": (1 + 0.25) / 2, "window_perplexity": (4 + 1) / 2})
    usage.update(codes[:3], 4, 2)
    assert usage.report(accelerator, 0, 1e9) == ({}, None)
