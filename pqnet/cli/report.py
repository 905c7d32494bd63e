"""The commands ``report`` and ``card``: one page that shows a network, and one that goes with a published file."""

import argparse
import os
from pathlib import Path

import pqnet
from pqnet.cli.data import check_output, read_inputs, read_labels
from pqnet.io import replaced
from pqnet.pipeline.evaluate import count_samples
from pqnet.report import model_card
from pqnet.report.page import check_installed, write_report

__all__ = ["card", "run"]


def run(args: argparse.Namespace) -> None:
    check_installed()
    check_output(args.output, (".html",))
    if args.labels is not None and not args.inputs:
        raise pqnet.PQNetError("--labels: expected --inputs with them, the samples that they are of, got none")
    model = pqnet.load(args.model)
    inputs = read_inputs(args.inputs, list(model.inputs)) if args.inputs else None
    labels = None if args.labels is None or inputs is None else read_labels(args.labels, count_samples(inputs))
    write_report(
        args.model,
        args.output,
        against=args.against,
        inputs=inputs,
        labels=labels,
        batch=args.batch,
        seed=args.seed,
        threads=args.threads,
        progress=not args.quiet,
    )
    print(f"{args.output}: {os.path.getsize(args.output)} bytes")


def card(args: argparse.Namespace) -> None:
    check_output(args.output, (".md",))
    text = model_card(args.model)
    with replaced(args.output) as temporary:
        Path(temporary).write_text(text, "utf-8")
    print(f"{args.output}: {os.path.getsize(args.output)} bytes")
