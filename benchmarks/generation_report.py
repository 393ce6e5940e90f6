"""Table, plot and sheets of the study of generation, from the results of benchmarks/generation.py.

python -m benchmarks.generation_report docs/results/generation.json --plot docs/images/generation.png
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from wvq.errors import DataError
from wvq.eval.report.markdown import markdown_table
from wvq.files.atomic import read_json

FD, KD = "fd_efficientnet_lite0", "kd_efficientnet_lite0"
CHANGES = {"model.code_dim": "codes as plain indices", "objective.random_order": "random order first"}


def label(cell: dict) -> str:
    """Name of a cell: its tokenizer, and what it changes in the shared recipe."""
    changes = [CHANGES[name] for name in cell["cell"] if name in CHANGES]
    return ": ".join([cell["cell"]["method"], *changes])


def row(cell: dict) -> list[str]:
    """The figures of a cell as a row of the table."""
    run, tokenizer = cell["run"], cell["tokenizer"]
    figures = [f"{cell['cell']['num_codes']:,}", label(cell), f"{tokenizer['utilization']:.1%}"]
    figures += [f"{tokenizer['psnr_rgb']:.2f}", f"{run['loss']:.3f}", f"{run['unigram_entropy']:.3f}"]
    figures += [f"{run['bits_per_image']:.0f}", f"{cell['decoded'][FD]:.1f}"]
    return figures + distances(cell["guidance"])


def distances(guidance: dict[str, dict]) -> list[str]:
    """fd and kd at each scale of guidance, as cells of a row."""
    return [text for at in guidance.values() for text in (f"{at[FD]:.1f}", f"{at[KD]:.4f}")]


def distances_head(guidance: Iterable[str]) -> list[str]:
    """The headings of :func:`distances`."""
    return [f"{name}, s {scale}" for scale in guidance for name in ("fd", "kd")]


def table(cells: list[dict]) -> str:
    """A Markdown table, K by K, best distance first."""
    scales = list(cells[0]["guidance"])
    head = ["K", "tokenizer", "U", "PSNR", "loss", "unigram", "bits an image", "fd, decoded", *distances_head(scales)]
    order = sorted(cells, key=lambda c: (-c["cell"]["num_codes"], c["guidance"][scales[-1]][FD]))
    return markdown_table(head, map(row, order))


def plot(cells: list[dict], file: Path) -> None:
    """Held-out loss by position, and the distance of decoded pictures beside that of samples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scale = list(cells[0]["guidance"])[-1]
    highest = max(max(cell["decoded"][FD], cell["guidance"][scale][FD]) for cell in cells)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    cells = sorted(cells, key=lambda c: (c["cell"]["num_codes"], label(c)))
    for cell in cells:
        name = f"{label(cell)}, K {cell['cell']['num_codes']:,}"
        left.plot(cell["run"]["loss_per_position"], label=name, linewidth=1.2)
        right.plot([0, 1], [cell["decoded"][FD], cell["guidance"][scale][FD]], marker="o", label=name)
    left.set(xlabel="position of the code, row by row", ylabel="held-out loss (nats a code)")
    right.set_xticks([0, 1], ["decoded pictures", f"samples, guidance {scale}"])
    right.set(ylabel=FD, ylim=(0, 1.05 * highest), xlim=(-0.2, 1.2))
    right.axhline(cells[0]["floor"][FD], color="grey", linestyle=":", label="real against real")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    cells = read_json(arguments.results, DataError, f"{arguments.results} is missing")["cells"]
    print(table(cells))
    if arguments.plot:
        plot(cells, arguments.plot)


if __name__ == "__main__":
    main()
