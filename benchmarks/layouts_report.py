"""Tables and plot of the study of layouts, from the results of benchmarks/layouts.py.

python -m benchmarks.layouts_report docs/results/layouts.json --speed docs/results/layouts_speed.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.generation_report import FD, KD, distances, distances_head
from benchmarks.layouts import ALIGNMENTS, CELLS
from wvq.errors import DataError
from wvq.eval.report.markdown import markdown_table
from wvq.files.atomic import read_json


def in_order(cells: list[dict]) -> list[dict]:
    """The cells in the order in which the study runs them."""
    names = list(CELLS)
    return sorted(cells, key=lambda cell: names.index(cell["name"]))


def label(layout: str) -> str:
    """A layout's name in words."""
    return layout.replace("_", " ")


def rows(cell: dict) -> list[list[str]]:
    """The figures of a cell, a row for each number of passes."""
    about, tokenizer, run = cell["cell"], cell["tokenizer"], cell["run"]
    figures = [about["method"], str(about["seed"]), label(about["layout"]), str(tokenizer["codes"])]
    figures += [f"{tokenizer['utilization']:.1%}", f"{tokenizer['psnr_rgb']:.2f}"]
    random_order = run.get("bits_per_image_in_random_order")
    figures.append(f"{run['bits_per_image']:.0f}" + (f" ({random_order:.0f})" if random_order else ""))
    figures.append(f"{cell['decoded'][FD]:.1f}")
    return [[*figures, str(draw["passes"]), *distances(draw["guidance"])] for draw in cell["drawn"]]


def table(cells: list[dict]) -> str:
    """A Markdown table of all cells, alignment by alignment."""
    head = ["alignment", "seed", "layout", "codes", "U", "PSNR", "bits an image", "fd, decoded", "passes"]
    head += distances_head(cells[0]["drawn"][0]["guidance"])
    return markdown_table(head, [row for cell in in_order(cells) for row in rows(cell)])


def protocol(cell: dict) -> str:
    """How many pictures the distances compare, and those of real pictures, in a sentence."""
    floor = cell["floor"]
    return f"{cell['num_samples']:,} pictures on each side; real against real: fd {floor[FD]:.1f}, kd {floor[KD]:.4f}"


def speed_table(timed: list[dict]) -> str:
    """A Markdown table of the samplers, a row each: time a picture, and how many times as fast as the first one."""
    batches = sorted({row["batch"] for row in timed})
    head = ["layout", "passes"]
    for batch in batches:
        head += [f"ms a picture, batch {batch}", "times as fast"]
    samplers: dict[tuple[str, int], list[str]] = {}
    for row in sorted(timed, key=lambda row: row["batch"]):
        cells = samplers.setdefault((row["layout"], row["passes"]), [])
        cells += [f"{1e3 * row['seconds_per_image']:.1f}", f"{row['first_to_this']:.2f}"]
    return markdown_table(head, [[label(layout), str(n), *cells] for (layout, n), cells in samplers.items()])


def plot(cells: list[dict], file: Path) -> None:
    """Distance of samples against passes a picture, a line a layout, over the first alignment."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    method, seed = ALIGNMENTS[0]
    scale = list(cells[0]["drawn"][0]["guidance"])[-1]
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for cell in in_order(cells):
        about, draws = cell["cell"], sorted(cell["drawn"], key=lambda draw: draw["passes"])
        if (about["method"], about["seed"]) == (method, seed):
            distance = [draw["guidance"][scale][FD] for draw in draws]
            axes.plot([draw["passes"] for draw in draws], distance, marker="o", label=label(about["layout"]))
    axes.set_xscale("log", base=2)
    axes.set(xlabel="passes through the generator a picture", ylabel=f"{FD}, guidance {scale}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--speed", type=Path, help="what the stage speed has written")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    cells = read_json(arguments.results, DataError, f"{arguments.results} is missing")["cells"]
    print(table(cells))
    print("\n" + protocol(cells[0]))
    if arguments.speed:
        print("\n" + speed_table(read_json(arguments.speed, DataError, f"{arguments.speed} is missing")["rows"]))
    if arguments.plot:
        plot(cells, arguments.plot)


if __name__ == "__main__":
    main()
