"""Networks from their codes in float32, bfloat16 and 8-bit integers, against ONNX Runtime in float32 and in integers.

Every row is one process, the engines in turn. ``over`` are ratios of medians, ours / ONNX Runtime's in float32: below 1
pqnet is faster. ``error`` is the squared error of the outputs relative to those in float32, of pqnet and of ONNX
Runtime's integers (its own static quantization, QDQ, ranges of the same inputs, a scale for each filter). pqnet has the
ranges of `pqnet.quantize(activations="int8")`, for all layers.

Example: ``python bench/bench_precision.py --only resnet50-channel roberta-base-128``
"""

import argparse
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import emit, interleaved, machine
from nets import NETS, decoded, sample
from onnx_graph import to_onnx
from peers_load import LOADERS, Run

import pqnet
from pqnet.graph import Graph
from pqnet.kernels import cpu

PRECISIONS = ("float32", "bfloat16", "int8", "auto")


def integers_of_onnx_runtime(graph: Graph, inputs: Mapping[str, np.ndarray], threads: int) -> Run:
    """Return the network quantized by ONNX Runtime's own tool."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Once(CalibrationDataReader):  # type: ignore[misc]
        """The inputs, once."""

        def __init__(self) -> None:
            self.left: list[Mapping[str, np.ndarray]] = [inputs]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    logging.disable()
    symbols = graph.bind_symbols({name: array.shape for name, array in inputs.items()})
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder) / name) for name in ("float.onnx", "ready.onnx", "int8.onnx")]
        Path(names[0]).write_bytes(to_onnx(decoded(graph), symbols).SerializeToString())
        quant_pre_process(names[0], names[1], skip_symbolic_shape=True)
        options = {"quant_format": QuantFormat.QDQ, "per_channel": True}
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(names[1], names[2], Once(), **options, **kinds)
        return LOADERS["onnxruntime"](Path(names[2]).read_bytes(), inputs, threads)


def error_of(got: np.ndarray, want: np.ndarray) -> float:
    """Return the squared error relative to the squares."""
    return float(np.square(got - want, dtype=np.float64).sum() / np.square(want, dtype=np.float64).sum())


def bench(name: str, runs: int, threads: int) -> None:
    """Print the row of one network."""
    build, batch, codes = NETS[name]
    graph = build()
    inputs = sample(graph, batch)
    arrays = list(inputs.values())
    ranged = pqnet.quantize(pqnet.Model(graph), None, inputs, activations="int8", max_drop=1.0, progress=False)
    models = {compute: pqnet.Model(ranged.graph, compute=compute) for compute in PRECISIONS}
    engines: dict[str, Run] = {
        compute: lambda model=model: model(*arrays, threads=threads)  # type: ignore[misc]
        for compute, model in models.items()
    }
    symbols = graph.bind_symbols({n: array.shape for n, array in inputs.items()})
    file = to_onnx(decoded(graph), symbols).SerializeToString()
    engines["onnxruntime"] = LOADERS["onnxruntime"](file, inputs, threads)
    engines["onnxruntime int8"] = integers_of_onnx_runtime(graph, inputs, threads)
    outputs = {engine: run() for engine, run in engines.items()}
    seconds, others = interleaved(engines, runs)
    emit(
        name,
        codes=codes,
        batch=batch,
        ms={engine: float(f"{1e3 * s:.4g}") for engine, s in seconds.items()},
        over={engine: float(f"{s / seconds['onnxruntime']:.3g}") for engine, s in seconds.items()},
        error={engine: float(f"{error_of(y, outputs['float32']):.2g}") for engine, y in outputs.items()},
        other_load=others,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=NETS, default=list(NETS))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    extensions = [name for name in cpu.EXTENSIONS if cpu.has(name)]
    emit("machine", **machine(["onnxruntime"]) | {"threads": args.threads, "extensions": extensions})
    for name in args.only:
        bench(name, args.runs, args.threads)


if __name__ == "__main__":
    main()
