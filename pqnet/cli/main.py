"""The ``pqnet`` command: its parser, and errors as one clear line with exit code 2."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import Any

from pqnet import __version__
from pqnet.cli import bench, commands, completion, compress, convert, demo, doctor, plan, report, train, updates
from pqnet.cli.ending import Interrupts, abandon_output, explained
from pqnet.cli.log import logged, warn
from pqnet.cli.parser import Parser, add_cluster, add_common, add_data, add_json, at_least, free_size
from pqnet.cli.parser import command as _command

__all__ = ["build_parser", "main"]


_SIZE = "bytes of the file, or text like 5MB, 800kB, 1.5MiB, 10x (smaller); never exceeded, and used to 99 %%"
_SIZES = "repeatable: each file then has the size in its name"


def build_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="pqnet",
        description="Networks made 10-40x smaller by quantization, and run from their codes on a CPU.",
        epilog="example:\n  pqnet compress model.h5 --calibration x.npy --keep 99% -o small.h5\n\n"
        "Long commands show progress; --quiet, --verbose and --log-file FILE change what they say, Ctrl-C stops them, "
        "and\nwith --checkpoint they go on when they are given again. Completion of your shell: pqnet completion -h",
    )
    parser.add_argument("--version", action="version", version=f"pqnet {__version__}")
    sub = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    making = (_convert, _compress, _calibrate, _plan, _quantize, _train, _finetune)
    showing = (_run, _inspect, _report, _card, _verify)
    for add in (*making, _export, *showing, *updates.PARSERS, _bench, _warmup, _doctor, _demo, _completion):
        add(sub)
    return parser


def _convert(sub: Any) -> None:
    p = _command(
        sub,
        "convert",
        convert.run,
        "make a pqnet model file from a PyTorch module, an ONNX file or a published checkpoint",
        "pqnet convert torch my_pkg.models:resnet50 --weights w.pth --input 1x3x224x224 --preprocess imagenet "
        "--labels names.txt -o model.h5\n"
        "  pqnet convert onnx model.onnx -o model.h5\n"
        "  pqnet convert kill-the-bits resnet18 file.pth -o model.h5\n  pqnet convert torch -h",
    )
    p.add_argument("source", help="one of the installed converters: " + ", ".join(convert.sources()))
    p.add_argument("rest", nargs=argparse.REMAINDER, help="arguments of that converter, see pqnet convert SOURCE -h")


def _export(sub: Any) -> None:
    p = _command(
        sub,
        "export",
        convert.export,
        "write a model for another runtime, its packed weights as codes and codebooks",
        "pqnet export onnx small.h5 -o small.onnx",
    )
    p.add_argument("format", help="one of the installed exporters: " + ", ".join(convert.formats()))
    p.add_argument("model", help="pqnet model file")
    p.add_argument("-o", "--output", required=True, help="file to write")
    add_common(p)


def _calibrate(sub: Any) -> None:
    p = _command(
        sub,
        "calibrate",
        commands.calibrate,
        "measure the second moments of all layer inputs once, for any later quantization",
        "pqnet calibrate model.h5 --calibration x.npy -o stats.h5",
    )
    p.add_argument("model", help="pqnet model file")
    add_data(p, "--calibration", "calibration samples", folders=True)
    p.add_argument("--activations", help="int8: also what ranges of the inputs of layers are found from")
    p.add_argument("--merge", action="append", default=[], metavar="STATS", help="statistics file to add; repeatable")
    p.add_argument("-o", "--output", required=True, help="statistics file to write")
    add_cluster(p)
    add_common(p)


def _plan(sub: Any) -> None:
    p = _command(
        sub,
        "plan",
        plan.plan,
        "choose a codec for every layer so that the quantized file has a wanted size",
        "pqnet plan model.h5 --calibration x.npy --target-size 5MB --dry-run\n"
        "  pqnet plan model.h5 --calibration x.npy --target-size 5MB -o recipe.yaml",
    )
    _add_source(p, "samples, also to measure how much of a layer's error reaches the outputs")
    p.add_argument("--target-size", required=True, action="append", help=f"{_SIZE}; {_SIZES}")
    _add_curve(p, "bytes and predicted error")
    _add_prefer(p)
    _add_metric(p, "full")
    p.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
    p.add_argument("-o", "--output", help="recipe file (YAML) to write")
    add_json(p)
    add_cluster(p)
    add_common(p)


def _quantize(sub: Any) -> None:
    p = _command(
        sub,
        "quantize",
        commands.quantize,
        "replace the weights of a model by codes",
        "pqnet quantize model.h5 --calibration x.npy --preset small-blocks -o small.h5\n"
        "  pqnet quantize model.h5 --preset bgd-resnet50-small --dry-run\n"
        "  pqnet quantize model.h5 --calibration x.npy --target-size 10x --target-size 20x --curve sizes.csv -o s.h5",
    )
    _add_source(p, "calibration samples, for layer after layer")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--preset", help="small-blocks, large-blocks, transformer, or a paper's: bgd-resnet50-large ...")
    which.add_argument("--recipe", help="YAML file: name pattern to codec, or null to keep float")
    which.add_argument("--target-size", action="append", help=f"{_SIZE}; plans the codecs, see pqnet plan; {_SIZES}")
    _add_curve(p, "bytes, predicted error, and, with --calibration, what is kept of the outputs on these samples")
    _add_prefer(p)
    p.add_argument("--mode", help="a published algorithm: bgd, pqf or ipq; instead of the next four")
    _add_metric(p, None)
    p.add_argument("--target", help="what layers aim at, with data: teacher (default) or weight")
    p.add_argument("--no-correct-bias", action="store_true", help="leave biases and norms as they are")
    p.add_argument("--permute", action="store_true", help="first put channels into an order that suits the codes")
    p.add_argument("--reestimate-norm", action="store_true", help="measure batch norm statistics again")
    p.add_argument("--effort", default="normal", help="how long to look for codewords: low, normal (default) or high")
    p.add_argument("--no-balanced", action="store_true", help="of presets: leave every layer the codewords that it has")
    p.add_argument("--repair", help="blocks: after all, fit what is float in each block to the float block's outputs")
    p.add_argument("--activations", help="int8: ranges of the inputs of layers, for --compute int8; weights may stay")
    p.add_argument("--observer", default="mse", help="how ranges are found: mse (default), minmax or percentile")
    p.add_argument("--max-drop", type=float, default=0.02, help="of the outputs, by integers; layers stay float for it")
    p.add_argument("--checkpoint", metavar="DIR", help="folder of finished layers: run again to go on after a stop")
    p.add_argument(
        "--dry-run", action="store_true", help="of a preset or recipe: print codecs and the file's bytes, without data"
    )
    p.add_argument("-o", "--output", help="model file to write")
    add_cluster(p)
    add_common(p)


def _compress(sub: Any) -> None:
    p = _command(
        sub,
        "compress",
        compress.compress,
        "make the smallest file whose outputs agree with the float model's on samples that it was not made from",
        "pqnet compress model.h5 --calibration x.npy --keep 99% -o small.h5",
    )
    p.add_argument("model", help="pqnet model file with float weights")
    add_data(p, "--calibration", "400 samples or more like those of later use, no labels; parts are held out in turn")
    p.add_argument("--keep", type=compress.share, default=0.99, help="share of the outputs to keep (default 99%%)")
    p.add_argument("--metric", help="top1, cosine or error (default: by what the outputs are, see pqnet.compress)")
    add_data(p, "--held-out", "samples to judge by, instead of parts of the others", required=False)
    _add_prefer(p)
    _add_curve(p, "bytes, predicted error, what is kept, of every size tried", "try")
    p.add_argument("--checkpoint", metavar="DIR", help="folder of finished layers: run again to go on after a stop")
    p.add_argument("-o", "--output", required=True, help="model file to write")
    add_json(p)
    add_cluster(p)
    add_common(p)


def _finetune(sub: Any) -> None:
    p = _command(
        sub,
        "finetune",
        train.train,
        "train the codebooks of a quantized model to give the float model's outputs; needs PyTorch",
        "pqnet finetune small.h5 --teacher model.h5 --data images.npy --augment -o better.h5\n"
        "  torchrun --nproc-per-node 2 -m pqnet finetune small.h5 --teacher model.h5 --data images.npy -o better.h5",
    )
    p.set_defaults(command="finetune", method="distill")
    p.add_argument("model", metavar="student", help="quantized model file")
    _add_distill(p)
    _add_training(p)


def _train(sub: Any) -> None:
    p = _command(
        sub,
        "train",
        train.train,
        "train a model by distillation, learning-compression, quantization noise or in stages; needs PyTorch",
        "pqnet train model.h5 --method lc --preset small-blocks --data x.npy --labels y.npy -o small.h5\n"
        "  pqnet train model.h5 --method noise --recipe recipe.yaml --data x.npy -o small.h5\n"
        "  pqnet train small.h5 --method distill --teacher model.h5 --data x.npy -o better.h5",
    )
    p.set_defaults(command="train")
    p.add_argument("model", help="float model file; for distill, a quantized one")
    p.add_argument("--method", required=True, help="distill (as pqnet finetune), lc, noise or ipq")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--preset", help="small-blocks, large-blocks or transformer; for all but distill")
    which.add_argument("--recipe", help="or a YAML file, see pqnet quantize")
    _add_distill(p)
    p.add_argument("--mu", type=float, help="of lc: weight of the penalty at first (default 1e-4)")
    p.add_argument("--growth", type=float, help="of lc: factor of mu at each C step (default 1.25)")
    p.add_argument("--rounds", type=at_least(1), help="of lc: C steps (default 50)")
    p.add_argument("--p", type=float, help="of noise: share of the blocks that is quantized in a step (default 0.1)")
    p.add_argument("--phi", help="of noise: proxy (default), zeros, or exact, codewords")
    p.add_argument("--stages", type=at_least(1), help="of ipq: groups of layers, from the input on (default 4)")
    _add_training(p)


def _add_distill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", help="float model file, of distill")
    parser.add_argument(
        "--stage", help="of distill: global (default), or layerwise: quantize each layer anew and train it, blockwise"
    )
    parser.add_argument("--hints", type=float, help="of distill: weight of the errors of all layers (default 0)")
    parser.add_argument("--reassign", type=at_least(1), help="of distill: steps between choices of new codes")


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_data(parser, "--data", "samples to train on; a tenth, at most 1000, is held out to judge by")
    add("--labels", metavar="FILE", help=".npy of class numbers, to train by as well")
    add("--label-weight", type=float, default=0.5, help="of the labels against the teacher (default 0.5)")
    add("--train", action="append", metavar="PART", help="codebooks, norms, biases, weights (default all); repeatable")
    add("--augment", action="store_true", help="move and mirror images at random")
    add(
        "--steps",
        type=at_least(1),
        default=1000,
        help="in all; for layerwise, blockwise of each layer or block (default 1000)",
    )
    add("--loss", default="kl", help="kl (default) for logits, or mse for other outputs")
    add("--temperature", type=float, default=1.0, help="of kl (default 1)")
    add("--norm-statistics", action="store_true", help="batch norms by statistics of their batch")
    add("--gradient", default="mean", help="of a codeword: mean (default) or sum over its blocks")
    add("--batch", type=at_least(1), default=128, help="samples of a step (default 128)")
    add("--lr", type=float, default=0.01, help="size of the first steps, see pqnet.train.distill")
    add("--optimizer", default="adam", help="adam (default) or sgd")
    add("--weight-decay", type=float, default=0.0, help="of the optimizer (default 0)")
    add("--every", type=at_least(1), default=250, help="steps between judging and saving (default 250)")
    add("--checkpoint", metavar="FILE", help="state of the run (layerwise, blockwise: a folder): run again to go on")
    add("--device", default="cpu", help="where PyTorch computes (default cpu)")
    add("-o", "--output", required=True, help="model file to write")
    add_common(parser)


def _add_source(parser: argparse.ArgumentParser, data: str) -> None:
    parser.add_argument("model", help="pqnet model file with float weights")
    add_data(parser, "--calibration", data, required=False, folders=True)
    parser.add_argument("--statistics", help="statistics file of pqnet calibrate, instead of --calibration")


def _add_prefer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prefer", default="error", help="of a plan: least error (default), or latency: fast layouts")


def _add_curve(parser: argparse.ArgumentParser, what: str, each: str = "--target-size") -> None:
    parser.add_argument("--curve", metavar="FILE", help=f".csv to write, a row for each {each}: {what}")


def _add_metric(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument("--metric", default=default, help="none, pooled, block or full (default)")


def _add_compute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compute", default="float32", help="float32 (default), bfloat16, int8 or auto; see pqnet.load"
    )


def _add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch", type=at_least(1), default=32, help="samples at a time (default 32, or the model's fixed batch)"
    )


def _run(sub: Any) -> None:
    p = _command(
        sub,
        "run",
        commands.run,
        "run a model from its codes on NumPy arrays",
        "pqnet run small.h5 --input x.npy -o y.npy\n  pqnet run small.h5 --input x.npy --labels labels.npy\n"
        "  pqnet run small.h5 --image photo.jpg",
    )
    p.add_argument("model", help="pqnet model file")
    add_data(p, "--input", "input", required=False, folders=True)
    p.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="image, made an input as the model file says (convert --preprocess); without --output the five likeliest "
        "labels are printed; repeatable",
    )
    p.add_argument("--text", action="append", default=[], help="text, likewise (convert --tokenizer); repeatable")
    p.add_argument("--labels", metavar="FILE", help=".npy of class numbers: print the share of right answers")
    _add_compute(p)
    _add_batch(p)
    p.add_argument("-o", "--output", help=".npy file to write; .npz for several outputs; a folder for one")
    add_cluster(p)
    add_common(p)


def _inspect(sub: Any) -> None:
    p = _command(
        sub, "inspect", commands.inspect, "show layers, codecs and bytes of a model file", "pqnet inspect small.h5"
    )
    p.add_argument("model", help="pqnet model file")
    add_json(p)
    add_common(p)


def _report(sub: Any) -> None:
    p = _command(
        sub,
        "report",
        report.run,
        "show sizes, errors, codewords, weights, times and a drawing of a network on one HTML page",
        "pqnet report small.h5 --against model.h5 --inputs x.npy --labels labels.npy -o report.html",
    )
    p.add_argument("model", help="pqnet model file")
    p.add_argument("--against", metavar="FILE", help="file of the float network, to compare weights and outputs with")
    add_data(p, "--inputs", "samples for outputs and times (default: times of drawn ones)", required=False)
    p.add_argument("--labels", metavar="FILE", help=".npy of class numbers, for the share of right answers")
    _add_batch(p)
    p.add_argument("-o", "--output", required=True, help=".html file to write")
    add_common(p)


def _card(sub: Any) -> None:
    p = _command(
        sub,
        "card",
        report.card,
        "write a model card in Markdown for those who publish a network: sizes, errors, recipe, how to run it",
        "pqnet card small.h5 -o README.md",
    )
    p.add_argument("model", help="pqnet model file")
    p.add_argument("-o", "--output", required=True, help=".md file to write")
    add_common(p)


def _verify(sub: Any) -> None:
    p = _command(
        sub,
        "verify",
        commands.verify,
        "check a model file and its signature, replay its recorded outputs, compare it with a reference model",
        "pqnet verify small.h5 --reference model.h5 --input x.npy\n  pqnet verify small.h5 --key public.pem",
    )
    p.add_argument("model", help="pqnet model file")
    p.add_argument("--key", metavar="PEM", help="public key: only a file that pqnet sign signed with its private one")
    p.add_argument("--tolerance", type=float, default=1e-3, help="of recorded outputs, relative (default 1e-3)")
    p.add_argument("--reference", help="model file to compare outputs with")
    add_data(p, "--input", "input for the comparison", required=False)
    _add_batch(p)
    add_json(p)
    add_common(p)


def _add_size(parser: argparse.ArgumentParser, more: str) -> None:
    text = f"size of another free axis (default: that of the conversion); repeatable{more}"
    parser.add_argument("--size", type=free_size, action="append", default=[], metavar="NAME=N", help=text)


def _bench(sub: Any) -> None:
    p = _command(
        sub,
        "bench",
        bench.run,
        "time a model on random inputs, step by step if asked",
        "pqnet bench small.h5 --explain",
    )
    p.add_argument("model", help="pqnet model file")
    p.add_argument("--batch", type=at_least(1), default=1, help="samples (default 1)")
    _add_size(p, "")
    p.add_argument("--runs", type=at_least(1), default=20, help="runs to take the median of (default 20)")
    _add_compute(p)
    p.add_argument("--explain", action="store_true", help="print layer, algorithm, time, share and bytes of every step")
    add_json(p)
    add_common(p)


def _warmup(sub: Any) -> None:
    p = _command(
        sub,
        "warmup",
        bench.warmup,
        "compile the kernels that models need and measure algorithms for their layers, for images and first requests",
        "pqnet warmup small.h5 --batch 1 --batch 8 --size tokens=16 --size tokens=64",
    )
    p.add_argument("model", nargs="+", help="pqnet model files")
    p.add_argument("--batch", type=at_least(1), action="append", help="samples (default 1); repeatable")
    _add_size(p, ", also for several of one axis")
    _add_compute(p)
    add_common(p)


def _doctor(sub: Any) -> None:
    p = _command(
        sub,
        "doctor",
        doctor.doctor,
        "show what pqnet finds on this machine and test itself; the exit code is 1 if something is wrong",
        "pqnet doctor --json",
    )
    add_json(p)
    add_common(p)


def _demo(sub: Any) -> None:
    p = _command(
        sub, "demo", demo.run, "quantize and run a small real network that comes with the package", "pqnet demo"
    )
    p.add_argument("--preset", default="small-blocks", help="small-blocks (default) or large-blocks")
    _add_metric(p, "full")
    add_common(p)


def _completion(sub: Any) -> None:
    p = _command(
        sub,
        "completion",
        lambda args: print(completion.script(build_parser(), args.shell)),
        "print a script with which a shell completes commands, options and files",
        "pqnet completion bash > ~/.local/share/bash-completion/completions/pqnet\n"
        '  pqnet completion zsh > "${fpath[1]}/_pqnet"',
    )
    p.add_argument("shell", help=", ".join(completion.SHELLS))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 if the doctor finds a fault, 2 after bad input, 130 after an interrupt."""
    warnings.showwarning = lambda message, *_, **__: warn(message)
    args, interrupts = None, Interrupts()
    with interrupts.watched():
        try:
            args = build_parser().parse_args(argv)
            # Converters have arguments of their own, which say how much to say.
            with logged(args, argv or sys.argv[1:]) if hasattr(args, "log_file") else nullcontext():
                code: int | None = args.run(args)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output went away
            abandon_output()
            return 0
        except (Exception, KeyboardInterrupt) as reason:
            ending = explained(reason, args, interrupts.seen)
            if ending is None:
                raise
            with suppress(OSError):
                print("pqnet:", ending[0], file=sys.stderr)
            if isinstance(reason, OSError):
                abandon_output()
            return ending[1]
    return code or 0
