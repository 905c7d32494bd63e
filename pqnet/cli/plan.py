"""The command ``plan``, and what ``quantize --target-size`` shares with it."""

import argparse
import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

import pqnet
from pqnet import Model, PQNetError
from pqnet.cli.data import check_output, codec_text, open_inputs
from pqnet.cli.table import Column, print_json, print_table
from pqnet.io import replaced
from pqnet.pipeline import FileSizes, Plan, measure
from pqnet.pipeline.cluster import connected

__all__ = ["check_curve", "outputs_for", "plan", "plans_for", "read_source", "write_csv", "write_curve"]


def read_source(args: argparse.Namespace, model: Model, command: str) -> Any:
    """Return the statistics or the data that a command line names, None if neither."""
    if args.calibration and args.statistics:
        raise PQNetError(f"{command}: expected one of --calibration and --statistics, got both")
    if args.statistics:
        return pqnet.load_statistics(args.statistics)
    return open_inputs(args.calibration, list(model.inputs)) if args.calibration else None


def plans_for(args: argparse.Namespace, model: Model, source: Any, client: Any) -> list[Plan]:
    """Plan for the files that `pqnet quantize` writes, which hold a golden record: one for each size asked for."""
    if source is None:
        raise PQNetError("target-size: expected --calibration or --statistics with it, got neither")
    files = FileSizes(model, True, args.seed)
    targets = [files.target(size, args.prefer == "latency") for size in args.target_size]  # before work
    options = {"prefer": args.prefer, "client": client, "seed": args.seed, "threads": args.threads}
    published = getattr(args, "mode", None) is not None  # no mode has a search of second order
    metric = args.metric or ("block" if published else "full")
    measured = measure(model, source, metric=metric, progress=not args.quiet, **options)
    return [measured.plan(target, golden=True) for target in targets]


def outputs_for(args: argparse.Namespace, suffixes: tuple[str, ...]) -> list[str]:
    """Return the checked names of the files to write: with several sizes each has its own in its name."""
    sizes = args.target_size or []
    path = Path(args.output)
    names = [str(path.with_name(f"{path.stem}-{size.replace(' ', '')}{path.suffix}")) for size in sizes]
    if len(set(names)) < len(names):
        raise PQNetError(f"--target-size: expected every size once, got {', '.join(sizes)}")
    paths = names if len(names) > 1 else [args.output]
    for name in paths:
        check_output(name, suffixes)
    return paths


def plan(args: argparse.Namespace) -> None:
    if (args.output is None) != args.dry_run:
        raise PQNetError("plan: expected one of --output and --dry-run, got " + ("both" if args.dry_run else "neither"))
    outputs = outputs_for(args, (".yaml", ".yml")) if args.output else []
    check_curve(args)
    model = pqnet.load(args.model)
    source = read_source(args, model, "plan")
    with connected(args.scheduler, args.workers) as client:
        plans = plans_for(args, model, source, client)
    for i, made in enumerate(plans):
        if not args.json:
            _print_plan(made)
        if outputs:
            with replaced(outputs[i]) as temporary, open(temporary, "w", encoding="utf-8") as file:
                file.write(made.recipe.to_yaml())
            if not args.json:
                print(f"{outputs[i]}: {os.path.getsize(outputs[i])} bytes; pqnet quantize --recipe {outputs[i]}")
    if args.json:
        print_json({"plans": [_plain(made) for made in plans]})
    write_curve(args, [{"bytes": made.nbytes, "predicted_error": made.error} for made in plans])


def check_curve(args: argparse.Namespace) -> None:
    """Raise before work if there is no curve to write, or no place for it."""
    if args.curve is not None:
        if not args.target_size:
            raise PQNetError("curve: expected --target-size with it, got none")
        check_output(args.curve, (".csv",), "--curve")


def write_curve(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write what was found for every size, a row each, if asked for."""
    if args.curve is None:
        return
    shown = not getattr(args, "json", False)
    write_csv(
        args.curve, [{"target_size": size, **row} for size, row in zip(args.target_size, rows, strict=True)], shown
    )


def write_csv(path: str, rows: list[dict[str, Any]], shown: bool = True) -> None:
    """Write rows with the same keys as a table, and say so."""
    with replaced(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    if shown:
        print(f"{path}: {len(rows)} rows")


PLANNED = [
    *(Column("layer", False), Column("shape", False, 3), Column("codec", False)),
    *(Column("bytes"), Column("ratio", rank=2), Column("error", rank=4), Column("reaches the outputs", rank=1)),
]


def _plain(made: Plan) -> dict[str, Any]:
    """Return a plan for programs."""
    layers = {
        name: {
            "shape": layer.shape,
            "codec": None if layer.codec is None else layer.codec.to_attrs(),
            "bytes": layer.nbytes,
            "error": float(layer.error),
            "reaches_outputs": float(layer.gain * layer.error),
        }
        for name, layer in made.layers.items()
    }
    whole = {"target_bytes": made.target, "bytes": made.nbytes, "predicted_error": float(made.error)}
    return {**whole, "layers": layers}


def _print_plan(made: Plan) -> None:
    rows = []
    for name, layer in made.layers.items():
        text = codec_text(None if layer.codec is None else layer.codec.to_attrs())
        ratio = 4 * int(np.prod(layer.shape)) / layer.nbytes
        row = [name, "x".join(map(str, layer.shape)), text, str(layer.nbytes), f"{ratio:.1f}"]
        rows.append([*row, f"{layer.error:.5f}", f"{layer.gain * layer.error:.5f}"])
    print_table(PLANNED, rows)
    weights = sum(layer.nbytes for layer in made.layers.values())
    print(
        f"weights {weights} bytes; file at most {made.nbytes} bytes, {made.nbytes / made.target:.2%} of {made.target}; "
        f"predicted error of the outputs {made.error:.5f} (relative, squared)"
    )
