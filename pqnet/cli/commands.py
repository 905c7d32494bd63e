"""The commands ``calibrate``, ``quantize``, ``run``, ``inspect`` and ``verify``."""

import argparse
import json
import os
from typing import Any

import numpy as np

import pqnet
from pqnet import Model, Packed, PQNetError, Recipe
from pqnet.cli.data import (
    accuracies,
    check_output,
    codec_text,
    count_samples,
    read_inputs,
    read_labels,
    run_batches,
    write_outputs,
)
from pqnet.cli.plan import check_curve, outputs_for, plans_for, read_source, write_curve
from pqnet.io import graph_nbytes, relative_differences
from pqnet.pipeline import Agreement, Plan, Statistics
from pqnet.pipeline.batches import iterate_batches

__all__ = ["calibrate", "inspect", "quantize", "run", "verify"]


def calibrate(args: argparse.Namespace) -> None:
    check_output(args.output, (".h5",))
    model = pqnet.load(args.model)
    others = [pqnet.load_statistics(path) for path in args.merge]
    data = read_inputs(args.calibration, list(model.inputs))
    stats = pqnet.calibrate(model, data, seed=args.seed, threads=args.threads, progress=True)
    for other in others:
        stats = stats.merge(other)
    stats.save(args.output)
    print(f"{args.output}: statistics of {len(stats.layers)} layers, {os.path.getsize(args.output)} bytes")


def quantize(args: argparse.Namespace) -> None:
    outputs = outputs_for(args, (".h5",))
    check_curve(args)
    recipe: Any = args.preset or (Recipe.read(args.recipe) if args.recipe else None)
    model = pqnet.load(args.model)
    source = read_source(args, model, "quantize")
    plans: list[Plan | None] = [None] if recipe is not None else [*plans_for(args, model, source)]
    rows = []
    for made, output in zip(plans, outputs, strict=True):
        small = _quantized(args, model, recipe if made is None else made.recipe, source)
        if made is not None and (got := graph_nbytes(small.graph, small.golden)) > made.target:
            raise PQNetError(f"target-size: expected a file of at most {made.target} bytes, got {got}; report this")
        small.save(output)
        _print_layers(small)
        print(f"{output}: {os.path.getsize(output)} bytes")
        if made is not None:
            rows.append(
                {"bytes": os.path.getsize(output), "predicted_error": made.error, **_kept(args, model, small, source)}
            )
    write_curve(args, rows)


def _quantized(args: argparse.Namespace, model: Model, recipe: Any, source: Any) -> Model:
    small = pqnet.quantize(
        model,
        recipe,
        source,
        mode=args.mode,
        metric=args.metric,
        target=args.target,
        correct_bias=False if args.no_correct_bias else None,
        reestimate_norm=args.reestimate_norm,
        effort=args.effort,
        balanced=False if args.no_balanced else None,
        repair=args.repair,
        checkpoint=args.checkpoint,
        permute=args.permute or None,
        seed=args.seed,
        threads=args.threads,
    )
    return small.with_golden(small.draw_golden(args.seed))


def _kept(args: argparse.Namespace, model: Model, small: Model, source: Any) -> dict[str, float]:
    """Return what is kept of the outputs on calibration data, by their metric; nothing of statistics."""
    if isinstance(source, Statistics):
        return {}
    batches = list(iterate_batches(model.graph, source))
    agreement = Agreement.of(model, batches, None, args.threads)
    return {f"kept_{agreement.parts}": float(agreement.scores(small, model, batches, args.threads).mean())}


def run(args: argparse.Namespace) -> None:
    if args.output is None and args.labels is None:
        raise PQNetError("run: expected --output, --labels or both, got neither")
    model = pqnet.load(args.model)
    if args.output is not None:
        check_output(args.output, (".npy", ".npz") if len(model.outputs) == 1 else (".npz",))
    inputs = read_inputs(args.input, list(model.inputs))
    labels = None if args.labels is None else read_labels(args.labels, count_samples(inputs))
    outputs = run_batches(model, inputs, args.batch, args.threads)
    if labels is not None:
        _print_accuracy(outputs, labels)
    if args.output is None:
        return
    write_outputs(args.output, outputs)
    print(f"{args.output}: " + ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in outputs.items()))


def _print_accuracy(outputs: dict[str, np.ndarray], labels: np.ndarray) -> None:
    """Print the share of right answers of every output that is of classes."""
    of_classes = {n: y for n, y in outputs.items() if y.dtype.kind == "f" and y.ndim == 2 and y.shape[1] > 1}
    if not of_classes:
        got = ", ".join(f"{n} {y.dtype} {y.shape}" for n, y in outputs.items())
        raise PQNetError(f"--labels: expected an output of shape (samples, classes), got {got}")
    for name, logits in of_classes.items():
        shares = ", ".join(f"{what} {share:.2%}" for what, share in accuracies(logits, labels).items())
        print(f"output {name}: {shares} of {len(labels)} samples")


def _report(model: Model) -> dict[str, Any]:
    size, done = model.size(), model.graph.meta.get("quantization", {}).get("layers", {})
    layers = {}
    for name, node in model.graph.layers().items():
        param, part = model.graph.params[node.params["weight"]], size.per_layer[name]
        layers[name] = {
            "op": node.op,
            "shape": list(param.shape),
            "codec": param.codec.to_attrs() if isinstance(param, Packed) else None,
            "bytes": part.codes + part.codebooks + part.other,
            "dense_bytes": part.dense,
            "output_error": done.get(name, {}).get("output_error"),
            "iterations": done.get(name, {}).get("iterations"),
        }
    total = {key: getattr(size, key) for key in ("codes", "codebooks", "other", "total", "dense", "ratio")}
    return {"inputs": model.inputs, "outputs": model.outputs, "size": total, "layers": layers}


def _print_layers(model: Model) -> None:
    report = _report(model)
    print(f"{'layer':<32} {'shape':<18} {'codec':<24} {'bytes':>10} {'ratio':>6} {'error':>7} {'iterations':>10}")
    for name, layer in report["layers"].items():
        text = codec_text(layer["codec"])
        error, steps = layer["output_error"], layer["iterations"]
        print(
            f"{name:<32} {'x'.join(map(str, layer['shape'])):<18} {text:<24} {layer['bytes']:>10} "
            f"{layer['dense_bytes'] / layer['bytes']:>6.1f} {'' if error is None else f'{error:.4f}':>7} "
            f"{'' if steps is None else steps:>10}"
        )
    size = report["size"]
    print(
        f"total {size['total']} bytes = codes {size['codes']} + codebooks {size['codebooks']} + other {size['other']}; "
        f"float32 {size['dense']}, ratio {size['ratio']:.1f}"
    )


def inspect(args: argparse.Namespace) -> None:
    model = pqnet.load(args.model)
    if args.json:
        print(json.dumps({"file_bytes": os.path.getsize(args.model), **_report(model)}, indent=1))
        return
    for title, signature in (("input", model.inputs), ("output", model.outputs)):
        for name, (shape, dtype) in signature.items():
            print(f"{title} {name}: {dtype} ({', '.join('any' if s is None else str(s) for s in shape)})")
    _print_layers(model)
    print(f"file {os.path.getsize(args.model)} bytes")


def verify(args: argparse.Namespace) -> None:
    if (args.reference is None) != (args.input is None):
        raise PQNetError("verify: expected --reference and --input together, got one of them")
    model = pqnet.load(args.model)
    print(f"{args.model}: digest, structure and {len(model.graph.nodes)} nodes are right")
    if model.golden is None:
        print("no outputs are recorded in the file")
    else:
        difference = model.golden.largest_difference(model.run(model.golden.inputs(), threads=args.threads))
        if not difference <= args.tolerance:
            raise PQNetError(
                f"{args.model}: recorded outputs: expected a relative difference of at most "
                f"{args.tolerance}, got {difference:.3g}"
            )
        print(f"recorded outputs: largest relative difference {difference:.2g}")
    if args.reference:
        other = pqnet.load(args.reference)
        data = read_inputs(args.input, list(model.inputs))
        ours, theirs = (run_batches(m, data, args.batch, args.threads) for m in (model, other))
        for name, difference in relative_differences(ours, theirs).items():
            a, b = ours[name], theirs[name]
            same = f", same argmax {np.mean(a.argmax(-1) == b.argmax(-1)):.2%}" if a.ndim > 1 else ""
            print(f"output {name}: largest relative difference from the reference {difference:.3g}{same}")
