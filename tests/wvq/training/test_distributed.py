"""Two real processes on the CPU: the gradients, codebooks, statistics and caches of one process on the joined batch."""

import functools
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.processes import run_ranks
from wvq.data.codes import CodeDataset, CodeHeader
from wvq.tokenizer.quantizers.alignment import MomentWindow
from wvq.tokenizer.quantizers.registry import QUANTIZERS

WORKER = Path(__file__).with_name("distributed_worker.py")
METHODS = ("vanilla", "ema", "online", "linear", "fsq", "lfq", "wasserstein", "sliced", "mmd", "affine")
ADVERSARIES = ("patchgan", "patchgan-linear", "dino")
ACCUMULATED = "accumulated-"
# Of the methods that keep nothing of a batch, vanilla; lfq takes the entropy of a mean, hence its linear form.
IN_PARTS = (
    *(set(METHODS) - {"linear", "fsq", "lfq"}),
    "lfq-linear",
    "product",
    "multi-scale",
    "restored",
    "patchgan-linear",
)
CASES = (*METHODS, "lfq-linear", "rotation", "product", "multi-scale", "multi-scale-lfq", "restored", *ADVERSARIES)
CASES += tuple(ACCUMULATED + case for case in sorted(IN_PARTS))
WITH_STATISTICS = ("ema", "online", "wasserstein", "affine", "product", "multi-scale", "restored")
TOKENS = {"multi-scale": 1 + 4 + 16, "multi-scale-lfq": 1 + 9 + 16}  # a picture
UNREADABLE = ("circle/00.png", "circle/05.png", "square/11.png")  # in the shares of both processes


def run(out: Path, world: int, export: dict) -> None:
    out.mkdir(parents=True)
    settings = out / "settings.json"
    settings.write_text(json.dumps({"out": str(out), "world": world, "export": export}))
    for done in run_ranks([WORKER, settings], world):
        assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_tokenizer_dir, caption_folder, tiny_data):
    """The folders of the run with one process and of the run with two."""
    root = tmp_path_factory.mktemp("distributed")
    pictures = shutil.copytree(caption_folder, tmp_path_factory.mktemp("spoilt") / "pictures")
    for name in UNREADABLE:
        (pictures / name).write_bytes(b"")
    folders = {}
    for world in (1, 2):
        # 0.02 of each class is one picture: a split with fewer pictures than its share would suggest.
        data = tiny_data(pictures, validation_fraction=0.02, crop="random", flip=True)
        export = {
            "out": str(root / f"codes-{world}"),
            "tokenizer": str(tiny_tokenizer_dir),
            "data": asdict(data),
            "num_crops": 2,
            "batch_size": 16,
        }
        folders[world] = root / f"world-{world}"
        run(folders[world], world, export)
    return folders


def held(runs, world, case):
    """What each process holds; cases in parts are compared with the whole batch in one process."""
    case = case.removeprefix(ACCUMULATED) if world == 1 else case
    return [read(runs[world] / f"{case}-{rank}.pt") for rank in range(world)]


@functools.cache
def read(file: Path) -> dict:
    return torch.load(file, weights_only=True)


def same(a, b):
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in pairs)


def test_every_quantizer_is_tried():
    assert set(METHODS) == set(QUANTIZERS)


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_one_process_on_the_joined_batch(runs, case):
    (one,), two = held(runs, 1, case), held(runs, 2, case)
    assert one["steps"] == two[0]["steps"] == 3
    whole = torch.cat([gradient.flatten() for gradient in one["gradients"].values()]).norm()
    for rank in two:
        assert rank["gradients"].keys() == one["gradients"].keys()
        for name, expected in one["gradients"].items():
            difference = (rank["gradients"][name] - expected).norm()
            # The second term is for biases whose gradient is nothing but rounding, as ahead of a normalisation.
            assert difference < 1e-5 * expected.norm() + 1e-7 * whole, (name, difference / expected.norm())


@pytest.mark.parametrize("case", CASES)
def test_both_processes_hold_the_same_model_after_some_steps(runs, case):
    first, second = held(runs, 2, case)
    for part in ("weights", "average", "statistics", "adversary", "resumed", "resumed_statistics", "resumed_adversary"):
        assert same(first[part], second[part])
    assert first["figures"] == second["figures"]
    assert same(first["resumed"], first["weights"])
    assert same(first["resumed_statistics"], first["statistics"])
    assert same(first["resumed_adversary"], first["adversary"])
    assert bool(first["adversary"]) == (case.removeprefix(ACCUMULATED) in ADVERSARIES)


@pytest.mark.parametrize("case", CASES)
def test_the_model_after_some_steps_is_that_of_one_process(runs, case):
    (one,), (two, _) = held(runs, 1, case), held(runs, 2, case)
    quantizer = {name: value for name, value in one["weights"].items() if name.startswith("quantizer.")}
    assert bool(quantizer) == (case.removeprefix(ACCUMULATED) not in ("fsq", "lfq", "lfq-linear"))
    for name, expected in quantizer.items():
        # Loose: Adam turns a rounding error of a tiny gradient into one of a step.
        torch.testing.assert_close(two["weights"][name], expected, atol=2e-3, rtol=0)
    assert two["figures"]["psnr_rgb"] == pytest.approx(one["figures"]["psnr_rgb"], abs=0.05)
    assert two["figures"]["num_images"] == one["figures"]["num_images"] == 20
    assert (
        two["figures"]["num_tokens"]
        == one["figures"]["num_tokens"]
        == 20 * TOKENS.get(case.removeprefix(ACCUMULATED), 16)
    )
    for name in ("utilization_per_scale", "num_tokens_per_scale", "alignment_per_scale"):
        assert (name in two["figures"]) == ("multi-scale" in case)
        assert two["figures"].get(name, 0) == pytest.approx(one["figures"].get(name, 0), abs=0.1)


def by_name(statistics):
    """Running statistics as {name: tensor}, a window as its moments."""
    if "groups" in statistics:
        groups = [by_name(group) for group in statistics["groups"]]
        return {f"{name} {g}": value for g, group in enumerate(groups) for name, value in group.items()}
    values = {name: torch.as_tensor(value) for name, value in statistics.items() if name != "window"}
    if "window" in statistics:
        window = MomentWindow()
        window.load_state_dict(statistics["window"])
        values |= dict(zip(("mean", "covariance"), window.moments(), strict=True), features=torch.tensor(len(window)))
    return values


@pytest.mark.parametrize("case", CASES)
def test_running_statistics_are_those_of_one_process(runs, case):
    (one,), (two, _) = held(runs, 1, case), held(runs, 2, case)
    expected, shared = by_name(one["statistics"]), by_name(two["statistics"])
    assert bool(expected) == (case.removeprefix(ACCUMULATED) in WITH_STATISTICS)
    assert shared.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)


def test_codes_exported_by_two_processes_are_those_of_one(runs):
    one, two = (folder.with_name(f"codes-{world}") for world, folder in runs.items())
    first, second = CodeHeader.read(one), CodeHeader.read(two)
    assert first == second
    assert first.unreadable_pictures == {"train": 3, "validation": 0}
    assert sum(first.num_images.values()) == 60 - 3
    assert sorted(path.name for path in two.parent.iterdir()) == ["codes-1", "codes-2", "world-1", "world-2"]
    for split in ("train", "validation"):
        a, b = CodeDataset(one, split), CodeDataset(two, split)
        rows = range(len(a.labels))
        assert torch.equal(a.codes(rows), b.codes(rows))
        assert a.labels.tolist() == b.labels.tolist()
        assert [a.texts(i) for i in range(len(a))] == [b.texts(i) for i in range(len(b))]
        files = [{file.name: file.read_bytes() for file in (folder / split).iterdir()} for folder in (one, two)]
        assert split == "validation" or len(files[0]) > 3  # each process has written some
        assert all(files[0][name] == files[1][name] for name in files[0] if name.endswith(".arrow"))
