"""Machine code that is kept between processes: in one place, found again only if it is whole and fits."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numba import config, njit, types

from pqnet.kernels import cache, cpu

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")


def fresh_kernel():
    """Return a kernel as a new process has it: not compiled, its machine code to be found by its name and place."""

    def double(values, out):
        out[0] = 2 * values[0]

    double.__module__ = "pqnet.kernels.fit.patches"
    return njit(cache=True, nogil=True, error_model="numpy")(double)


def run(kernel):
    """Check a kernel's result; return whether its machine code was found."""
    out = np.zeros(1)
    kernel(np.array([21.0]), out)
    assert out[0] == 42
    return bool(sum(kernel.stats.cache_hits.values()))


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Keep machine code in two folders of the test."""
    found = tmp_path / "first" / "kernels-0", tmp_path / "second" / "kernels-0"
    monkeypatch.setattr(cache, "folders", lambda: found)
    monkeypatch.setattr(cache, "_warned", [])
    return found


def entries(folder):
    return sorted(folder.iterdir())


def test_the_next_process_finds_what_one_compiled(places):
    assert not run(fresh_kernel())
    assert run(fresh_kernel())
    assert [path.suffix for path in entries(places[0])] == [".kernel"] and not places[1].exists()


def damages(whole):
    yield from (whole[:size] for size in (0, 1, 20, 47, 48, len(whole) // 2, len(whole) - 1))
    for at in (0, 20, 48, len(whole) // 2, len(whole) - 1):
        yield whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    yield whole + b"\0"
    yield os.urandom(len(whole))


def test_a_damaged_entry_is_compiled_again_and_replaced(places):
    run(fresh_kernel())
    (path,) = entries(places[0])
    whole = path.read_bytes()
    for bad in damages(whole):
        path.write_bytes(bad)
        assert not run(fresh_kernel())
        assert run(fresh_kernel())  # what was written instead
    assert entries(places[0]) == [path]


def test_an_entry_of_another_kernel_or_that_numba_cannot_read_is_not_run(places):
    run(fresh_kernel())
    (path,) = entries(places[0])
    key = path.read_bytes()[len(cache.MARK) + 32 :].partition(b"\n")[0].decode()
    for stranger in (cache._seal("another key", b""), cache._seal(key, b""), cache._seal(key, cache.dumps((1, 2)))):
        path.write_bytes(stranger)
        assert not run(fresh_kernel())
        assert run(fresh_kernel())


def test_what_may_be_made_of_edited_sources_is_not_kept(places, monkeypatch):
    monkeypatch.setattr(cache, "digest", lambda: "edited")
    assert not run(fresh_kernel())
    assert not places[0].exists() and not places[1].exists()


def test_flush_removes_what_is_kept(places):
    kernel = fresh_kernel()
    run(kernel)
    kernel._cache.flush()
    assert entries(places[0]) == []


# ---- nowhere to write


def test_where_the_folder_cannot_be_written_another_is_used_with_one_warning(places):
    places[0].parent.write_text("a file, where a folder should be")
    with pytest.warns(RuntimeWarning, match="kept in .*second.*set NUMBA_CACHE_DIR") as caught:
        assert not run(fresh_kernel())
        kernel = fresh_kernel()
        kernel.compile((types.Array(types.int64, 1, "C"), types.Array(types.int64, 1, "C")))
    assert len(caught) == 1
    assert run(fresh_kernel()) and len(entries(places[1])) == 2
    assert places[1].parent.stat().st_mode & 0o777 == 0o700


def test_without_any_folder_machine_code_stays_in_memory_with_one_warning(places, monkeypatch):
    for folder in places:
        folder.parent.write_text("a file, where a folder should be")
    with pytest.warns(RuntimeWarning, match="compiled again by every process") as caught:
        assert not run(fresh_kernel())
        assert not run(fresh_kernel())
    monkeypatch.setattr(cache, "folders", tuple)
    assert not run(fresh_kernel())
    assert len(caught) == 1


def test_a_folder_that_others_can_write_to_is_neither_read_nor_written(places):
    run(fresh_kernel())
    shutil.move(places[0].parent, places[1].parent)
    places[0].parent.write_text("a file, where a folder should be")
    places[1].parent.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="is not this user's own"):
        assert not run(fresh_kernel())
    places[1].parent.chmod(0o700)
    assert run(fresh_kernel())


LINEAR = """
import numpy as np, pqnet
rng = np.random.default_rng(0)
packed = pqnet.PackedPQ(pqnet.PQ(16, 4), (8, 16), rng.integers(0, 16, (8, 4)), rng.standard_normal((16, 4)))
print(np.allclose(pqnet.linear(np.ones((2, 16), np.float32), packed), packed.decode().sum(1), atol=1e-5))
"""
SMALL = """
import sys, numpy as np
from pqnet.kernels.fit.scalar import one_cluster
out = np.empty(3)
one_cluster(np.array([0.0, 1, 2]), np.array([0.0, 1, 3]), np.array([0.0, 1, 5]), out)
print(*out, sum(one_cluster.stats.cache_hits.values()))
"""


PLACES = ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")  # variables that say where kernels are kept


def process(program, settings, **options):
    """Run a program in a process of its own; return its words and its warnings."""
    environment = {name: value for name, value in os.environ.items() if name not in PLACES}
    environment |= {"NUMBA_NUM_THREADS": "1", **settings}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr.count("Warning:")


def full_disk():
    """Let every write to a file fail."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_with_a_full_disk_a_layer_runs_with_one_warning(tmp_path):
    settings = {"NUMBA_CACHE_DIR": str(tmp_path / "kernels"), "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    assert process(LINEAR, settings, preexec_fn=full_disk) == (["True"], 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_user_without_a_home_has_his_kernels_kept_among_temporary_files(tmp_path):
    settings = {"XDG_CACHE_HOME": "relative", "TMPDIR": str(tmp_path)}
    assert process(SMALL, settings, cwd=tmp_path) == (["0.0", "0.0", "0.5", "0"], 0)
    assert process(SMALL, settings, cwd=tmp_path) == (["0.0", "0.0", "0.5", "1"], 0)
    assert [path.name for path in tmp_path.iterdir()] == [f"pqnet-kernels-{os.getuid()}"]


def test_processes_that_compile_at_once_and_for_other_cpus_are_not_in_each_others_way(tmp_path):
    here = {"NUMBA_CACHE_DIR": str(tmp_path)}
    other = here | {"NUMBA_CPU_NAME": "generic"}
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(process, [SMALL] * 3, [here, other, here]))
    assert [words[:3] for words, _ in found] == [["0.0", "0.0", "0.5"]] * 3
    assert [count for _, count in found] == [0] * 3
    assert len(entries(tmp_path)) == 2 and [len(entries(folder)) for folder in entries(tmp_path)] == [1, 1]
    assert process(SMALL, here) == (["0.0", "0.0", "0.5", "1"], 0)


# ---- names of folders


def test_the_folder_is_named_after_all_that_machine_code_depends_on(tmp_path, monkeypatch):
    name = cache.digest
    first = name()
    assert first == name() == cache.DIGEST and cache.folders()[0].name == f"kernels-{first}"
    changes = [(cpu, "ISA", "other"), (cpu, "NAME", "other"), (cpu, "BYTE_TABLES", "other"), (config, "OPT", 1)]
    changes += [(cpu, "features", lambda: frozenset({"fma"})), (config, "BOUNDSCHECK", 1)]
    changes += [(cache.numba, "__version__", "0"), (cache.llvmlite, "__version__", "0")]
    names = {first}
    monkeypatch.setitem(cpu.WIDTHS, "other", 1)
    for where, setting, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(where, setting, value)
            names.add(name())
    assert len(names) == 1 + len(changes)
    copy = tmp_path / "kernels"
    shutil.copytree(Path(cache.__file__).parent, copy)
    monkeypatch.setattr(cache, "__file__", str(copy / "cache.py"))
    assert name() == first
    for file in ("simd.py", "products/tile.py"):
        with open(copy / file, "a") as source:
            source.write("# changed")
        assert name() not in names
        names.add(name())
    for source in copy.rglob("*.py"):
        source.unlink()
    assert name() is None


def test_folders_that_were_not_used_for_long_are_removed(places):
    base = places[0].parent
    now = time.time()
    ages = {f"kernels-{i:016x}": 3600 * 24 * i for i in range(cache.KEPT + 4)}
    for name, age in {**ages, "kernels-of-mine": 1e7, "0123456789abcdef": 1e7}.items():
        (base / name).mkdir(parents=True)
        os.utime(base / name, (now - age, now - age))
    run(fresh_kernel())
    kept = {path.name for path in base.iterdir()} - {"kernels-of-mine", "0123456789abcdef", "kernels-0"}
    assert kept == set(list(ages)[: cache.KEPT])


def test_a_folder_that_is_used_counts_as_new(places):
    run(fresh_kernel())
    os.utime(places[0], (0, 0))
    cache._note_use.cache_clear()
    run(fresh_kernel())
    assert places[0].stat().st_mtime > 0


# ---- threads


def test_threads_that_want_a_kernel_at_once_get_one_and_leave_warnings_alone(places):
    kernel, filters = fresh_kernel(), list(warnings.filters)
    signature = (types.Array(types.float32, 1, "C"),) * 2
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: cache.compiled(kernel, signature), range(4)))
    assert all(each is found[0] for each in found) and len(entries(places[0])) == 1
    assert warnings.filters == filters
