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
from wvq.outputs import read_json

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
ALIGNED = ("wasserstein", "sliced", "affine")


def method(cell: dict) -> str:
    """Name of a cell without its K, seed and set."""
    parts = cell["name"].removeprefix("ablation-").split("-")
    return parts[0] + (" (published beta)" if "published" in parts else "")


def group(cell: dict) -> str:
    if cell["name"].startswith("ablation-"):
        return "ablation"
    return "published" if "-published-" in cell["name"] else "equal"


def rows(cells: list[dict]) -> dict[tuple[str, str, int], list[dict]]:
    """Cells of one group, method and K, over their seeds."""
    found = defaultdict(list)
    for cell in cells:
        found[group(cell), method(cell), cell["cell"]["num_codes"]].append(cell)
    return found


def figures(cell: dict) -> dict:
    """Metrics of a cell on the held-out pictures, and U on the training pictures."""
    return cell["metrics"] | {"utilization_training": cell["training"]["utilization"]}


def line(name: str, num_codes: int, cells: list[dict]) -> str:
    values = {title: form.format(mean(figures(c)[key] for c in cells)) for title, (key, form) in COLUMNS.items()}
    spread = [c["metrics"]["psnr_rgb"] for c in cells]
    if len(cells) > 1:
        values["PSNR RGB"] += f" ({min(spread):.2f} to {max(spread):.2f})"
    return f"| {num_codes:,} | {name} | {len(cells)} | {' | '.join(values.values())} |"


def table(cells: list[dict], wanted: str) -> str:
    """A Markdown table of one group, K by K, best PSNR first."""
    found = {key[1:]: value for key, value in rows(cells).items() if key[0] == wanted}
    head = f"| K | quantizer | seeds | {' | '.join(COLUMNS)} |\n|---|---|---|{'---|' * len(COLUMNS)}"
    order = sorted(found, key=lambda key: (-key[1], -mean(c["metrics"]["psnr_rgb"] for c in found[key])))
    return "\n".join([head, *(line(name, size, found[name, size]) for name, size in order)])


def plot(cells: list[dict], file: Path) -> None:
    """PSNR against K and utilization against K, one line a method, under equal terms."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = {key[1:]: value for key, value in rows(cells).items() if key[0] == "equal"}
    names = sorted({name for name, _ in found}, key=lambda name: (name not in ALIGNED, name))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for axis, (key, label, scale) in zip(
        axes, (("psnr_rgb", "PSNR, RGB (dB)", 1), ("utilization", "codebook utilization (%)", 100)), strict=True
    ):
        for name in names:
            sizes = [size for size in sorted(SIZES) if (name, size) in found]
            values = [scale * mean(c["metrics"][key] for c in found[name, size]) for size in sizes]
            style = {"linewidth": 2.2, "marker": "o"} if name in ALIGNED else {"linestyle": "--", "marker": "."}
            axis.plot(sizes, values, label=name.replace("_", " "), **style)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(SIZES), [f"{size:,}" for size in sorted(SIZES)])
        axis.minorticks_off()
        axis.set_xlabel("codes K")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    cells = read_json(arguments.results, DataError, f"{arguments.results} does not exist")["cells"]
    for name in ("equal", "published", "ablation"):
        print(f"\n{name}\n\n{table(cells, name)}")
    if arguments.plot:
        plot(cells, arguments.plot)


if __name__ == "__main__":
    main()
