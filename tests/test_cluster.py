"""Work on a Dask cluster of two processes: the same bytes as here, and nothing lost with a worker that is killed."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dask.array
import h5py
import numpy as np
import pytest
from distributed import Client, LocalCluster
from test_pipeline import DATA, small_net

import pqnet
from pqnet import PQ, Model, PQNetError
from pqnet._progress import Progress
from pqnet.cli.main import main
from pqnet.demo import load_images, model_path
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.pipeline import cluster, measure, run_dask, run_many
from pqnet.pipeline.cluster import Tasks
from pqnet.pipeline.layerwise import FromData

MODEL = small_net()
# Ten batches of inputs far from zero: three shards, the last one not full.
SAMPLES = (np.tile(DATA, (5, 1, 1, 1))[:600] + 30).astype(np.float32)


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalCluster]:
    options = {"dashboard_address": "127.0.0.1:0", "memory_limit": 0, "silence_logs": 50}
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, **options) as found:
        yield found


@pytest.fixture
def client(workers: LocalCluster) -> Iterator[Client]:
    with Client(workers) as found:
        yield found


@pytest.fixture
def address(workers: LocalCluster) -> str:
    return str(workers.scheduler_address)


def saved(what: Any, name: str = "saved.h5") -> bytes:
    what.save(name)
    return Path(name).read_bytes()


def slow_square(item: tuple[int, str], factor: int) -> int:
    """Square a number; the first time that it is 3, not before there is a file with its process id, or for long."""
    number, folder = item
    with open(f"{folder}/{number}-{os.getpid()}", "a") as file:
        file.write("called\n")
    if number == 3 and len(list(Path(folder).glob("3-*"))) == 1:
        time.sleep(60)
    return factor * number**2


def fail(item: int, *_: Any) -> int:
    if item == 2:
        raise pqnet.ConfigError(f"item: expected another than {item}")
    return item


def die(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# -- the same bytes --------------------------------------------------------------------------------------------


def test_statistics_have_the_same_bytes(client: Client) -> None:
    expected = saved(pqnet.calibrate(MODEL, SAMPLES))
    assert saved(pqnet.calibrate(MODEL, SAMPLES, client=client)) == expected
    np.save("x.npy", SAMPLES)
    assert saved(pqnet.calibrate(MODEL, "x.npy", client=client)) == expected


def test_statistics_of_batches_of_all_sizes_and_shared_weights_have_the_same_bytes(client: Client) -> None:
    b = GraphBuilder({"input": ValueInfo(("batch", 6))}, {"batch": 2})
    rng = np.random.default_rng(0)
    x = b.add("linear", "input", name="first", params={"weight": rng.normal(size=(6, 6)).astype(np.float32)})
    y = b.add("linear", b.add("relu", x), name="second", params={"weight": "first.weight"})
    model = Model(b.build({"output": y}))
    batches = [rng.normal(size=(n, 6)).astype(np.float32) for n in (3, 1, 7, 2, 5, 4, 9, 1, 2)]
    expected = saved(pqnet.calibrate(model, batches))
    assert saved(pqnet.calibrate(model, iter(batches), client=client)) == expected


def test_layers_and_plans_have_the_same_bytes(client: Client) -> None:
    statistics = pqnet.calibrate(MODEL, DATA)
    recipe = {"default": PQ(16, 4), "stem": PQ(16, 3)}
    expected = saved(pqnet.quantize(MODEL, recipe, statistics, progress=False))
    found = pqnet.quantize(MODEL, recipe, statistics, client=client, checkpoint="layers", progress=False)
    assert saved(found) == expected
    assert len(list(Path("layers").iterdir())) == len(found.graph.layers())
    again = pqnet.quantize(MODEL, recipe, statistics, client=client, checkpoint="layers", progress=False)
    assert saved(again) == expected

    here, there = (measure(MODEL, DATA[:64], client=c, progress=False) for c in (None, client))
    assert there.options == here.options and there.gains == here.gains


@pytest.mark.exhaustive
def test_any_number_of_workers_gives_the_same_bytes() -> None:
    recipe, found = {"default": PQ(16, 4), "stem": PQ(16, 3)}, []
    for n in (None, 1, 2, 4):
        with cluster.connected(None, n) as client:
            statistics = pqnet.calibrate(MODEL, SAMPLES, client=client, progress=False)
            options: dict[str, Any] = {"client": client, "progress": False}
            models = [pqnet.quantize(MODEL, recipe, source, **options) for source in (statistics, DATA[:64])]
            outputs = [each["output"].tobytes() for each in run_many(models[0], [DATA, DATA[:9]], client=client)]
            plan = pqnet.plan(MODEL, statistics, target_size="6kB", **options).to_yaml()
            found.append((saved(statistics), *map(saved, models), outputs, plan))
    assert found[1:] == found[:1] * 3


def test_progress_counts_what_workers_do(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Progress] = []
    leave = Progress.__exit__

    def end(self: Progress, *error: Any) -> None:
        ended.append(self)
        leave(self, *error)

    monkeypatch.setattr(Progress, "__exit__", end)
    np.save("x.npy", DATA)
    recipe, n = {"default": PQ(16, 4), "stem": PQ(16, 3)}, len(MODEL.graph.layers())
    counts = []
    for where in (None, client):
        ended.clear()
        statistics = pqnet.calibrate(MODEL, "x.npy", client=where)
        for source in (statistics, DATA[:64]):
            pqnet.quantize(MODEL, recipe, source, client=where, progress=False)
            measure(MODEL, source, client=where, progress=False)
        assert all(bar.share == 1 and bar.n == bar.total for bar in ended)
        counts.append([(bar.description, bar.n) for bar in ended])
    assert counts[0] == counts[1]
    expected = [("calibrate", len(DATA)), ("quantize", n), ("plan", n)]
    assert counts[0] == [*expected, ("quantize", n), ("calibrate", 56), ("calibrate", 8), ("plan", 2 * n)]


def test_layers_that_are_given_the_same_are_packed_at_once_to_the_same_bytes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = GraphBuilder({"input": ValueInfo(("batch", 16))}, {"batch": 2})
    rng = np.random.default_rng(0)

    def linear(x: str, name: str) -> str:
        params = {"weight": rng.normal(size=(16, 16)).astype(np.float32), "bias": np.zeros(16, np.float32)}
        return b.add("linear", x, name=name, params=params)

    x = b.add("relu", linear("input", "first"))
    gated = b.add("mul", linear(x, "gate"), b.add("relu", linear(x, "up")))  # at once
    x = b.add("add", linear(gated, "down"), linear(gated, "beside"))  # each makes up for what the other lacks
    model = Model(b.build({"output": x}))
    data, recipe = rng.normal(size=(300, 16)).astype(np.float32), {"default": PQ(8, 2)}
    expected = saved(pqnet.quantize(model, recipe, data, progress=False))
    waves: list[list[str]] = []
    wave = FromData._wave

    def seen(self: FromData, node: Any, values: Any) -> Any:
        found = wave(self, node, values)
        waves.append([node.name, *(other.name for other in found)])
        return found

    monkeypatch.setattr(FromData, "_wave", seen)
    assert saved(pqnet.quantize(model, recipe, data, client=client, progress=False)) == expected
    assert waves == [["first"], ["gate", "up"], ["up"], ["down"], ["beside"]]


def test_outputs_are_the_same_in_pieces_files_and_dask_arrays(client: Client) -> None:
    model, images = pqnet.load(model_path()), load_images()[1][:70]
    expected = model(images)
    np.save("x.npy", images[:40])
    with h5py.File("y.h5", "w") as file:
        file["input"] = images[40:]
    here, there = (list(run_many(model, ["x.npy", Path("y.h5")], client=c)) for c in (None, client))
    for found in (here, there):
        np.testing.assert_allclose(np.concatenate([f["logits"] for f in found]), expected, rtol=1e-4, atol=1e-4)
    assert all(np.array_equal(a["logits"], b["logits"]) for a, b in zip(here, there, strict=True))

    lazy = run_dask(model, dask.array.from_array(images, chunks=(32, 1, 4, 8)), client=client)["logits"]
    assert lazy.shape == (70, 10) and lazy.chunks[0] == (32, 32, 6)
    np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-4, atol=1e-4)


# -- the command line ------------------------------------------------------------------------------------------


def test_commands_on_a_scheduler_write_the_same_files(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    MODEL.save("model.h5")
    Path("parts").mkdir()
    for i in range(3):
        np.save(f"parts/{i}.npy", DATA[50 * i : 50 * i + 50])
    for where, options in (("here", []), ("there", ["--scheduler", address])):
        Path(where).mkdir()
        data = ["--calibration", "parts"]
        assert main(["calibrate", "model.h5", *data, "-o", f"{where}/stats.h5", *options]) == 0
        plan = ["--statistics", f"{where}/stats.h5", "--target-size", "6kB"]
        assert main(["quantize", "model.h5", *plan, "-o", f"{where}/small.h5", *options]) == 0
        assert main(["run", f"{where}/small.h5", "--input", "parts", "-o", f"{where}/outputs", *options]) == 0
    written = [file.relative_to("here") for file in sorted(Path("here").rglob("*.*"))]
    assert len(written) == 5
    for file in written:
        assert ("here" / file).read_bytes() == ("there" / file).read_bytes(), file


def test_workers_of_a_command_share_the_cores_and_leave_interrupts_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PQNET_NUM_THREADS", "7")
    with cluster.connected(None, 3) as client:
        assert client is not None
        threads, processes = client.run(lambda: pqnet._threads.default_threads()), client.run(os.getpid)
        for process in processes.values():
            os.kill(process, signal.SIGINT)
        handlers = client.run(lambda: signal.getsignal(signal.SIGINT))
        assert client.run(os.getpid) == processes
    assert set(handlers.values()) == {signal.SIG_IGN}
    assert list(threads.values()) == [2, 2, 2]


# -- what goes wrong -------------------------------------------------------------------------------------------


def test_a_killed_worker_costs_only_what_it_had_begun(client: Client, tmp_path: Path) -> None:
    tasks = Tasks(client)
    found = tasks.map(slow_square, ((n, str(tmp_path)) for n in range(8)), tasks.share(10))
    results = [next(found) for _ in range(3)]
    while not (begun := list(tmp_path.glob("3-*"))):
        time.sleep(0.02)
    os.kill(int(begun[0].name.split("-")[1]), signal.SIGKILL)
    assert results + list(found) == [10 * n**2 for n in range(8)]
    for n in range(3):  # their results were here
        assert len(list(tmp_path.glob(f"{n}-*"))) == 1
    client.wait_for_workers(2, timeout=30)


def test_data_that_are_lost_with_all_workers_are_sent_again(client: Client) -> None:
    tasks = Tasks(client)
    shared = tasks.share(np.arange(1000.0))
    found = tasks.map(np.add, range(8), shared)
    first = next(found)
    for process in client.run(os.getpid).values():
        os.kill(process, signal.SIGKILL)
    for n, sums in enumerate([first, *found]):
        np.testing.assert_array_equal(sums, n + np.arange(1000.0))


def test_errors_of_workers_arrive_as_they_are(client: Client) -> None:
    tasks = Tasks(client)
    found = tasks.map(fail, range(5))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(pqnet.ConfigError, match="item: expected another than 2"):
        next(found)
    bad = SAMPLES.copy()
    bad[-1] = np.nan
    np.save("bad.npy", bad)
    messages = []
    for where in (None, client):
        with pytest.raises(PQNetError) as reason:
            pqnet.calibrate(MODEL, "bad.npy", client=where)
        messages.append(str(reason.value))
    assert messages[0] == messages[1] and messages[0].startswith("input 'input': expected finite float32 numbers")


def warn(item: int) -> int:
    warnings.warn("all say this", UserWarning, stacklevel=1)
    if item == 3:
        np.float32(1e30) * np.float32(1e30)
    return item


def test_warnings_of_workers_are_raised_here(client: Client) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        assert list(Tasks(client).map(warn, range(5))) == list(range(5))
    assert [(each.category, str(each.message)) for each in said] == [
        (UserWarning, "all say this"),
        (RuntimeWarning, "overflow encountered in scalar multiply"),
    ]
    assert Path(said[0].filename).name == "test_cluster.py"
    with pytest.raises(UserWarning, match="all say this"):  # by the filters of the tests
        list(Tasks(client).map(warn, range(5)))


def test_statistics_on_workers_warn_as_those_made_here(client: Client) -> None:
    b = GraphBuilder({"ids": ValueInfo(("n", 4), "int64"), "mask": ValueInfo(("n", 4), "int64")}, {"n": 2})
    x = b.add("embedding", "ids", name="words", params={"weight": np.ones((5, 8), np.float32)})
    model = Model(b.build({"y": b.add("linear", x, name="fc", params={"weight": np.ones((8, 8), np.float32)})}))
    assert "mask" in model.inputs
    ones = np.ones((20, 4), np.int64)
    mask = np.where(np.arange(4) < 3, ones, 0)
    said = []
    for where in (None, client):
        with pytest.warns(UserWarning) as record:
            pqnet.calibrate(model, {"ids": ones, "mask": mask}, client=where)
        said.append({str(each.message) for each in record})
    assert said[0] == said[1] and "input 'mask' looks like the mask of padded texts" in str(said[0])


def test_warnings_of_tasks_at_work_at_once_are_all_recorded() -> None:
    shown, filters = warnings.showwarning, list(warnings.filters)
    both = threading.Barrier(2)

    def task(item: int) -> int:
        both.wait(30)
        warnings.warn(f"number {item}", UserWarning, stacklevel=1)
        return item

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(partial(cluster._call_recorded, task), range(2)))
    assert [item for item, _ in found] == [0, 1]
    assert {str(message) for _, said in found for message, *_ in said} == {"number 0", "number 1"}
    assert warnings.showwarning is shown and list(warnings.filters) == filters


def test_a_task_that_kills_its_workers_is_given_up(
    workers: LocalCluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.scheduler, "allowed_failures", 0)
    with pytest.raises(PQNetError, match="client: expected workers that survive a task, but .* memory"):
        list(Tasks(client).map(die, [1]))
    client.wait_for_workers(2, timeout=30)


def test_a_scheduler_that_is_not_there_is_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    MODEL.save("model.h5")
    np.save("x.npy", DATA)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    command = ["calibrate", "model.h5", "--calibration", "x.npy", "-o", "stats.h5"]
    assert main([*command, "--scheduler", nobody]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"--scheduler: expected a Dask scheduler at {nobody}, got no answer within 5 s" in message
    assert main([*command, "--scheduler", nobody, "--workers", "2"]) == 2
    assert "expected --scheduler or --workers, got both" in capsys.readouterr().err


def test_a_scheduler_without_workers_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SECONDS", 0.2)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0", silence_logs=50) as empty,
        Client(empty) as client,
        pytest.raises(PQNetError, match="client: expected workers, got none within 0.2 s; .* dask worker "),
    ):
        pqnet.calibrate(MODEL, DATA, client=client)


def test_what_is_no_client_is_refused() -> None:
    with pytest.raises(PQNetError, match="client: expected a distributed.Client that is not asynchronous, got"):
        pqnet.calibrate(MODEL, DATA, client="tcp://127.0.0.1:8786")


def test_other_software_on_workers_is_refused_or_said(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.cpu, "NAME", "z80")
    with pytest.warns(UserWarning, match="last digits of results may differ"):
        Tasks(client)
    monkeypatch.setattr(pqnet, "__version__", "9.9")
    with pytest.raises(PQNetError, match="client: expected pqnet 9.9 on every worker, got"):
        Tasks(client)


def test_without_a_client_dask_is_not_imported() -> None:
    code = """
import sys, pqnet
from pqnet.demo import load_images, model_path
from pqnet.cli.main import build_parser
pqnet.calibrate(pqnet.load(model_path()), load_images()[0][:70])
assert build_parser().parse_args(["calibrate", "m", "--calibration", "x", "-o", "s", "--workers", "2"]).workers == 2
assert not {"dask", "distributed", "tornado"} & set(sys.modules)
sys.modules["distributed"] = None
try:
    pqnet.calibrate(pqnet.load(model_path()), load_images()[0], client=object())
except pqnet.PQNetError as reason:
    print(reason)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "client: needs the package 'distributed'; pip install 'pqnet[cluster]'\n"
