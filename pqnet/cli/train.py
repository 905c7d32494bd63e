"""``pqnet train`` and ``pqnet finetune``: training from the command line; PyTorch is imported only when it runs."""

import argparse
import os
from typing import Any

from pqnet import Model, PQNetError, Recipe
from pqnet.cli.data import check_output, read_inputs, read_labels
from pqnet.errors import did_you_mean
from pqnet.pipeline.evaluate import count_samples

__all__ = ["ONLY", "train"]

# Options that one method has and the others have not, by their names in Python; None on the command line is not given.
ONLY = {
    "distill": ("teacher", "stage", "hints", "reassign"),
    "lc": ("mu", "growth", "rounds"),
    "noise": ("p", "phi"),
    "ipq": ("stages",),
}
RECIPES = ("preset", "recipe")


def train(args: argparse.Namespace) -> None:
    """Train by ``args.method``, which `finetune` has set to distill."""
    own = _own_options(args)
    try:
        import pqnet.train
    except ModuleNotFoundError as missing:
        raise PQNetError(f"{args.command}: needs the package {missing.name!r}; pip install 'pqnet[torch]'") from None
    check_output(args.output, (".h5",))
    model = pqnet.load(args.model)
    teacher = pqnet.load(own.pop("teacher")) if args.method == "distill" else None
    recipe: Any = own.pop("preset", None) or (Recipe.read(own.pop("recipe")) if "recipe" in own else None)
    batches, held_out = _batches(args, model)
    common = {
        "steps": args.steps,
        "loss": args.loss,
        "temperature": args.temperature,
        "labels": args.label_weight if args.labels else 0.0,
        "norm_statistics": args.norm_statistics,
        "gradient": args.gradient,
        "batch_size": args.batch,
        "lr": args.lr,
        "optimizer": args.optimizer,
        "weight_decay": args.weight_decay,
        "every": args.every,
        "held_out": held_out,
        "checkpoint": args.checkpoint,
        "seed": args.seed,
        "threads": args.threads,
        "device": args.device,
        "progress": not args.quiet,
    } | ({"train": tuple(args.train)} if args.train else {})
    with pqnet.train.process_group(args.device):
        if teacher is not None:
            better = pqnet.train.distill(model, teacher, batches, **common, **own)
        else:
            better = pqnet.train.train(model, recipe, batches, method=args.method, **common, **own)
        if pqnet.train.is_main():
            better = better.with_golden(better.draw_golden(args.seed))
            better.save(args.output)
            print(f"{args.output}: {os.path.getsize(args.output)} bytes")


def _own_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the method that are given, or raise PQNetError if another's are, or a needed one is not."""
    if args.method not in ONLY:
        got = f"{args.method!r}{did_you_mean(args.method, ONLY)}"
        raise PQNetError(f"--method: expected one of {', '.join(ONLY)}, got {got}")
    given = {name: getattr(args, name) for names in (RECIPES, *ONLY.values()) for name in names if hasattr(args, name)}
    given = {name: value for name, value in given.items() if value is not None}
    mine = (*ONLY[args.method], *(() if args.method == "distill" else RECIPES))
    if others := [name for name in given if name not in mine]:
        of = [method for method, names in ONLY.items() if others[0] in names] or [m for m in ONLY if m != "distill"]
        raise PQNetError(f"--{others[0]}: expected --method {' or '.join(of)} with it, got --method {args.method}")
    if args.method == "distill" and "teacher" not in given:
        raise PQNetError(f"{args.command}: expected --teacher, the float model file, got none")
    if args.method != "distill" and sum(name in given for name in RECIPES) != 1:
        got = " and ".join(f"--{name}" for name in RECIPES if name in given) or "neither"
        raise PQNetError(f"{args.command}: expected --recipe or --preset with --method {args.method}, got {got}")
    return given


def _batches(args: argparse.Namespace, model: Model) -> tuple[Any, Any]:
    """Return training data and samples held out as `pqnet.train.distill` takes them."""
    from pqnet.train import Batches, image_batches

    data = read_inputs(args.data, list(model.inputs))
    labels = read_labels(args.labels, count_samples(data)) if args.labels else None
    both = data if labels is None else (data, labels)
    if not args.augment:
        return both, None
    if len(data) != 1 or next(iter(data.values())).ndim != 4:
        raise PQNetError(f"augment: expected one input of images, (N, C, H, W), got {list(data)}")
    split = Batches(model.graph, both, None, args.batch, args.seed)
    assert split.samples is not None  # as they come from an array
    (images,), apart = split.samples.inputs.values(), split.held_out
    drawn = image_batches(images, split.samples.labels, batch_size=args.batch, seed=args.seed)
    return drawn, apart.inputs if apart.labels is None else (apart.inputs, apart.labels)
