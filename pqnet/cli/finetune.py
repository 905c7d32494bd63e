"""``pqnet finetune``: distillation from the command line; PyTorch is imported only when it runs."""

import argparse
import os
from typing import Any

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
    from pqnet.train import Batches, image_batches

    data = read_inputs(args.data, list(student.inputs))
    labels = read_inputs([args.labels], ["labels"])["labels"] if args.labels else None
    both = data if labels is None else (data, labels)
    if not args.augment:
        return both, None
    if len(data) != 1 or next(iter(data.values())).ndim != 4:
        raise PQNetError(f"augment: expected one input of images, (N, C, H, W), got {list(data)}")
    split = Batches(student.graph, both, None, args.batch, args.seed)
    assert split.samples is not None  # as they come from an array
    (images,), apart = split.samples.inputs.values(), split.held_out
    drawn = image_batches(images, split.samples.labels, batch_size=args.batch, seed=args.seed)
    return drawn, apart.inputs if apart.labels is None else (apart.inputs, apart.labels)
