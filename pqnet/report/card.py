"""A model card: what goes with a published network, in Markdown."""

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pqnet
from pqnet import Model
from pqnet.codecs import codec_from_attrs
from pqnet.report.gather import provenance, recipe_text
from pqnet.report.layers import describe_layers, plain, signature_rows

__all__ = ["model_card"]

SPECIAL = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_[]<>|~&"})


def model_card(path: str | Path) -> str:
    """Return a model card of a model file in Markdown: sizes, layers with recorded errors, how to run it, recipe.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    str

    Raises
    ------
    PQNetError
        There is no model at ``path``.

    Examples
    --------
    >>> from pqnet.demo import model_path
    >>> print(model_card(model_path()).partition("## ")[0])
    # digits.h5
    <BLANKLINE>
    A network of 7 layers for pqnet, which runs it from its codes on a CPU.
    <BLANKLINE>
    <BLANKLINE>
    """
    model, file = pqnet.load(path), Path(path).name
    layers, size = describe_layers(model), model.size()
    recipe = recipe_text(model)
    given, wanted = ("npy" if len(names) == 1 else "npz" for names in (model.inputs, model.outputs))
    run = f"pqnet run {shlex.quote(file)} --input inputs.{given} -o outputs.{wanted}"
    sizes = [
        ["File", f"{os.path.getsize(path):,}"],
        *([name.capitalize(), f"{getattr(size, name):,}"] for name in ("codes", "codebooks", "other", "total")),
        ["As float32", f"{size.dense:,} ({size.ratio:.1f}x)"],
    ]
    parts = [
        f"# {_text(file)}",
        f"A network of {len(layers)} layers for pqnet, which runs it from its codes on a CPU.",
        "## Sizes",
        _table(["", "Bytes"], sizes),
        "## How to run it",
        _fenced(run, "sh"),
        _fenced(_program(model, file), "python"),
        _table(["Value", "Is", "Type", "Shape"], ([_text(cell) for cell in row] for row in signature_rows(model))),
        "## Layers",
        "Errors are squared and relative, of each layer's outputs alone, on samples put aside when it was quantized.",
        _table(["Layer", "Shape", "Codec", "Bytes", "Smaller", "Error"], map(_layer, layers.items())),
        "## Recipe" if recipe else "",
        _fenced(recipe, "yaml") if recipe else "",
        "## What the file says",
        _table(["", ""], ([_text(key), _text(plain(value))] for key, value in provenance(model).items())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _layer(item: tuple[str, dict[str, Any]]) -> list[str]:
    name, facts = item
    codec = "float" if facts["codec"] is None else str(codec_from_attrs(facts["codec"]))
    error = facts["output_error"]
    ratio = f"{facts['dense_bytes'] / max(1, facts['bytes']):.1f}x"
    shape = "x".join(map(str, facts["shape"]))
    known = f"{error:.3g}" if isinstance(error, int | float) else ""
    return [_text(name), shape, _text(codec), f"{facts['bytes']:,}", ratio, known]


def _program(model: Model, file: str) -> str:
    """Return lines of Python that run the network on zeros, of sizes that are known to work."""
    infos = model.graph.infer_shapes(model.graph.symbols)
    zeros = [f"    {name!r}: np.zeros({infos[name].shape}, {infos[name].dtype!r})," for name in model.inputs]
    lines = ["import numpy as np", "import pqnet", "", f"model = pqnet.load({file!r})", "inputs = {", *zeros, "}"]
    return "\n".join([*lines, "for name, output in model.run(inputs).items():", "    print(name, output.shape)"])


def _text(text: str) -> str:
    """Return a text that Markdown shows as it is, in one line."""
    return " ".join(text.split()).translate(SPECIAL)


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
