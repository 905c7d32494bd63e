"""Choosing algorithms: by the rule, by measurements of processes before this one, and by name."""

import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_engine import packed_weight

import pqnet
from pqnet.graph import GraphBuilder, ValueInfo
from pqnet.runtime import tune
from pqnet.runtime.algorithms.base import fitting
from pqnet.runtime.builder import Builder
from pqnet.runtime.engine import Engine
from pqnet.runtime.layer import Layer, near
from pqnet.runtime.memory import Store
from pqnet.runtime.model import COMPUTE
from pqnet.runtime.tune import Tuner, fixed, rule

COSTS = {"decode": 1.0, "dots": 1.2, "rows": 1.5, "lut": 9.0}


def network(outputs=16):
    rng = np.random.default_rng(0)
    packed = pqnet.PackedPQ(pqnet.PQ(4, 2), (outputs, 8), rng.integers(0, 4, (outputs, 4)), rng.standard_normal((4, 2)))
    b = GraphBuilder({"x": ValueInfo((2, 8))})
    return b.build({"y": b.add("linear", "x", params={"weight": packed})})


def choose(tuner, outputs=16, costs=COSTS, compute="float32"):
    builder = Builder(network(outputs), {}, Store(), rule)
    return tuner(Layer.of(builder, builder.graph.nodes[0]), compute, costs)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return the seconds that each algorithm takes, for tests to change; the file is ``tmp_path / "new" / "table"``."""
    seconds = {"decode": 1.0, "dots": 0.5, "rows": 2.0, "lut": 0.1}
    monkeypatch.setattr(tune, "_path", lambda: tmp_path / "new" / "table")
    monkeypatch.setattr(tune, "_timed", lambda layer, compute, algorithm: lambda: seconds[algorithm])
    monkeypatch.setenv("PQNET_TUNE", "100")
    monkeypatch.delenv("PQNET_ALGORITHM", raising=False)
    return seconds


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_a_process_chooses_by_what_it_found_and_measures_for_the_next(machine, tmp_path):
    first = Tuner()
    assert choose(first) == choose(first) == "decode"  # the rule's, also after its own measurement
    (line,) = lines(tmp_path / "new" / "table")
    assert line["seconds"] == {"decode": 1.0, "dots": 0.5, "rows": 2.0}  # not those that the rule is sure about
    second = Tuner()
    machine.update(dots=7.0)
    assert choose(second) == choose(second) == "dots"
    assert choose(second, outputs=24) == "decode"  # a layer that nobody has measured


def test_no_more_than_that_decides(machine, monkeypatch):
    choose(Tuner())
    monkeypatch.setattr(tune, "default_threads", lambda: 1)  # as in a process that is pinned to one core
    assert choose(Tuner()) == "dots"
    monkeypatch.setenv("PQNET_TUNE", "0")
    assert choose(Tuner()) == "decode"


def test_a_disturbed_measurement_is_corrected(machine, tmp_path):
    machine.update(dots=1.2)
    assert [choose(Tuner()), choose(Tuner())] == ["decode", "decode"]
    machine.update(dots=0.5)
    assert [choose(Tuner()) for _ in range(4)] == ["decode", "dots", "dots", "dots"]
    assert len(lines(tmp_path / "new" / "table")) == tune.SESSIONS


def test_a_disturbed_measurement_of_the_best_is_corrected(machine):
    machine.update(decode=9.0)
    choose(Tuner())
    machine.update(decode=0.4)
    assert [choose(Tuner()) for _ in range(3)] == ["dots", "decode", "decode"]


def test_a_measurement_that_clearly_agrees_with_the_rule_is_not_repeated(machine, tmp_path):
    machine.update(dots=1.6)
    assert [choose(Tuner()) for _ in range(3)] == ["decode"] * 3
    assert len(lines(tmp_path / "new" / "table")) == 1


def test_what_float32_measured_serves_low_precision(machine, tmp_path):
    machine.update(bfloat16=0.4, dots=0.6)
    choose(Tuner())
    lower = COSTS | {"bfloat16": 1.4}
    assert choose(Tuner(), costs=lower, compute="auto") == "dots"  # no slower than in float32, before it was measured
    assert lines(tmp_path / "new" / "table")[1]["seconds"].keys() == {"decode", "dots", "rows", "bfloat16"}
    assert choose(Tuner(), costs=lower, compute="auto") == "bfloat16"
    assert choose(Tuner()) == "dots"


def test_low_precision_may_take_all_that_float32_takes():
    rng = np.random.default_rng(0)
    for shape, groups in (((16, 8, 3, 3), 1), ((16, 8, 1, 1), 1), ((16, 1, 3, 3), 16), ((16, 8, 3, 3), 2)):
        blocks = (8, 8, "channel") if shape[1] == 8 else (9, 8, "spatial")
        for weight in (packed_weight(rng, shape, *blocks), rng.standard_normal(shape).astype(np.float32)):
            b = GraphBuilder({"x": ValueInfo((1, shape[1] * groups, 20, 20))})
            y = b.add("conv2d", "x", params={"weight": weight}, groups=groups)
            builder = Builder(b.build({"y": y}), {}, Store(), rule)
            layer = Layer.of(builder, builder.graph.nodes[0])
            names = {compute: {a.name for a in fitting(layer, compute)} for compute in COMPUTE}
            assert names["float32"] and all(names["float32"] <= found for found in names.values())


def test_an_algorithm_that_is_hardly_faster_is_not_taken(machine):
    machine.update(dots=0.97)
    assert [choose(Tuner()) for _ in range(5)] == ["decode"] * 5


def test_measurements_take_no_longer_than_they_may(machine, tmp_path, monkeypatch):
    clock = itertools.count(0.0, 40.0)
    monkeypatch.setattr(tune.time, "perf_counter", lambda: next(clock))
    tuner = Tuner()
    assert [choose(tuner, outputs) for outputs in (8, 16, 24, 32)] == ["decode"] * 4
    assert len(lines(tmp_path / "new" / "table")) == 3


# ---- files


@pytest.mark.parametrize("refuses", ["nowhere", "a file for a folder", "a full disk"])
def test_without_a_kept_file_the_rule_decides(machine, tmp_path, monkeypatch, refuses):
    def full(*args):
        raise OSError(28, "No space left on device")

    if refuses == "nowhere":
        monkeypatch.setattr(tune, "_path", lambda: None)
    elif refuses == "a full disk":
        monkeypatch.setattr(tune.os, "write", full)
    else:
        (tmp_path / "new").write_text("")
        monkeypatch.setattr(tune, "_timed", None)  # nothing is measured in vain
    assert [choose(Tuner()) for _ in range(3)] == ["decode"] * 3


def test_a_file_that_is_full_is_left_as_it_is(machine, tmp_path, monkeypatch):
    choose(Tuner())
    monkeypatch.setattr(tune, "MOST_BYTES", 10)
    choose(Tuner(), outputs=24)
    assert len(lines(tmp_path / "new" / "table")) == 1


BAD = [b"", b"[" * 100_000, b"\xff\xfe", b"7", b"[]", b"{}", b'{"key": 1, "seconds": {}}', b"null", b"1" * 5000]
BAD += [b'{"key": "K", "seconds": %s}' % text for text in (b"1", b"[1]", b'{"decode": "1"}', b'{"decode": true}')]
BAD += [b'{"key": "K", "seconds": {"decode": %s}}' % text for text in (b"-1.0", b"NaN", b"1e999", b"null", b"[1.0]")]


def test_lines_that_are_not_sound_are_passed_over(machine, tmp_path):
    choose(Tuner())
    path = tmp_path / "new" / "table"
    (line,) = lines(path)
    good, bad = path.read_bytes(), b"\n".join(BAD).replace(b'"K"', json.dumps(line["key"]).encode())
    for content in (bad, good + bad, bad + good, bad + b"\n" + good[: len(good) // 2]):
        path.write_bytes(content)
        assert choose(Tuner()) == ("dots" if good in content else "decode")
    assert choose(Tuner()) == "dots"  # measured again, behind the line that was cut off


def test_threads_and_processes_add_to_the_file_at_once(machine, tmp_path):
    path = tmp_path / "new" / "table"
    code = "from pathlib import Path; from pqnet.runtime import tune\n"
    code += "for i in range(200): tune._measure(Path({!r}), f'{}.{{i}}', lambda: [lambda: 1.0] * 50, list('ab' * 25))"
    commands = [[sys.executable, "-c", code.format(str(path), name)] for name in range(2)]
    tuner = Tuner()
    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(subprocess.run, command, check=True) for command in commands]
        found = list(pool.map(lambda outputs: choose(tuner, outputs), range(8, 88, 8)))
        assert all(each.result().returncode == 0 for each in done)
    assert found == ["decode"] * 10
    assert len({line["key"] for line in lines(path)}) == len(lines(path)) == 410
    assert os.listdir(path.parent) == ["table"]


# ---- by name


def test_a_named_algorithm_is_taken_wherever_it_is_possible(machine, monkeypatch):
    monkeypatch.setenv("PQNET_ALGORITHM", "lut")
    assert choose(Tuner()) == "lut"
    assert choose(Tuner(), costs={"decode": 3.0, "dots": 2.0}) == "dots"
    monkeypatch.setenv("PQNET_ALGORITHM", "winograd")
    assert choose(Tuner()) == "decode"
    assert fixed("rows")(None, "float32", COSTS) == "rows" and rule(None, "float32", COSTS) == "decode"


def test_names_and_numbers_that_say_nothing_are_refused(machine, monkeypatch):
    monkeypatch.setenv("PQNET_TUNE", "soon")
    with pytest.raises(pqnet.PQNetError, match="PQNET_TUNE: expected a number of seconds, 0 or more, got 'soon'"):
        choose(Tuner())
    monkeypatch.setenv("PQNET_ALGORITHM", "fastest")
    with pytest.raises(
        pqnet.PQNetError, match="PQNET_ALGORITHM: expected one of 'bfloat16', 'columns', .* got str 'fastest'"
    ):
        choose(Tuner())


# ---- in an engine


def test_layers_are_measured_one_by_one_with_every_likely_algorithm(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "_path", lambda: tmp_path / "table")
    monkeypatch.setattr(tune, "DOUBT", 1e9)
    graph, x = network(), np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    want = Engine(graph, rule).run({"x": x}, 1)["y"]
    monkeypatch.setenv("PQNET_TUNE", "100")
    assert np.array_equal(Engine(graph, Tuner()).run({"x": x}, 1)["y"], want)
    (line,) = lines(tmp_path / "table")
    seconds = line["seconds"]
    found = set(seconds) - {"lanes"}  # AVX-512 has this one
    assert found == {"decode", "dots", "lut", "lut_pointwise", "rows"} and min(seconds.values()) > 0
    assert np.allclose(Engine(graph, Tuner()).run({"x": x}, 1)["y"], want, atol=1e-5)


FORK = """
import os, threading
from pqnet.runtime import tune
held = threading.Event()
threading.Thread(target=lambda: (tune._process.lock.acquire(), held.set())).start()
held.wait()
child = os.fork()
if child == 0:
    os._exit(0 if tune._process.lock.acquire(timeout=10) else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_can_measure_although_another_thread_was_at_it():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


def test_one_measurement_serves_all_sizes_near_it():
    buckets = [near(size) for size in range(1, 3000)]
    assert buckets == sorted(buckets) and len(set(buckets)) < 45
    assert all(abs(bucket - size) <= size / 8 for size, bucket in enumerate(buckets, 1))
    assert all(near(size) == size for size in (1, 2, 3, 4, 5, 6, 7, 14, 28, 56, 112, 224, 1024))
