"""What `quantize` is asked for, checked, and the published algorithms as presets of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pqnet import _check
from pqnet.codecs import PQ, Codec, IntN
from pqnet.errors import ConfigError
from pqnet.fit.pq import EFFORTS
from pqnet.pipeline.moments import METRICS
from pqnet.pipeline.run import Options
from pqnet.pipeline.statistics import Statistics

__all__ = ["MODES", "check_calibration", "choose_options", "integers_instead", "mode_search"]

TARGETS = ("teacher", "weight")
REPAIRS = ("blocks", None)
DEPTHWISE_BITS = 4


@dataclass(frozen=True)
class Mode:
    """How a paper finds the codes of a weight.

    Parameters
    ----------
    metric : str
    permute : bool
    search : dict
        Arguments of `pqnet.fit.fit_pq`.
    """

    metric: str
    permute: bool
    search: Mapping[str, Any]


MODES = {
    "bgd": Mode("pooled", False, {"init": "random", "n_iter": 100}),
    "pqf": Mode("none", True, {"annealed": True, "n_iter": 1000}),
    "ipq": Mode("none", False, {"init": "random", "n_iter": 15}),
}


def choose_options(
    mode: str | None,
    metric: str | None,
    target: str | None,
    correct_bias: bool | None,
    permute: bool | None,
    reestimate_norm: bool,
    seed: int,
    effort: str,
    balanced: bool | None,
    repair: str | None,
) -> Options:
    """Return the checked options of `quantize`; None is what the mode has, without a mode the best."""
    _check.choice(mode, "mode", (None, *MODES))
    given = {
        "metric": metric,
        "target": target,
        "correct_bias": correct_bias,
        "permute": permute,
        "balanced": balanced,
    }
    best: dict[str, Any] = {
        "metric": "full",
        "target": "teacher",
        "correct_bias": True,
        "permute": False,
        "balanced": True,
    }
    if mode is not None:
        if set_too := [name for name, value in given.items() if value is not None]:
            raise ConfigError(
                f"{set_too[0]}: expected None with mode={mode!r}, which sets it, got {given[set_too[0]]!r}"
            )
        own = MODES[mode]
        best = {
            "metric": own.metric,
            "target": "weight",
            "correct_bias": False,
            "permute": own.permute,
            "balanced": False,
        }
    chosen = {name: best[name] if value is None else value for name, value in given.items()}
    return Options(
        mode,
        _check.choice(chosen["metric"], "metric", METRICS),
        _check.choice(chosen["target"], "target", TARGETS),
        _check.choice(chosen["correct_bias"], "correct_bias", (False, True)),
        _check.choice(chosen["permute"], "permute", (False, True)),
        _check.choice(reestimate_norm, "reestimate_norm", (False, True)),
        _check.rng_seed(seed),
        _check.choice(effort, "effort", tuple(EFFORTS)),
        _check.choice(chosen["balanced"], "balanced", (False, True)),
        _check.choice(repair, "repair", REPAIRS),
    )


def check_calibration(options: Options, calibration: Any) -> None:
    """Raise ConfigError unless the calibration is enough for the options."""
    has_data = not (calibration is None or isinstance(calibration, Statistics))
    if options.reestimate_norm and not has_data:
        raise ConfigError("reestimate_norm: expected calibration data, got none; statistics are not enough")
    if options.repair is not None and not has_data:
        raise ConfigError("repair: expected calibration data, got none; statistics are not enough")
    if options.mode == "bgd" and not has_data:
        raise ConfigError("calibration: expected data for mode='bgd', which goes layer after layer, got none")
    if options.metric != "none" and calibration is None:
        raise ConfigError(f"calibration: expected data or statistics for metric={options.metric!r}, got None")


def mode_search(mode: str | None, codecs: Mapping[str, Codec]) -> Mapping[str, Any]:
    """Return the arguments that a mode has for the fit of every layer, or raise ConfigError."""
    if mode is None:
        return {}
    if others := [name for name, codec in codecs.items() if not isinstance(codec, PQ)]:
        got = codecs[others[0]].name
        raise ConfigError(f"layer {others[0]!r}: expected the PQ codec for mode={mode!r}, got {got!r}")
    return MODES[mode].search


def integers_instead(codecs: Mapping[str, Codec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Codec]:
    """Return for layers too small for a codebook of their own the integers that are worth a try instead.

    Those of the most bits, with a scale for each filter, that take no more bytes than the layer's codewords and codes;
    of filters that are one block each, as depthwise ones are, at least 4 bits: their errors nothing makes up for.
    """
    found: dict[str, Codec] = {}
    for name, codec in codecs.items():
        if isinstance(codec, PQ):
            shape = shapes[name]
            single = codec.d == math.prod(shape[1:])
            room = codec.nbytes(shape).total
            fits = [b for b in range(2, 9) if _per_filter(b).nbytes(shape).total <= room]
            bits = max([*fits, *([DEPTHWISE_BITS] if single else [])], default=0)
            if bits:
                found[name] = _per_filter(bits)
    return found


def _per_filter(bits: int) -> IntN:
    return IntN(bits, per="channel", observer="output")
