"""``pqnet compress``: the smallest file that keeps what is asked for, and the sizes that were tried."""

import argparse
import os
import re
import sys
from typing import Any

import pqnet
from pqnet._progress import tell
from pqnet.cli.data import check_output, read_inputs
from pqnet.cli.plan import write_csv
from pqnet.cli.table import print_json
from pqnet.pipeline import Try
from pqnet.pipeline.cluster import connected

__all__ = ["compress", "share"]


def share(text: str) -> float:
    """Return a share given as ``99%``, ``99.5 %`` or ``0.99``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(%?)", text, re.ASCII)
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share such as 99% or 0.99, got {text!r}")
    return value


def compress(args: argparse.Namespace) -> None:
    check_output(args.output, (".h5",))
    if args.curve is not None:
        check_output(args.curve, (".csv",), "--curve")
    model = pqnet.load(args.model)
    names = list(model.inputs)
    data = read_inputs(args.calibration, names)
    held_out = read_inputs(args.held_out, names) if args.held_out else None
    if not args.json:
        print(f"{'bytes':>12} {'ratio':>6} {'predicted error':>16} {'kept':>9} {'of others, likely':>18}")
    whole = os.path.getsize(args.model)

    def show(tried: Try) -> None:
        if args.json:
            return
        cells = f"{tried.nbytes:>12} {whole / tried.nbytes:>6.1f} {tried.error:>16.5f}"
        enough = "enough" if tried.enough else "too little"
        tell(f"{cells} {tried.kept:>9.2%} {tried.bound:>18.2%}  {enough}", sys.stdout)

    with connected(args.scheduler, args.workers) as client:
        found = pqnet.compress(
            model,
            data,
            args.keep,
            metric=args.metric,
            held_out=held_out,
            prefer=args.prefer,
            golden=True,
            checkpoint=args.checkpoint,
            on_try=show,
            client=client,
            seed=args.seed,
            threads=args.threads,
            progress=not args.quiet,
        )
    found.model.save(args.output)
    best = min((tried for tried in found.tries if tried.enough), key=lambda tried: tried.nbytes)
    if args.curve is not None:
        rows: list[dict[str, Any]] = [{**vars(tried), "enough": int(tried.enough)} for tried in found.tries]
        write_csv(args.curve, sorted(rows, key=lambda row: row["nbytes"]), not args.json)
    if args.json:
        whole_file = {"file": args.output, "bytes": os.path.getsize(args.output), "metric": found.metric}
        print_json({**whole_file, "kept": best.kept, "bound": best.bound, "tries": [vars(t) for t in found.tries]})
        return
    size = f"{os.path.getsize(args.output)} bytes, {whole / best.nbytes:.1f}x smaller"
    print(
        f"{args.output}: {size}; keeps {best.kept:.2%} ({found.metric}) of held-out samples, and of others at least "
        f"{best.bound:.2%} in nine cases of ten"
    )
