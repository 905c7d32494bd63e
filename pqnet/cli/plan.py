"""The command ``plan``, and what ``quantize --target-size`` shares with it."""

import argparse
import os
from typing import Any

import numpy as np

import pqnet
from pqnet import Model, PQNetError
from pqnet.cli.data import check_output, codec_text, read_inputs
from pqnet.io import replaced
from pqnet.pipeline import Plan, measure, parse_size

__all__ = ["plan", "plan_for", "read_source"]


def read_source(args: argparse.Namespace, model: Model, command: str) -> Any:
    """Return the statistics or the data that a command line names, None if neither."""
    if args.calibration and args.statistics:
        raise PQNetError(f"{command}: expected one of --calibration and --statistics, got both")
    if args.statistics:
        return pqnet.load_statistics(args.statistics)
    return read_inputs(args.calibration, list(model.inputs)) if args.calibration else None


def plan_for(args: argparse.Namespace, model: Model, source: Any) -> Plan:
    """Plan for the file that `pqnet quantize` writes, which holds a golden record."""
    if source is None:
        raise PQNetError("target-size: expected --calibration or --statistics with it, got neither")
    target = parse_size(args.target_size)  # before work
    options = {"prefer": args.prefer, "seed": args.seed, "threads": args.threads}
    published = getattr(args, "mode", None) is not None  # no mode has a search of second order
    measured = measure(model, source, metric=args.metric or ("block" if published else "full"), **options)
    return measured.plan(target, golden=True)


def plan(args: argparse.Namespace) -> None:
    if (args.output is None) != args.dry_run:
        raise PQNetError("plan: expected one of --output and --dry-run, got " + ("both" if args.dry_run else "neither"))
    if args.output:
        check_output(args.output, (".yaml", ".yml"))
    model = pqnet.load(args.model)
    made = plan_for(args, model, read_source(args, model, "plan"))
    _print_plan(made)
    if args.output:
        with replaced(args.output) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(made.recipe.to_yaml())
        print(f"{args.output}: {os.path.getsize(args.output)} bytes; pqnet quantize --recipe {args.output}")


def _print_plan(made: Plan) -> None:
    print(
        f"{'layer':<32} {'shape':<18} {'codec':<32} {'bytes':>10} {'ratio':>6} {'error':>8} {'reaches the outputs':>20}"
    )
    for name, layer in made.layers.items():
        text = codec_text(None if layer.codec is None else layer.codec.to_attrs())
        dense = 4 * int(np.prod(layer.shape))
        print(
            f"{name:<32} {'x'.join(map(str, layer.shape)):<18} {text:<32} {layer.nbytes:>10} "
            f"{dense / layer.nbytes:>6.1f} {layer.error:>8.5f} {layer.gain * layer.error:>20.5f}"
        )
    weights = sum(layer.nbytes for layer in made.layers.values())
    print(
        f"weights {weights} bytes; file at most {made.nbytes} bytes, {made.nbytes / made.target:.2%} of {made.target}; "
        f"predicted error of the outputs {made.error:.5f} (relative, squared; layers repair nothing)"
    )
