"""The picture of README: size against accuracy of CIFAR-10 ResNet-20, the papers' searches and pqnet's, no labels.

It is drawn from `quality.csv` (`bench_quality.py`) and `distill.csv` (`bench_distill.py`) beside this file; nothing is
measured here. Lines join only what is one curve, plans for more and more bytes; all else are single points.

Example: ``python bench/plot_sizes.py docs/size_accuracy.svg``
"""

import csv
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NETWORK = "resnet20"
SEARCHES = {"bgd": "And the Bit Goes Down", "pqf": "Permute, Quantize, Fine-tune", "ipq": "iPQ"}
COLORS = {"ours": "#0b6e4f", "bgd": "#c1440e", "pqf": "#7b5ea7", "ipq": "#8a6d1d"}
MARKERS = {"bgd": "s", "pqf": "^", "ipq": "D"}
PLAN = "plan, "


def rows(name: str) -> list[dict[str, str]]:
    """Return the rows of a table for the network."""
    with open(HERE / name, newline="") as file:
        return [row for row in csv.DictReader(file) if row["network"] == NETWORK]


def draw(axis: Any) -> None:
    """Draw all points, each kind with its name beside it."""
    quality, distilled = rows("quality.csv"), rows("distill.csv")
    at = {(row["preset"], row["variant"]): (int(row["bytes"]) / 1e3, float(row["top1"])) for row in quality}
    top1 = at["", "float32"][1]
    axis.axhline(top1, color="#555555", linewidth=1, linestyle=":")
    axis.text(190, top1 + 1.5, f"float network, {at['', 'float32'][0]:.0f} kB: {top1:.1f} %", ha="center", fontsize=9)
    plans = sorted({point for (_, variant), point in at.items() if variant.startswith(PLAN)})
    axis.plot(*zip(*plans, strict=True), color=COLORS["ours"], marker="o", label="pqnet: plans for a wanted size")
    ours = [at[preset, "full, both (default)"] for preset in ("small-blocks", "large-blocks")]
    axis.scatter(*zip(*ours, strict=True), color=COLORS["ours"], marker="*", s=130, zorder=3)
    axis.scatter([], [], color=COLORS["ours"], marker="*", s=130, label="pqnet: blocks of the papers")
    for key, name in SEARCHES.items():
        points = [at[preset, key] for preset in ("small-blocks", "large-blocks")]
        axis.scatter(*zip(*points, strict=True), color=COLORS[key], marker=MARKERS[key], s=45, label=name)
    tuned = [row for row in distilled if row["codes"] == "bgd"]
    points = [(at[row["preset"], "bgd"][0], float(row["after"])) for row in tuned]
    label = f"And the Bit Goes Down, then {tuned[0]['steps']} steps of distillation"
    axis.scatter(*zip(*points, strict=True), edgecolor=COLORS["bgd"], facecolor="none", marker="s", s=45, label=label)
    axis.set(xlim=(50, 250), ylim=(0, 100), xlabel="size, kB (as the papers count)", ylabel="right answers, %")
    axis.set_title("CIFAR-10 ResNet-20 from 1000 images without labels; no training but where it says so", fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(loc="lower right", fontsize=9, framealpha=1)


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "pqnet", "axes.spines.top": False, "axes.spines.right": False}
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.2))
    draw(axis)
    figure.tight_layout()
    figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()
