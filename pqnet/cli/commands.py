"""The commands ``calibrate``, ``quantize``, ``run``, ``inspect`` and ``verify``."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import pqnet
from pqnet import Model, PQNetError, Recipe
from pqnet._progress import progress_bar, tell
from pqnet.cli.data import (
    check_output,
    codec_text,
    open_inputs,
    read_inputs,
    read_labels,
    write_outputs,
)
from pqnet.cli.plan import check_curve, outputs_for, plans_for, read_source, write_curve
from pqnet.cli.table import Column, print_json, print_table
from pqnet.io import graph_nbytes, output_folder, relative_differences
from pqnet.pipeline import Agreement, FileSizes, Plan, Statistics, resolve_recipe
from pqnet.pipeline.batches import iterate_batches, sample_files
from pqnet.pipeline.cluster import connected
from pqnet.pipeline.evaluate import accuracies, class_scores, count_samples, cut_samples, run_batches, run_many
from pqnet.pipeline.presets import with_half_stem
from pqnet.pipeline.rates import codec_nbytes
from pqnet.processing import Processing
from pqnet.report.layers import describe_layers

__all__ = ["calibrate", "inspect", "quantize", "run", "verify"]


def calibrate(args: argparse.Namespace) -> None:
    check_output(args.output, (".h5",))
    model = pqnet.load(args.model)
    others = [pqnet.load_statistics(path) for path in args.merge]
    data = open_inputs(args.calibration, list(model.inputs))
    with connected(args.scheduler, args.workers) as client:
        stats = pqnet.calibrate(
            model,
            data,
            activations=args.activations,
            client=client,
            seed=args.seed,
            threads=args.threads,
            progress=not args.quiet,
        )
    for other in others:
        stats = stats.merge(other)
    stats.save(args.output)
    print(f"{args.output}: statistics of {len(stats.layers)} layers, {os.path.getsize(args.output)} bytes")


def quantize(args: argparse.Namespace) -> None:
    if (args.output is None) != args.dry_run:
        both = "both" if args.dry_run else "neither"
        raise PQNetError(f"quantize: expected one of --output and --dry-run, got {both}")
    if args.dry_run:
        _print_sizes(args)
        return
    outputs = outputs_for(args, (".h5",))
    check_curve(args)
    if not (args.preset or args.recipe or args.target_size or args.activations):
        raise PQNetError("quantize: expected --preset, --recipe or --target-size, or --activations alone, got none")
    recipe: Any = args.preset or (Recipe.read(args.recipe) if args.recipe else None)
    model = pqnet.load(args.model)
    source = read_source(args, model, "quantize")
    with connected(args.scheduler, args.workers) as client:
        rows = _quantize_all(args, model, recipe, source, outputs, client)
    write_curve(args, rows)


def _quantize_all(
    args: argparse.Namespace, model: Model, recipe: Any, source: Any, outputs: list[str], client: Any
) -> list[dict[str, Any]]:
    """Write a file for each size asked for, or one for a recipe; return what the curve has of each size."""
    plans: list[Plan | None] = [*plans_for(args, model, source, client)] if args.target_size else [None]
    rows = []
    for made, output in zip(plans, outputs, strict=True):
        small = _quantized(args, model, recipe if made is None else made.recipe, source, client)
        if made is not None and (got := graph_nbytes(small.graph, small.golden)) > made.target:
            raise PQNetError(f"target-size: expected a file of at most {made.target} bytes, got {got}; report this")
        small.save(output)
        _print_layers(small)
        print(f"{output}: {os.path.getsize(output)} bytes")
        if made is not None:
            rows.append(
                {"bytes": os.path.getsize(output), "predicted_error": made.error, **_kept(args, model, small, source)}
            )
    return rows


def _print_sizes(args: argparse.Namespace) -> None:
    """Print the codecs of a preset or recipe, and what a file with them takes at most."""
    if not (args.preset or args.recipe):
        raise PQNetError("quantize --dry-run: expected --preset or --recipe, got neither; pqnet plan has sizes")
    model = pqnet.load(args.model)
    codecs = resolve_recipe(args.preset or Recipe.read(args.recipe), model.graph)
    files = FileSizes(pqnet.Model(with_half_stem(model.graph)) if args.preset else model, True, args.seed)
    rows = []
    for name, codec in codecs.items():
        shape, text = files.shape(name), codec_text(None if codec is None else codec.to_attrs())
        rows.append([name, "x".join(map(str, shape)), text, str(codec_nbytes(codec, shape))])
    print_table(LAYERS[:4], rows)
    nbytes = files.nbytes(codecs)
    print(f"file at most {nbytes} bytes ({nbytes / 2**20:.2f} MiB), {files.most / nbytes:.1f}x smaller")


def _quantized(args: argparse.Namespace, model: Model, recipe: Any, source: Any, client: Any) -> Model:
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
        activations=args.activations,
        observer=args.observer,
        max_drop=args.max_drop,
        client=client,
        seed=args.seed,
        threads=args.threads,
        progress=not args.quiet,
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
    shown = args.image + args.text
    if bool(args.input) == bool(shown):
        raise PQNetError(f"run: expected --input, or --image and --text, got {'both' if shown else 'none'}")
    if args.input and args.output is None and args.labels is None:
        raise PQNetError("run: expected --output, --labels or both, got neither")
    model = pqnet.load(args.model, args.compute)
    names = list(model.inputs)
    suffixes = (".npy", ".npz") if len(model.outputs) == 1 else (".npz",)
    if args.input:
        given = open_inputs(args.input, names)
    else:
        given = pqnet.prepare(model, images=args.image, texts=args.text, folder=Path(args.model).parent)
    batches = given if isinstance(given, list) else [given]
    if args.output is not None:
        if isinstance(given, dict):
            check_output(args.output, suffixes)
        elif Path(args.output).is_file():
            got = f"a file, {args.output}"
            raise PQNetError(f"--output: expected a folder for the outputs of batches of several sizes, got {got}")
        else:
            output_folder(args.output, "--output")
    labels = None if args.labels is None else read_labels(args.labels, sum(map(count_samples, batches)))
    files = [args.output]
    if args.output is not None and isinstance(given, list):
        stems = [f.stem for f in sample_files(args.input[0])] if args.input else map(str, range(len(batches)))
        files = [str(Path(args.output) / f"{stem}{suffixes[0]}") for stem in stems]
    with connected(args.scheduler, args.workers) as client:
        each = _outputs(args, model, given, client)
        if labels is None and args.output is not None:
            for file, found in zip(files, each, strict=True):
                _write(file, found)
            return
        outputs = list(each)
    if labels is not None:
        _print_accuracy(_joined(outputs), labels)
    if args.output is None:
        if labels is None:
            _print_likeliest(model, shown, outputs)
        return
    for file, found in zip(files, outputs, strict=True):
        _write(file, found)


def _outputs(args: argparse.Namespace, model: Model, given: Any, client: Any) -> Iterator[dict[str, np.ndarray]]:
    """Yield the outputs of each file of a folder, or those of one input, which is run in pieces."""
    options = {"batch": args.batch, "client": client, "threads": args.threads}
    if isinstance(given, list):
        with progress_bar(not args.quiet, "run", "file", len(given)) as bar:
            for outputs in run_many(model, given, **options):
                bar.update()
                yield outputs
        return
    parts, pieces = [], list(cut_samples(model, given, args.batch))
    with progress_bar(not args.quiet, "run", "sample", count_samples(given)) as bar:
        for piece, outputs in zip(pieces, run_many(model, pieces, **options), strict=True):
            bar.update(count_samples(piece))
            parts.append(outputs)
    yield parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}


def _write(file: str, outputs: dict[str, np.ndarray]) -> None:
    write_outputs(file, outputs)
    tell(f"{file}: " + ", ".join(f"{name} {a.dtype} {a.shape}" for name, a in outputs.items()), sys.stdout)


def _print_likeliest(model: Model, shown: list[str], outputs: list[dict[str, np.ndarray]]) -> None:
    """Print the five likeliest labels of every image or text."""
    found = [best for batch in outputs for best in pqnet.likeliest(model, batch)]
    for i, best in enumerate(found):
        if len(found) > 1:
            print(f"{shown[i]}:")
        for label, share in best:
            print(f"{share:>8.2%}  {label}")


def _joined(outputs: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the outputs of all batches in one array, those that are alike but for the batch."""
    alike = [name for name in outputs[0] if len({o[name].shape[1:] for o in outputs}) == 1 and outputs[0][name].ndim]
    return {name: np.concatenate([each[name] for each in outputs]) for name in alike}


def _print_accuracy(outputs: dict[str, np.ndarray], labels: np.ndarray) -> None:
    """Print the share of right answers of every output that is of classes."""
    for name, logits in class_scores(outputs).items():
        shares = ", ".join(f"{what} {share:.2%}" for what, share in accuracies(logits, labels).items())
        print(f"output {name}: {shares} of {len(labels)} samples")


def _report(model: Model) -> dict[str, Any]:
    size = model.size()
    total = {key: getattr(size, key) for key in ("codes", "codebooks", "other", "total", "dense", "ratio")}
    layers = describe_layers(model)
    return {"inputs": model.inputs, "outputs": model.outputs, "size": total, "layers": layers}


LAYERS = [
    *(Column("layer", False), Column("shape", False, 3), Column("codec", False)),
    *(Column("bytes"), Column("ratio", rank=1), Column("error", rank=2), Column("iterations", rank=4)),
]


INTEGERS = [
    *(Column("inputs as 8-bit integers", False), Column("least"), Column("largest"), Column("scale", rank=2)),
    *(Column("zero point", rank=3), Column("largest shift", rank=1), Column("for each", False)),
]


def _print_integers(model: Model) -> None:
    """Print how the inputs of layers become integers, and the most that is added to an output that these make."""
    rows = []
    for name, layer in describe_layers(model).items():
        if found := layer["integers"]:
            low, high = found["range"]
            own = (
                ["at run time", ""]
                if found["scales"] == "token"
                else [f"{found['scale']:.4g}", f"{found['zero_point']}"]
            )
            rows.append([name, f"{low:.4g}", f"{high:.4g}", *own, f"{found['largest_shift']:.4g}", found["scales"]])
    if rows:
        print_table(INTEGERS, rows)


def _print_layers(model: Model) -> None:
    report = _report(model)
    rows = []
    for name, layer in report["layers"].items():
        error, steps = layer["output_error"], layer["iterations"]
        row = [name, "x".join(map(str, layer["shape"])), codec_text(layer["codec"]), str(layer["bytes"])]
        row += [f"{layer['dense_bytes'] / layer['bytes']:.1f}", "" if error is None else f"{error:.4f}"]
        rows.append([*row, "" if steps is None else str(steps)])
    print_table(LAYERS, rows)
    size = report["size"]
    print(
        f"total {size['total']} bytes = codes {size['codes']} + codebooks {size['codebooks']} + other {size['other']}; "
        f"float32 {size['dense']}, ratio {size['ratio']:.1f}"
    )


def inspect(args: argparse.Namespace) -> None:
    model = pqnet.load(args.model)
    if args.json:
        print_json({"file_bytes": os.path.getsize(args.model), **_report(model)})
        return
    for title, signature in (("input", model.inputs), ("output", model.outputs)):
        for name, (shape, dtype) in signature.items():
            print(f"{title} {name}: {dtype} ({', '.join('any' if s is None else str(s) for s in shape)})")
    _print_layers(model)
    for name, what in vars(Processing.of(model)).items():
        if what is not None:
            print(f"{name}: {f'{len(what)} names of classes' if name == 'labels' else what}")
    _print_integers(model)
    print(f"file {os.path.getsize(args.model)} bytes")


def verify(args: argparse.Namespace) -> None:
    """Check a file; what is found is printed as it is found, or all of it for programs."""
    if (args.reference is None) != (args.input is None):
        raise PQNetError("verify: expected --reference and --input together, got one of them")
    found: dict[str, Any] = {"file": args.model}

    def say(text: str) -> None:
        if not args.json:
            print(text)

    model = pqnet.load(args.model, key=args.key)
    if args.key is not None:
        found["signed"] = str(args.key)
        say(f"{args.model}: signed with the private key of {args.key}")
    found["nodes"], found["recorded_difference"] = len(model.graph.nodes), None
    say(f"{args.model}: digest, structure and {found['nodes']} nodes are right")
    if model.golden is None:
        say("no outputs are recorded in the file")
    else:
        found["recorded_difference"] = difference = _recorded_difference(model, args)
        say(f"recorded outputs: largest relative difference {difference:.2g}")
    if args.reference:
        other = pqnet.load(args.reference)
        data = read_inputs(args.input, list(model.inputs))
        ours, theirs = (run_batches(m, data, args.batch, args.threads, not args.quiet) for m in (model, other))
        found["reference"], found["outputs"] = args.reference, {}
        for name, difference in relative_differences(ours, theirs).items():
            a, b = ours[name], theirs[name]
            same = float(np.mean(a.argmax(-1) == b.argmax(-1))) if a.ndim > 1 else None
            found["outputs"][name] = {"difference": float(difference), "same_argmax": same}
            more = "" if same is None else f", same argmax {same:.2%}"
            say(f"output {name}: largest relative difference from the reference {difference:.3g}{more}")
    if args.json:
        print_json(found)


def _recorded_difference(model: Model, args: argparse.Namespace) -> float:
    """Return how far outputs are from those in the file, or raise if that is too far."""
    assert model.golden is not None
    with progress_bar(not args.quiet, "verify", "output"):
        difference = model.golden.largest_difference(model.run(model.golden.inputs(), threads=args.threads))
    if not difference <= args.tolerance:
        raise PQNetError(
            f"{args.model}: recorded outputs: expected a relative difference of at most {args.tolerance}, got "
            f"{difference:.3g}"
        )
    return float(difference)
