"""Tables and the plot of the comparison of quantizers, from the results of benchmarks/tokenizers.py.

python -m benchmarks.tokenizer_report docs/results/tokenizers.json --plot docs/images/tokenizers.png
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean

from benchmarks.tokenizers import SIZES
from wvq.errors import DataError
from wvq.files.atomic import read_json

COLUMNS = {
    "U": ("utilization", "{:.1%}"),
    "U, training": ("utilization_training", "{:.1%}"),
    "C": ("perplexity", "{:,.0f}"),
    "E": ("quantization_error", "{:.4f}"),
    "PSNR RGB": ("psnr_rgb", "{:.2f}"),
    "PSNR Y": ("psnr_y", "{:.2f}"),
    "SSIM": ("ssim", "{:.4f}"),
    "fd": ("fd_efficientnet_lite0", "{:.0f}"),
    "fd at floor N": ("fd_efficientnet_lite0_at_floor_n", "{:.0f}"),
}
# What a cell of the ablation changes, by the end of its name.
CHANGES = {
    "settling": "codebook rate on the network's schedule",
    "fading": "alignment weight falls to 0",
    "settling_fading": "codebook rate on the network's schedule, alignment weight falls to 0",
    "narrow_start": "codebook starts narrow, as the aligned ones do",
    "uniform_start": "codebook starts as that of vanilla",
    "network_rate": "codebook at the network's rate and schedule",
    "rate_005": "codebook rate .005",
    "beta_1": "beta 1",
    "beta_025": "beta .25",
    "gamma_005": "alignment weight .05 instead of .5",
    "tau_112": "tau 1.12",
    "rotation": "rotation estimator",
    "larger": "K = 65,536",
}
ALIGNED = ("wasserstein", "sliced", "affine")


def method(cell: dict) -> str:
    """Name of a cell without its K, seed and set."""
    return cell["name"].removeprefix("ablation-").split("-")[0].removesuffix("_seed1").removesuffix("_longer")


def group(cell: dict) -> str:
    """The table that a cell belongs to."""
    if "_longer" in cell["name"]:
        return "longer"
    if cell["name"].startswith("ablation-"):
        return "ablation"
    return "published" if "-published-" in cell["name"] else "equal"


def row_name(name: str, kind: str) -> str:
    """Name of a row: the method, and in the ablation what it changes."""
    if kind != "ablation":
        return name
    quantizer, _, change = name.partition("_")
    return f"{quantizer}: {CHANGES[change]}"


def rows(cells: list[dict]) -> dict[tuple[str, str, int], list[dict]]:
    """Cells of one group, method and K, over their seeds."""
    by_row = defaultdict(list)
    for cell in cells:
        by_row[group(cell), method(cell), cell["cell"]["num_codes"]].append(cell)
    return by_row


def figures(cell: dict) -> dict:
    """Metrics of a cell on the held-out pictures, and U on the training pictures."""
    return cell["metrics"] | {"utilization_training": cell["training"]["utilization"]}


def line(name: str, num_codes: int, cells: list[dict]) -> str:
    """A row of a table: means over the seeds, and the range of PSNR."""
    values = {title: form.format(mean(figures(c)[key] for c in cells)) for title, (key, form) in COLUMNS.items()}
    spread = [c["metrics"]["psnr_rgb"] for c in cells]
    if len(cells) > 1:
        values["PSNR RGB"] += f" ({min(spread):.2f} to {max(spread):.2f})"
    return f"| {num_codes:,} | {name} | {len(cells)} | {' | '.join(values.values())} |"


def table(cells: list[dict], kind: str) -> str:
    """A Markdown table of one group, K by K, best PSNR first."""
    by_row = {key[1:]: value for key, value in rows(cells).items() if key[0] == kind}
    head = f"| K | quantizer | seeds | {' | '.join(COLUMNS)} |\n|---|---|---|{'---|' * len(COLUMNS)}"
    order = sorted(by_row, key=lambda key: (-key[1], -mean(c["metrics"]["psnr_rgb"] for c in by_row[key])))
    return "\n".join([head, *(line(row_name(name, kind), size, by_row[name, size]) for name, size in order)])


def plot(cells: list[dict], file: Path) -> None:
    """PSNR and utilization against K, and PSNR against the length of the run, one line a method, under equal terms."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_row = rows(cells)
    names = sorted({name for kind, name, _ in by_row if kind == "equal"}, key=lambda name: (name not in ALIGNED, name))
    figure, axes = plt.subplots(1, 3, figsize=(14.5, 4.2))

    def draw(axis, points: dict[str, dict[int, list[dict]]], key: str, scale: int = 1) -> None:
        for name in names:
            values = {x: scale * mean(c["metrics"][key] for c in at) for x, at in points.get(name, {}).items()}
            style = {"linewidth": 2.2, "marker": "o"} if name in ALIGNED else {"linestyle": "--", "marker": "."}
            axis.plot(list(values), list(values.values()), label=name.replace("_", " "), **style)
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)

    sizes = sorted(SIZES)
    by_size = {name: {k: by_row["equal", name, k] for k in sizes if ("equal", name, k) in by_row} for name in names}
    by_length = {
        name: {
            by_row[kind, name, max(SIZES)][0]["run"]["images"]: by_row[kind, name, max(SIZES)]
            for kind in ("equal", "longer")
            if (kind, name, max(SIZES)) in by_row
        }
        for name in names
    }
    draw(axes[0], by_size, "psnr_rgb")
    draw(axes[1], by_size, "utilization", 100)
    draw(axes[2], by_length, "psnr_rgb")
    for axis in (axes[0], axes[2]):  # the method far below would flatten the others; its figures are in the table
        axis.set_ylim(bottom=24.5)
    for axis, label in zip(axes, ("PSNR, RGB (dB)", "codebook utilization (%)", "PSNR, RGB (dB)"), strict=True):
        axis.set_ylabel(label)
    for axis in axes[:2]:
        axis.set_xlabel("codes K")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
    lengths = sorted({length for points in by_length.values() for length in points})
    axes[2].set_xlabel(f"pictures trained on, K = {max(SIZES):,}")
    axes[2].set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes[2].minorticks_off()
    axes[2].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=100)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    cells = read_json(arguments.results, DataError, f"{arguments.results} does not exist")["cells"]
    for name in ("equal", "longer", "published", "ablation"):
        print(f"\n{name}\n\n{table(cells, name)}")
    if arguments.plot:
        plot(cells, arguments.plot)


if __name__ == "__main__":
    main()
