"""The plots of a report, by Matplotlib, as SVG elements for a page: colours are the page's, texts stay texts."""

import html
import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from pqnet.report.gather import Histogram, Layer, OutputRow, Step

__all__ = ["codeword_plot", "error_plot", "output_plot", "size_plot", "time_plot", "weight_plot"]

# Matplotlib knows no variables of CSS: colours that nothing else has stand for them.
INK, GRID, FIRST, SECOND, THIRD = "#010203", "#010204", "#010205", "#010206", "#010207"
VARIABLES = {INK: "--ink", GRID: "--grid", FIRST: "--first", SECOND: "--second", THIRD: "--third"}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pqnet",
    "text.parse_math": False,  # names of layers may have dollars
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "figure.constrained_layout.use": True,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}
WIDTH = 5.4  # inches: texts stay readable where the page is 400 pixels wide
LETTERS = 26  # of a layer's name
MOST = 24  # small histograms on a page


def size_plot(layers: Sequence[Layer]) -> str:
    """Draw the bytes of each layer by kind, beside one another on one scale."""

    def plot(figure: Figure) -> None:
        axes = _rows(figure, [layer.name for layer in layers], "kB")
        left = [0.0] * len(layers)
        for kind, color in (("codes", FIRST), ("codebooks", SECOND), ("other", THIRD)):
            sizes = [getattr(layer, kind) / 1000 for layer in layers]
            label = "float" if kind == "other" else kind
            axes.barh(range(len(layers)), sizes, left=left, color=color, label=label)
            left = [a + b for a, b in zip(left, sizes, strict=True)]
        _legend(figure, axes)

    alt = f"Bars of the bytes of {len(layers)} layers by codes, codebooks and float numbers; the table has the figures."
    return _svg("sizes", alt, _height(layers), plot)


def error_plot(layers: Sequence[Layer]) -> str:
    """Draw bits a weight and relative errors of each layer."""

    def plot(figure: Figure) -> None:
        rate, error = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1])
        _name_rows(rate, [layer.name for layer in layers])
        rate.barh(range(len(layers)), [layer.rate for layer in layers], color=FIRST)
        rate.set_xlabel("bits a weight")
        error.grid(axis="x")
        for attribute, label, marker, color in (
            ("output_error", "layer alone, recorded", "o", FIRST),
            ("drift", "in the network", "D", SECOND),
        ):
            found = [(getattr(layer, attribute), i) for i, layer in enumerate(layers)]
            known = [(value, i) for value, i in found if value is not None and value > 0]
            if known:
                error.plot(*zip(*known, strict=True), marker, color=color, label=label, markersize=4)
        error.set_xlabel("relative squared output error")
        if error.lines:
            error.set_xscale("log")
            error.xaxis.set_major_formatter("{x:g}")  # by default powers as formulas, which are not parsed
            error.xaxis.set_minor_formatter(NullFormatter())
            _legend(figure, error)
        else:
            error.text(0.5, 0.5, "none is known", transform=error.transAxes, ha="center")

    alt = f"Bits that a weight takes and output errors of {len(layers)} layers; the table has the figures."
    return _svg("errors", alt, _height(layers), plot)


def codeword_plot(layers: Sequence[Layer]) -> str:
    """Draw the entropy of codes in the bits that a code takes."""
    coded = [layer for layer in layers if layer.use is not None]

    def plot(figure: Figure) -> None:
        axes = _rows(figure, [layer.name for layer in coded], "bits a code")
        places = range(len(coded))
        axes.barh(places, [layer.use.bits for layer in coded if layer.use], color=GRID, label="log2 of codewords")
        axes.barh(places, [layer.use.entropy for layer in coded if layer.use], 0.45, color=FIRST, label="entropy")
        _legend(figure, axes)

    alt = (
        f"Bars of the entropy of the codes of {len(coded)} layers within the bits of a code; the table has the figures."
    )
    return _svg("codewords", alt, _height(coded), plot)


def weight_plot(layers: Sequence[Layer]) -> str:
    """Draw small histograms of the weights of the largest layers."""
    shown = {layer.name for layer in sorted(layers, key=lambda layer: -layer.dense_bytes)[:MOST]}
    parts = [(layer.name, layer.weights) for layer in layers if layer.name in shown]
    alt = (
        f"Histograms of the weights of {len(parts)} layers, stored and before: {', '.join(name for name, _ in parts)}."
    )
    return _svg("weights", alt, 0.3 + 1.15 * -(-len(parts) // 3), lambda figure: _histograms(figure, parts, 3))


def output_plot(outputs: Sequence[OutputRow]) -> str:
    """Draw histograms of the numbers of every output."""
    parts = [(row.name, row.numbers) for row in outputs]
    alt = f"Histograms of the outputs {', '.join(name for name, _ in parts)}, of this network and before."
    return _svg("outputs", alt, 0.4 + 2.2 * len(parts), lambda figure: _histograms(figure, parts, 1))


def time_plot(steps: Sequence[Step]) -> str:
    """Draw how long each step takes."""

    def plot(figure: Figure) -> None:
        axes = _rows(figure, [step.label for step in steps], "milliseconds")
        times = [step.seconds * 1e3 for step in steps]
        bars = axes.barh(range(len(steps)), times, color=FIRST)
        axes.bar_label(bars, [step.algorithm for step in steps], padding=3, fontsize=7)
        axes.set_xlim(0, 1.25 * max(times))

    alt = f"Bars of the time of {len(steps)} steps with their algorithms; the table has the figures."
    return _svg("times", alt, _height(steps), plot)


def _height(rows: Sequence[Any]) -> float:
    return 0.9 + 0.21 * len(rows)


def _rows(figure: Figure, names: Sequence[str], label: str) -> Any:
    axes = figure.subplots()
    _name_rows(axes, names)
    axes.set_xlabel(label)
    return axes


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first layer on top
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _legend(figure: Figure, axes: Any) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, handlelength=1.2)


def _histograms(figure: Figure, parts: Sequence[tuple[str, Histogram]], columns: int) -> None:
    grid = figure.subplots(-(-len(parts) // columns), columns, squeeze=False).ravel()
    for axes in grid[len(parts) :]:
        axes.set_axis_off()
    for axes, (name, found) in zip(grid, parts, strict=False):
        axes.stairs(found.now, found.edges, fill=True, color=FIRST, alpha=0.75, label="this network")
        if found.before is not None:
            axes.stairs(found.before, found.edges, color=SECOND, linewidth=1.2, label="before")
        axes.set_title(_short(name), fontsize=8)
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="x", labelsize=7)
    if parts:
        _legend(figure, grid[0])


def _short(name: str) -> str:
    name = "".join(letter if letter.isprintable() else "�" for letter in name)
    return name if len(name) <= LETTERS else "…" + name[1 - LETTERS :]


def _svg(name: str, alt: str, height: float, plot: Any) -> str:
    """Return a figure as an SVG element whose size is the page's to choose and whose ids are its own."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font for measuring texts lacks
        figure = Figure(figsize=(WIDTH, height))
        plot(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0] if box else ""}'
    return f'{head} role="img" aria-label="{html.escape(alt)}">' + text[text.index(">") + 1 :]
