"""Sizes of files: as people write them, and of files before they exist."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pqnet import _check
from pqnet.codecs import Codec, Packed
from pqnet.codecs.halves import exponent_for
from pqnet.errors import ConfigError
from pqnet.graph.passes import separate_norm_statistics
from pqnet.io import Golden, graph_nbytes
from pqnet.pipeline.rates import codec_nbytes, smallest_codec
from pqnet.pipeline.run import Options, finished_graph, layer_report
from pqnet.runtime import Model

__all__ = ["FileSizes", "float_weights", "parse_size"]

UNITS = {"": 1, "b": 1} | {p + "b": 1000**i for i, p in enumerate("kmg", 1)}
EXPONENTS_NBYTES, EXPONENT_NBYTES = 96, 24  # at most: of exponents of numbers too small for float16, and of each
UNITS |= {p + "ib": 1024**i for i, p in enumerate("kmg", 1)}


def parse_size(size: Any, name: str = "target_size", whole: int | None = None) -> int:
    """Return a number of bytes, given as one or as text such as ``"5MB"``, ``"800 kB"``, ``"1.5 MiB"`` or ``"10x"``.

    kB, MB and GB are powers of 1000; KiB, MiB and GiB powers of 1024. ``"10x"`` is a tenth of ``whole`` bytes.
    """
    expected = "a number of bytes such as 5000000, '5MB', '800kB' or '1.5MiB'"
    expected += "" if whole is None else ", or '10x' for a tenth of the float file"
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", size, re.ASCII)
        unit = "" if match is None else match[2].lower()
        known = unit in UNITS or (unit == "x" and whole is not None)
        if match is None or not known or len(match[1]) > 15 or (unit == "x" and float(match[1]) == 0):
            raise ConfigError(str(_check.error(name, expected, _check.describe(size))))
        number = float(match[1])
        size = int((whole or 0) / number) if unit == "x" else int(number * UNITS[unit])
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ConfigError(str(_check.error(name, expected, _check.describe(size))))
    return int(size)


def float_weights(model: Any) -> dict[str, np.ndarray]:
    """Return the weights of a float model's layers by layer name, or raise PQNetError."""
    if not isinstance(model, Model):
        raise _check.error("model", "a pqnet.Model", _check.describe(model))
    weights: dict[str, np.ndarray] = {}
    for name, node in model.graph.layers().items():
        weight = model.graph.params[node.params["weight"]]
        if isinstance(weight, Packed):
            raise ConfigError(f"layer {name!r}: expected a float weight, got a packed one; plan for the float model")
        weights[name] = weight
    if not weights:
        raise ConfigError("model: expected layers with weights to quantize, got none")
    return weights


class FileSizes:
    """Sizes of files before they exist: those that stand-ins of the right codecs and shapes would make.

    Parameters
    ----------
    model : Model
        Float.
    golden : bool
        Count a golden record.
    seed : int
        Of the golden record.
    """

    def __init__(self, model: Model, golden: bool, seed: int) -> None:
        self.graph = separate_norm_statistics(model.graph)
        self.layers, self.seed = self.graph.layers(), seed
        self.golden: Golden | None = model.with_golden(model.draw_golden(seed)).golden if golden else None
        self.most = graph_nbytes(self.graph, self.golden)
        squares = {name: np.square(weight, dtype=np.float64).mean() for name, weight in float_weights(model).items()}
        self.small = {name for name, square in squares.items() if exponent_for(np.sqrt(square), alone=False)}
        self._made: dict[tuple[str, Codec], Packed] = {}

    def nbytes(self, codecs: Mapping[str, Codec | None]) -> int:
        """Return what the file of a network with these codecs takes at most."""
        chosen = {name: codec for name, codec in codecs.items() if codec is not None}
        student = replace(self.graph, params=dict(self.graph.params))
        options = Options(None, "pooled", "teacher", False, False, False, self.seed)
        report: dict[str, dict[str, Any]] = {}
        rng = np.random.default_rng(0)
        for name, codec in chosen.items():
            packed = self._stand_in(name, codec, self.shape(name))
            student.params[self.layers[name].params["weight"]] = packed
            # Digits that compress as badly as any, in numbers of the longest text.
            errors = [float(f"{x:.3e}") for x in rng.uniform(1e-5, 9.999e-5, 2)]
            report[name] = layer_report(packed, errors[0], int(rng.integers(10, 99))) | {"output_error": errors[1]}
        small = len(self.small & chosen.keys())
        exponents = EXPONENTS_NBYTES + EXPONENT_NBYTES * small if small else 0
        return graph_nbytes(finished_graph(student, options, report), self.golden) + exponents + len(chosen) + 16

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a layer's weight."""
        return tuple(self.graph.params[self.layers[name].params["weight"]].shape)

    def weights_nbytes(self, codecs: Mapping[str, Codec | None]) -> int:
        """Return what the weights alone take."""
        return sum(codec_nbytes(codec, self.shape(name)) for name, codec in codecs.items())

    def entries(self, codecs: Mapping[str, Codec | None]) -> dict[str, int]:
        """Return what the file says of each packed layer beside its weight, in bytes."""
        whole = self.nbytes(codecs)
        found: dict[str, int] = {}
        for name, codec in codecs.items():
            without = whole - self.nbytes({**codecs, name: None})
            found[name] = without - codec_nbytes(codec, self.shape(name)) + codec_nbytes(None, self.shape(name))
        return found

    def smallest(self, fast: bool) -> dict[str, Codec | None]:
        """Return of each layer the candidate that takes least."""
        return {name: smallest_codec(self.shape(name), fast) for name in self.layers}

    def target(self, size: Any, fast: bool) -> int:
        """Return a wanted size in bytes, or raise ConfigError if no plan can have it."""
        target = parse_size(size, whole=self.most)
        least = self.nbytes(self.smallest(fast))
        if not least <= target < self.most:
            ratio = math.floor(10 * self.most / least) / 10
            raise ConfigError(
                f"target_size: expected {least} bytes (the smallest plan, {ratio:g}x) to {self.most} (the float "
                f"network), got {target}; choose a size between them"
            )
        return target

    def _stand_in(self, name: str, codec: Codec, shape: tuple[int, ...]) -> Packed:
        key = (name, codec)
        if key not in self._made:
            self._made[key] = codec.largest(shape)
        return self._made[key]
