"""The criterion triple against hand computation: streamed, over several codebooks, scales and processes."""

import collections
import json
import math

import pytest
import torch

from tests.processes import run_ranks
from wvq.tokenizer.quantizers.statistics import CodeStatistics, _JointCounts, code_perplexity


def test_code_statistics_by_hand():
    statistics = CodeStatistics(8)
    statistics.update(torch.tensor([[0, 0], [1, 5]]), torch.tensor(2.0))
    statistics.update(torch.tensor([0, 7]), torch.tensor(0.5))
    figures = statistics.compute()
    assert figures["num_tokens"] == 6
    assert figures["quantization_error"] == pytest.approx((4 * 2.0 + 2 * 0.5) / 6)
    assert figures["utilization"] == pytest.approx(4 / 8)
    entropy = -(0.5 * math.log(0.5) + 3 * (1 / 6) * math.log(1 / 6))
    assert figures["perplexity"] == pytest.approx(math.exp(entropy))


def test_streamed_code_statistics_equal_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 50, (1000,), generator=generator)
    errors = torch.rand(1000, generator=generator)
    streamed, whole = CodeStatistics(64), CodeStatistics(64)
    for part in torch.arange(1000).split(77):
        streamed.update(codes[part], errors[part].mean())
    whole.update(codes.view(10, 10, 10), errors.mean())
    assert streamed.compute() == pytest.approx(whole.compute(), rel=1e-6)
    assert torch.equal(streamed.counts, torch.bincount(codes, minlength=64))


def test_perplexity_bounds():
    assert code_perplexity(torch.ones(16)).item() == pytest.approx(16)
    assert code_perplexity(torch.tensor([0.0, 9.0, 0.0])).item() == pytest.approx(1)
    assert code_perplexity(torch.zeros(4)).item() == pytest.approx(1)


# ---- several codebooks


def draw_groups(count, num_codes, num_groups, seed=0):
    """Codes of which some combinations are frequent, and an error for each feature."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, num_groups, generator=generator)
    return (num_codes * draws**3).long(), torch.rand(count, generator=generator, dtype=torch.float64)


def entropy_power(shares):
    return math.exp(-sum(share * math.log(share) for share in shares))


def test_figures_of_two_codebooks_by_hand():
    statistics = CodeStatistics(4, num_groups=2)
    statistics.update(torch.tensor([[[0, 3], [0, 3]], [[1, 3], [2, 0]]]), torch.tensor(1.5))
    statistics.update(torch.tensor([[0, 3], [1, 3]]), torch.tensor(3.0))
    figures = statistics.compute()
    assert figures["num_tokens"] == 6
    assert figures["quantization_error"] == pytest.approx((4 * 1.5 + 2 * 3.0) / 6)
    assert figures["utilization_per_codebook"] == [3 / 4, 2 / 4]
    assert figures["utilization"] == pytest.approx(5 / 8)
    perplexity = [entropy_power([3 / 6, 2 / 6, 1 / 6]), entropy_power([5 / 6, 1 / 6])]
    assert figures["perplexity_per_codebook"] == pytest.approx(perplexity)
    assert figures["perplexity"] == pytest.approx(sum(perplexity) / 2)
    assert figures["joint_codes"] == 3  # (0, 3), (1, 3), (2, 0)
    assert figures["joint_utilization"] == pytest.approx(3 / 16)
    assert figures["joint_perplexity"] == pytest.approx(entropy_power([3 / 6, 2 / 6, 1 / 6]))
    assert statistics.counts.tolist() == [[3, 2, 1, 0], [1, 0, 0, 5]]


def test_one_codebook_has_no_joint_figures_and_a_flat_histogram():
    statistics = CodeStatistics(4)
    statistics.update(torch.tensor([3, 3]), torch.tensor(0.0))
    assert statistics.counts.tolist() == [0, 0, 0, 2]
    assert set(statistics.compute()) == {"quantization_error", "utilization", "perplexity", "num_tokens"}


@pytest.mark.parametrize("waiting", [1, 50, 2**18])
@pytest.mark.parametrize("size", [1, 13, 500])
def test_any_split_and_any_merge_of_several_codebooks_gives_the_same_figures(monkeypatch, waiting, size):
    monkeypatch.setattr(_JointCounts, "_WAITING_ROWS", waiting)
    codes, errors = draw_groups(500, 6, 3)
    streamed = CodeStatistics(6, 3)
    for part in torch.arange(500).split(size):
        streamed.update(codes[part], errors[part].mean())
    figures = streamed.compute()
    joint = collections.Counter(map(tuple, codes.tolist()))
    assert figures["joint_codes"] == len(joint)
    assert figures["joint_utilization"] == pytest.approx(len(joint) / 6**3)
    assert figures["joint_perplexity"] == pytest.approx(entropy_power([n / 500 for n in joint.values()]))
    assert figures["quantization_error"] == pytest.approx(errors.mean().item())
    whole = CodeStatistics(6, 3)
    whole.update(codes.view(20, 25, 3), errors.mean())
    expected = whole.compute()
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-9), name
    assert torch.equal(streamed.counts, torch.stack([torch.bincount(column, minlength=6) for column in codes.T]))


def test_figures_can_be_taken_in_between():
    codes, errors = draw_groups(200, 5, 2)
    statistics, whole = CodeStatistics(5, 2), CodeStatistics(5, 2)
    for part in torch.arange(200).split(60):
        statistics.update(codes[part], errors[part].mean())
        statistics.compute()
    whole.update(codes, errors.mean())
    assert statistics.compute()["joint_perplexity"] == pytest.approx(whole.compute()["joint_perplexity"])


def test_a_product_of_astronomically_many_codes_is_counted():
    statistics = CodeStatistics(2**20, num_groups=8)
    codes = torch.randint(0, 2**20, (100, 8), generator=torch.Generator().manual_seed(0))
    statistics.update(torch.cat([codes, codes[:50]]), torch.tensor(1.0))
    figures = statistics.compute()
    assert statistics.counts.shape == (8, 2**20)
    assert figures["joint_codes"] == 100
    assert figures["joint_utilization"] == pytest.approx(100 / 2.0**160)
    assert figures["joint_perplexity"] == pytest.approx(entropy_power([2 / 150] * 50 + [1 / 150] * 50))


# ---- several scales


MAPS = [(1, 2), (2, 4), (3, 6)]


def draw_scales(pictures, num_codes, maps=MAPS, seed=0):
    """Codes (B, T) of which coarse scales take few, and an error for each picture."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.rand(pictures, rows * columns, generator=generator) * rows / maps[-1][0] for rows, columns in maps]
    return (num_codes * torch.cat(parts, 1)).long(), torch.rand(pictures, generator=generator, dtype=torch.float64)


def test_figures_of_two_scales_by_hand():
    statistics = CodeStatistics(6, scales=[(1, 1), (2, 2)])
    statistics.update(torch.tensor([[0, 1, 1, 2, 3], [0, 1, 1, 1, 2]]), torch.tensor(1.0))
    statistics.update(torch.tensor([[4, 1, 1, 1, 1]]), torch.tensor(4.0))
    figures = statistics.compute()
    assert figures["num_tokens"] == 15
    assert figures["num_tokens_per_scale"] == [3, 12]
    assert figures["quantization_error"] == pytest.approx((2 * 1.0 + 4.0) / 3)  # a mean over features, not over codes
    assert figures["utilization_per_scale"] == pytest.approx([2 / 6, 3 / 6])
    expected = [entropy_power([2 / 3, 1 / 3]), entropy_power([9 / 12, 2 / 12, 1 / 12])]
    assert figures["perplexity_per_scale"] == pytest.approx(expected)
    assert figures["utilization"] == pytest.approx(5 / 6)
    assert figures["perplexity"] == pytest.approx(entropy_power([n / 15 for n in (2, 9, 2, 1, 1)]))
    assert statistics.counts.tolist() == [2, 9, 2, 1, 1, 0]


def test_streamed_scales_equal_the_whole():
    codes, errors = draw_scales(50, 20)
    streamed, whole = CodeStatistics(20, scales=MAPS), CodeStatistics(20, scales=MAPS)
    for part in torch.arange(50).split(7):
        streamed.update(codes[part], errors[part].mean())
    whole.update(codes, errors.mean())
    expected = whole.compute()
    for name, value in streamed.compute().items():
        assert value == pytest.approx(expected[name], rel=1e-9), name
    assert expected["utilization_per_scale"][0] < expected["utilization_per_scale"][2]


PROCESS = """
import json, sys, torch, torch.distributed as dist
from wvq.tokenizer.quantizers.statistics import CodeStatistics

class Accelerator:
    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        dist.all_reduce(tensor)
        return tensor

dist.init_process_group("gloo")
folder, rank = sys.argv[1], dist.get_rank()
found = []
for num_codes, groups, scales, codes, errors in torch.load(f"{folder}/codes.pt"):
    statistics = CodeStatistics(num_codes, groups, scales=scales)
    share = torch.arange(200) if rank == 0 else torch.arange(200, len(codes))
    for part in share.split(70):
        statistics.update(codes[part], errors[part].mean())
    statistics.reduce()
    found.append([statistics.counts.tolist(), statistics.compute()])
with open(f"{folder}/found-{rank}.json", "w") as file:
    json.dump(found, file)
dist.destroy_process_group()
"""


def test_two_processes_reduce_to_the_figures_of_the_whole(tmp_path):
    cases = [(6, 3, (), *draw_groups(501, 6, 3)), (9, 2, (), *draw_groups(333, 9, 2, seed=1))]
    codes, errors = draw_groups(400, 12, 1, seed=2)
    cases += [(12, 1, (), codes[:, 0], errors), (20, 1, MAPS, *draw_scales(310, 20))]
    torch.save(cases, tmp_path / "codes.pt")
    for done in run_ranks(["-c", PROCESS, tmp_path]):
        assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for (num_codes, groups, scales, codes, errors), (counts, figures) in zip(cases, first, strict=True):
        whole = CodeStatistics(num_codes, groups, scales=scales)
        whole.update(codes, errors.mean())
        assert counts == whole.counts.tolist()
        expected = whole.compute()
        assert figures.keys() == expected.keys()
        for name, value in expected.items():
            assert figures[name] == pytest.approx(value, rel=1e-9), name
