"""A report as one self-contained HTML page."""

import importlib.util
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pqnet import Model, PQNetError
from pqnet._progress import progress_bar, tick
from pqnet.io import replaced
from pqnet.report.drawing import draw
from pqnet.report.gather import Report, gather
from pqnet.report.layers import plain, signature_rows

__all__ = ["check_installed", "render", "write_report"]

NEEDED = ("jinja2", "matplotlib")
PARTS = {  # of a SizeReport, in words
    "codes": "codes",
    "codebooks": "codebooks, scales and zero points",
    "other": "what stays float: weights, biases, norms",
}


def write_report(
    model: Model | str | Path,
    path: str | Path,
    *,
    against: Model | str | Path | None = None,
    inputs: Any = None,
    labels: Any = None,
    batch: int = 32,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> None:
    """Write a report on a network: one HTML page that needs nothing else, with plots and a drawing of the network.

    It shows bytes, bits a weight, errors, use of codewords, weights, time and algorithm of each layer, recipe and
    provenance. Needs Matplotlib and Jinja2: ``pip install 'pqnet[report]'``.

    Parameters
    ----------
    model : Model, str or Path
        A network, or the file of one.
    path : str or Path
        The page to write; it appears whole or not at all.
    against : Model, str or Path, optional
        The float network, to compare weights and, with ``inputs``, outputs with.
    inputs : array or dict of str to array, optional
        Samples along axis 0. Outputs and times are then of these; times of the first ``batch``. Without, the network
        is timed on inputs that are drawn.
    labels : integer array, shape (samples,), optional
        Class numbers, for the share of right answers.
    batch : int
        Samples at a time.
    seed : int
        Of inputs that are drawn.
    threads : int, optional
        Cores to use; default all.
    progress : bool
        Show how far it is: a bar on a terminal, a line every 30 seconds elsewhere.

    Raises
    ------
    PQNetError
        Matplotlib or Jinja2 is not installed; files, samples or labels that do not fit; a path that cannot be written.

    Examples
    --------
    >>> import pqnet
    >>> from pqnet.demo import load_images, model_path
    >>> _, images, labels = load_images()
    >>> small = pqnet.quantize(pqnet.load(model_path()), "large-blocks", metric="none")
    >>> pqnet.write_report(small, "report.html", against=model_path(), inputs=images, labels=labels)
    """
    check_installed()
    with progress_bar(progress, "report", "part"):
        report = gather(model, against, inputs, labels, batch=batch, seed=seed, threads=threads)
        tick("plots")
        text = render(report)
    with replaced(Path(path)) as temporary:
        Path(temporary).write_text(text, "utf-8")


def check_installed() -> None:
    """Raise if what reports are made with is missing."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise PQNetError(
            f"report: expected the packages {' and '.join(NEEDED)}, got none of the name {missing[0]}; "
            "pip install 'pqnet[report]'"
        )


def render(report: Report) -> str:
    """Return the page of a report."""
    import jinja2
    from markupsafe import Markup

    from pqnet.report import plots

    folder = files("pqnet.report") / "templates"
    texts = {file.name: file.read_text("utf-8") for file in folder.iterdir() if file.is_file()}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"size": _size, "short": _number, "percent": _percent, "plain": plain}
    steps, layers = report.steps, report.layers
    svgs = {
        "sizes": plots.size_plot(layers) if layers else "",
        "errors": plots.error_plot(layers) if layers else "",
        "codewords": plots.codeword_plot(layers) if any(layer.use for layer in layers) else "",
        "weights": plots.weight_plot(layers) if layers else "",
        "outputs": plots.output_plot(report.outputs) if report.outputs else "",
        "times": plots.time_plot(steps) if steps else "",
    }
    drawing = draw(
        report.model.graph,
        {layer.name: (layer.nbytes, layer.dense_bytes) for layer in layers},
        {layer.name: layer.codec for layer in layers},
    )
    return environment.get_template("report.html").render(
        report=report,
        size=report.model.size(),
        svgs={name: Markup(svg) for name, svg in svgs.items()},
        drawing=drawing,
        style=Markup(texts["style.css"]),
        script=Markup(texts["drawing.js"]),
        total_seconds=sum(step.seconds for step in steps),
        **_tables(report),
    )


def _tables(report: Report) -> dict[str, list[list[str]]]:
    """Return the cells of the tables of the page."""
    model, layers, total = report.model, report.layers, sum(step.seconds for step in report.steps)
    size = model.size()
    kinds = [(text, getattr(size, name)) for name, text in PARTS.items()] + [("all", size.total)]
    return {
        "signature": signature_rows(model),
        "kinds": [[text, _size(n), f"{n:,}", _percent(n / max(1, size.total))] for text, n in kinds],
        "layer_sizes": [
            [layer.name, layer.op, "x".join(map(str, layer.shape)), layer.codec]
            + [_size(n) if n else "" for n in (layer.codes, layer.codebooks, layer.other, layer.dense_bytes)]
            + [f"{layer.dense_bytes / max(1, layer.nbytes):.1f}x"]
            for layer in layers
        ],
        "layer_errors": [
            [layer.name, *map(_number, (layer.rate, layer.output_error, layer.drift, layer.weight_error))]
            for layer in layers
        ],
        "codeword_rows": [
            [layer.name, str(use.codewords), str(use.used), f"{use.bits:.2f}", f"{use.entropy:.2f}"]
            for layer in layers
            if (use := layer.use) is not None
        ],
        "output_rows": [
            [row.name, _number(row.error), _percent(row.same_class), *map(_shares, (row.accuracy, row.accuracy_before))]
            for row in report.outputs
        ],
        "step_rows": [
            [step.label, step.algorithm, _number(step.seconds * 1e3), _percent(step.seconds / total)]
            for step in report.steps
        ],
    }


def _shares(found: Mapping[str, float]) -> str:
    return ", ".join(f"{what} {_percent(share)}" for what, share in found.items())


def _size(nbytes: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}" if unit != "bytes" else f"{nbytes:.0f} bytes"
        nbytes /= 1000
    return f"{nbytes:.3g} GB"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
