"""Calibration and the search of codes on 1 and 2 workers of this machine: samples and layers a second, in turns.

A network of the size of CIFAR's ResNet-20 with random weights, images in a file that workers open. Workers have one
thread each; starting them is not counted. ``other_load`` is the share of CPU time that other processes took: above a
few percent the figures are no good.

Example: ``python bench/bench_cluster.py --images 2048 --workers 1 2``
"""

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from common import OtherLoad, emit, machine
from distributed import wait
from nets import Draw

import pqnet
from pqnet import Model
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.pipeline.cluster import connected


def network(seed: int) -> Model:
    """Return a residual network of 19 convolutions of 16 to 64 channels over images of 32x32."""
    draw, b = Draw(seed), GraphBuilder({"input": ValueInfo(("batch", 3, 32, 32))}, {"batch": 2})

    def conv(x: str, name: str, inputs: int, outputs: int, stride: int = 1) -> str:
        params = {"weight": draw.dense((outputs, inputs, 3, 3), 2.0), "bias": np.zeros(outputs, np.float32)}
        return b.add("conv2d", x, name=name, params=params, stride=(stride, stride), padding=(1, 1, 1, 1))

    x, channels = b.add("relu", conv("input", "stem", 3, 16)), 16
    for width in (16, 32, 64):
        for i in range(3):
            y = b.add("relu", conv(x, f"conv{width}.{i}.0", channels, width, 1 if width == channels else 2))
            z = conv(y, f"conv{width}.{i}.1", width, width)
            x, channels = b.add("relu", b.add("add", y if width != channels else x, z)), width
    pooled = b.add("mean", x, axes=(2, 3))
    params = {"weight": draw.dense((10, 64), 1.0), "bias": np.zeros(10, np.float32)}
    return Model(b.build({"logits": b.add("linear", pooled, name="fc", params=params)}))


class Load(OtherLoad):
    """Counts workers, whose processes have not ended, as ours."""

    def __init__(self, clients: dict[int, Any]) -> None:
        self.clients = clients
        super().__init__()

    def _used(self) -> tuple[float, float]:
        ours, everything = super()._used()
        return ours + sum(sum(client.run(time.process_time).values()) for client in self.clients.values()), everything


def timed(function: Any, *args: Any, **options: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    found = function(*args, **options)
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", nargs="+", choices=("calibrate", "quantize"), default=["calibrate", "quantize"])
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    emit("machine", **machine(["distributed"]))
    model, rng = network(args.seed), np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "images.npy"
        np.save(path, rng.standard_normal((args.images, 3, 32, 32), np.float32))
        clients = {n: stack.enter_context(connected(None, n)) for n in args.workers}
        few = rng.standard_normal((8, 3, 32, 32), np.float32)
        for client in clients.values():  # kernels are compiled, or read, in each process
            warm = pqnet.calibrate(model, [few] * 8, client=client, threads=1)
            if "quantize" in args.stages:
                pqnet.quantize(model, "small-blocks", warm, client=client, threads=1, effort="low", progress=False)
        measure(args, model, path, clients)


def measure(args: argparse.Namespace, model: Model, path: Path, clients: dict[int, Any]) -> None:
    """Print the best of each number of workers, and how many times the first's throughput it is."""
    load, many = Load(clients), {"calibrate": args.images, "quantize": len(model.graph.layers())}
    seconds: dict[tuple[str, int], float] = {}
    statistics: Any = None
    for stage in args.stages:
        for n, client in list(clients.items()) * args.turns:
            options = {"client": client, "threads": 1, "progress": False}
            if stage == "calibrate":
                took, statistics = timed(pqnet.calibrate, model, path, **options)
            else:
                statistics = statistics or pqnet.calibrate(model, path, **options)
                took, _ = timed(pqnet.quantize, model, "small-blocks", statistics, **options)
            seconds[stage, n] = min(took, seconds.get((stage, n), took))
            emit(f"cluster_{stage}", workers=n, seconds=took, other_load=load.share())
    client, nbytes = clients[args.workers[0]], 1 << 28
    future = client.submit(np.ones, nbytes // 4, np.float32)
    wait(future)
    took, _ = timed(future.result)
    emit("cluster_gather", bytes_per_second=nbytes / took)
    for (stage, n), took in seconds.items():
        times = seconds[stage, args.workers[0]] / took
        emit(f"best_{stage}", workers=n, seconds=took, per_second=many[stage] / took, times_first=times)


if __name__ == "__main__":
    main()
