"""``pqnet finetune``: distillation from the command line; PyTorch is imported only when it runs."""

import argparse
import os
from typing import Any

import numpy as np

import pqnet
from pqnet import Model, PQNetError
from pqnet.cli.data import check_output, read_inputs

__all__ = ["finetune"]


def finetune(args: argparse.Namespace) -> None:
    try:
        from pqnet.train import distill, is_main, process_group
    except ModuleNotFoundError as missing:
        raise PQNetError(f"finetune: needs the package {missing.name!r}; pip install 'pqnet[torch]'") from None
    check_output(args.output, (".h5",))
    student, teacher = pqnet.load(args.student), pqnet.load(args.teacher)
    batches, held_out = _batches(args, student)
    with process_group(args.device):
        better = distill(
            student,
            teacher,
            batches,
            held_out=held_out,
            steps=args.steps,
            stage=args.stage,
            loss=args.loss,
            temperature=args.temperature,
            hints=args.hints,
            labels=args.label_weight if args.labels else 0.0,
            norm_statistics=args.norm_statistics,
            batch_size=args.batch,
            lr=args.lr,
            optimizer=args.optimizer,
            every=args.every,
            checkpoint=args.checkpoint,
            seed=args.seed,
            threads=args.threads,
            device=args.device,
        )
        if is_main():
            better = better.with_golden(better.draw_golden(args.seed))
            better.save(args.output)
            print(f"{args.output}: {os.path.getsize(args.output)} bytes")


def _batches(args: argparse.Namespace, student: Model) -> tuple[Any, Any]:
    """Return training data and samples held out as `pqnet.train.distill` takes them."""
    from pqnet.train import image_batches

    data = read_inputs(args.data, list(student.inputs))
    labels = read_inputs([args.labels], ["labels"])["labels"] if args.labels else None
    if not args.augment:
        return data if labels is None else (data, labels), None
    if len(data) != 1 or next(iter(data.values())).ndim != 4:
        raise PQNetError(f"augment: expected one input of images, (N, C, H, W), got {list(data)}")
    (name, images), n = next(iter(data.items())), len(next(iter(data.values())))
    if labels is not None and labels.shape != (n,):
        raise PQNetError(f"{args.labels}: expected one label for each of {n} images, got shape {labels.shape}")
    order = np.random.default_rng(args.seed).permutation(n)
    apart, rest = np.split(order, [min(1000, -(-n // 10))])
    held_out: Any = {name: images[apart]}
    drawn = image_batches(images[rest], None if labels is None else labels[rest], batch_size=args.batch, seed=args.seed)
    return drawn, held_out if labels is None else (held_out, labels[apart])
