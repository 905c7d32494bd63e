"""Changes good files at random, where their structure is, and looks at what pqnet makes of them.

    python tests/fuzz/fuzz.py --class model --seconds 60 --seed 1
    python tests/fuzz/fuzz.py --class npy --only 4711         # one mutant again, in this process

Right is a network, a recipe or an array that is what a reference makes of the same file, or a PQNetError. All else,
also more than 1 GiB of addresses or 5 seconds, saves the mutant to --keep and lets this program exit with 1. A mutant
is a function of class, seed and number. Each process does one after the other; the next takes over from one that died.
"""

# ruff: noqa: E402  # the environment comes first

import argparse
import io
import json
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "PQNET_NUM_THREADS": "1", "PQNET_TUNE": "0"}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np
from forge import document_of, forge, reseal
from numba.core import event
from random_graphs import random_graph
from test_forged_graphs import attempt, forged

from pqnet import Model, PQNetError, Recipe, diff, patch
from pqnet.io import read_arrays, read_numpy
from pqnet_converters import from_onnx, to_onnx

MEMORY, SECONDS, BASES = 1 << 30, 5, 60
RECIPES = [
    "default: {codec: pq, k: 256, d: 8}\nfc: null\n",
    "'*.conv?': {codec: scalar, k: 4, per: channel}\ndefault: &a {codec: intn, bits: 4}\nhead: *a\n",
    "default: {codec: additive, parts: [{codec: pq, k: 16, d: 4}, {codec: sparse, count: 3}]}\n",
    "# comment\n'a': {codec: fixed, values: pow2, scale: free}\n\"b\": ~\n",
]
PIECES = [
    *(
        "&a ",
        "*a",
        "!!int ",
        "!!float ",
        "!!timestamp ",
        "!!binary ",
        "!!set ",
        "<<: ",
        "? ",
        ": ",
        "- ",
        "{",
        "}",
        "[",
    ),
    *("]", ",", "\n", "  ", "|", ">", "%YAML 9", "---\n", "null", "9" * 30, "0x_", "1e999", ".inf", "2001-13-45", "\0"),
    *("codec: pq", "k: 0", "d: -1", "parts: [", "'", '"', "\ufeff", "\ud7ff", "k", "=", "!!python/name:os.system "),
]
HEADERS = [
    *("'descr'", "'<f4'", "'O'", "'>i8'", "'<U9'", "[('a', '<f4')]", "'fortran_order'", "True", "'shape'", "(2, 3)"),
    *(
        "(",
        ")",
        ",",
        "-1",
        "0",
        "99999999999999999999",
        "1 << 60",
        "None",
        "{",
        "}",
        "'",
        "\\",
        "\n",
        "  ",
        "b''",
        "1e9",
    ),
]


# -- mutants -------------------------------------------------------------------------------------------------


def changed_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Return data with some bytes flipped, set, deleted, doubled, or cut off."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(out) + 1))
        size = int(2 ** rng.integers(7))
        match rng.integers(6):
            case 0 | 1 if at < len(out):
                out[at] ^= 1 << int(rng.integers(8))
            case 2:
                out[at : at + 8] = int(rng.choice([0, 1, 255, 1 << 16, 1 << 31, 1 << 62])).to_bytes(8, "little")
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = out[at : at + size]
            case 5 if rng.random() < 0.3:
                del out[at:]
    return bytes(out)


def changed_text(rng: np.random.Generator, text: str, pieces: list[str]) -> str:
    """Return text with pieces put in, taken out, or repeated."""
    for _ in range(int(rng.integers(1, 6))):
        at, end = sorted(rng.integers(len(text) + 1, size=2).tolist())
        end = min(end, at + 12)
        text = text[:at] + str(rng.choice([pieces[rng.integers(len(pieces))], "", text[at:end] * 2])) + text[end:]
    return text


def model_file(rng: np.random.Generator, path: Path) -> None:
    """A model file with a right checksum and changed header, arrays or bytes."""
    base = int(rng.integers(BASES))
    model = Model(random_graph(base)[0])
    model.save(path)
    if rng.random() < 0.2:
        path.write_bytes(changed_bytes(rng, path.read_bytes()))
        if rng.random() < 0.7 and path.stat().st_size > 600:
            reseal(path)
        return
    document, vectors = document_of(path)
    if rng.random() < 0.8:
        document["header"] = forged(rng, document["header"])
    if rng.random() < 0.2:
        document = forged(rng, document)
    if vectors and rng.random() < 0.3:
        name = list(vectors)[rng.integers(len(vectors))]
        vectors[name] = changed_bytes(rng, vectors[name])
        vectors[name] = vectors[name][: len(vectors[name]) // 8 * 8]
    forge(path, document, vectors)


def update_file(rng: np.random.Generator, path: Path) -> None:
    """An update with changed records, header or data, and beside it the old file that it is for."""
    old, new = path.with_name("old.h5"), path.with_name("new.h5")
    graph = random_graph(int(rng.integers(BASES)))[0]
    Model(graph).save(old)
    floats = {n: p for n, p in graph.params.items() if isinstance(p, np.ndarray) and p.dtype == np.float32}
    params = graph.params | {n: np.asarray(p + np.float32(1)) for n, p in floats.items()}
    Model(replace(graph, params=params) if rng.random() < 0.7 else random_graph(int(rng.integers(BASES)))[0]).save(new)
    diff(old, new, path)
    document, vectors = document_of(path)
    size = document["arrays"]["header"][1][0]
    parts = {"header": vectors["uint8"][:size], "data": vectors["uint8"][size:]}
    if rng.random() < 0.5:
        document["header"] = forged(rng, document["header"])
    if rng.random() < 0.5:
        inner = json.dumps(forged(rng, json.loads(zlib.decompress(parts["header"])))).encode()
        parts["header"], document["header"]["size"] = zlib.compress(inner), len(inner)
    if rng.random() < 0.3:
        name = str(rng.choice(["header", "data"]))
        parts[name] = changed_bytes(rng, parts[name])
    if rng.random() < 0.9:
        document["arrays"] = {name: ["uint8", [len(part)]] for name, part in parts.items()}
    forge(path, document, {"uint8": b"".join(parts.values())} if any(parts.values()) else {})


def recipe_file(rng: np.random.Generator, path: Path) -> None:
    path.write_text(changed_text(rng, RECIPES[rng.integers(len(RECIPES))], PIECES), "utf-8", newline="")


def numpy_file(rng: np.random.Generator, path: Path) -> None:
    """A .npy or .npz file with a changed header, directory, or bytes."""
    dtype = ["<f4", ">f8", "<i8", "|u1", "<f2", "?"][rng.integers(6)]
    array = np.asarray(rng.integers(0, 9, [2, 3][: rng.integers(3)]), dtype)
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(array))
    data = stream.getvalue()
    if rng.random() < 0.6:
        header = changed_text(rng, data[10 : data.index(b"\n")].decode(), HEADERS).encode("latin1")
        data = data[:8] + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + data[data.index(b"\n") + 1 :]
    if rng.random() < 0.5:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", int(rng.choice([0, 8, 12, 14]))) as archive:
            archive.writestr("x.npy", data)
            archive.writestr("y.npy", data[:: rng.choice([1, 1, -1])])
        data = stream.getvalue()
    path.write_bytes(changed_bytes(rng, data) if rng.random() < 0.7 else data)


def hdf5_file(rng: np.random.Generator, path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name in ("a", "g/b"):
            file.create_dataset(name, data=rng.integers(0, 9, (4, 3)), compression="gzip" if name == "a" else None)
    path.write_bytes(changed_bytes(rng, path.read_bytes()))


def onnx_file(rng: np.random.Generator, path: Path) -> None:
    """An ONNX file with fields of its messages changed, or bytes."""
    while True:
        try:
            model = to_onnx(Model(random_graph(int(rng.integers(BASES)))[0]))
            break
        except PQNetError:  # no such operation there
            continue
    if rng.random() < 0.2:
        path.write_bytes(changed_bytes(rng, model.SerializeToString()))
        return
    for _ in range(int(rng.integers(1, 4))):
        change_message(rng, model)
    path.write_bytes(model.SerializeToString())


def change_message(rng: np.random.Generator, message: Any) -> None:
    """Change one field at random, of this message or of one in it."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = fields[rng.integers(len(fields))]
    repeated = not isinstance(value, str | bytes | int | float | bool) and hasattr(value, "__len__")
    at = int(rng.integers(len(value))) if repeated and len(value) else 0
    inner = (value[at] if len(value) else None) if repeated else value
    if hasattr(inner, "ListFields") and rng.random() < 0.9:
        change_message(rng, inner)
    elif rng.random() < 0.15:
        message.ClearField(field.name)
    elif repeated and len(value) and rng.random() < 0.3:
        (value.append if not hasattr(inner, "ListFields") else value.add().CopyFrom)(inner)
    elif not hasattr(inner, "ListFields") and inner is not None:
        new = changed_value(rng, inner)
        try:
            if repeated:
                value[at] = new
            else:
                setattr(message, field.name, new)
        except (ValueError, TypeError):  # of 32 bits
            return


def changed_value(rng: np.random.Generator, value: Any) -> Any:
    if isinstance(value, bytes):
        return changed_bytes(rng, value)
    if isinstance(value, str):
        return str(rng.choice(["", "x", value[::-1], value + "_0", "Reshape", "Conv", "Concat", "Slice", "Expand"]))
    if isinstance(value, float):
        return float(rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf"), -value]))
    return int(rng.choice([0, 1, 2, 3, -1, value + 1, value - 1, 1 << 31, 1 << 40, -(1 << 62), (1 << 63) - 1]))


# -- what pqnet makes of them --------------------------------------------------------------------------------


def load_model(rng: np.random.Generator, path: Path) -> str:
    return attempt(path, rng)


def load_onnx(rng: np.random.Generator, path: Path) -> str:
    from_onnx(path).save(path.with_suffix(".h5"))
    return attempt(path.with_suffix(".h5"), rng)


def load_recipe(rng: np.random.Generator, path: Path) -> str:
    recipe = Recipe.read(path)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    return "read"


def load_numpy(rng: np.random.Generator, path: Path) -> str:
    got, want = read_numpy(path), np.load(path, allow_pickle=False)
    pairs = [(got, want)] if isinstance(got, np.ndarray) else [(got[name], want[name]) for name in want.files]
    assert all((a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in pairs)
    return "read"


def load_hdf5(rng: np.random.Generator, path: Path) -> str:
    assert read_arrays(path)
    return "read"


def load_update(rng: np.random.Generator, path: Path) -> str:
    """Patch; where the new file is another than the update says, say so in the update, as a forger would."""
    new = path.with_name("patched.h5")
    try:
        patch(path.with_name("old.h5"), path, new)
    except PQNetError as reason:
        digest = re.search("expected a new file of SHA-256 .*, got ([0-9a-f]{64})$", str(reason))
        if not digest:
            raise
        document, vectors = document_of(path)
        document["header"]["new"] = digest[1]
        patch(path.with_name("old.h5"), forge(path, document, vectors), new)
    return attempt(new, rng)


Make, Load = Callable[[np.random.Generator, Path], None], Callable[[np.random.Generator, Path], str]
CLASSES: dict[str, tuple[Make, Load, str]] = {
    "model": (model_file, load_model, ".h5"),
    "recipe": (recipe_file, load_recipe, ".yaml"),
    "npy": (numpy_file, load_numpy, ".npz"),
    "hdf5": (hdf5_file, load_hdf5, ".h5"),
    "onnx": (onnx_file, load_onnx, ".onnx"),
    "update": (update_file, load_update, ".pqd"),
}


class Unlimited(event.Listener):
    """Compiling a kernel does not count."""

    def on_start(self, event: Any) -> None:
        signal.alarm(0)

    def on_end(self, event: Any) -> None:
        signal.alarm(SECONDS)


def one(kind: str, seed: int, number: int, path: Path) -> str:
    """Make a mutant and return what came of it; raise if that is wrong."""
    make, load, _ = CLASSES[kind]
    rng = np.random.default_rng([seed, list(CLASSES).index(kind), number])
    make(rng, path)
    signal.alarm(SECONDS)
    try:
        return load(rng, path)
    except PQNetError:
        return "refused"
    finally:
        signal.alarm(0)


def work(kind: str, seed: int, numbers: range, folder: Path) -> None:
    """Do one mutant after the other, and say so before and after."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    event.register("numba:compile", Unlimited())
    for number in numbers:
        print("begin", number, flush=True)
        try:
            print("end", one(kind, seed, number, folder / f"mutant{CLASSES[kind][2]}"), flush=True)
        except Exception as reason:
            place = traceback.extract_tb(reason.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            print("wrong", f"{type(reason).__name__} at {where}: {' '.join(str(reason).split())[:200]}", flush=True)


# -- many ----------------------------------------------------------------------------------------------------


class Worker:
    """A process that does every n-th mutant of a class."""

    def __init__(self, kind: str, seed: int, first: int, step: int) -> None:
        self.kind, self.seed, self.number, self.step = kind, seed, first, step
        self.folder = tempfile.TemporaryDirectory(prefix="pqnet-fuzz-")
        self.start()

    def start(self) -> None:
        arguments = [self.kind, str(self.seed), str(self.number), str(self.step), self.folder.name]
        command = [sys.executable, sys.argv[0], "--work", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def step_on(self) -> tuple[str, int]:
        """Return what came of a mutant, and its number; waits for it."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            what, _, rest = line.rstrip("\n").partition(" ")
            if what == "begin":
                self.number = int(rest)
            else:
                self.number += self.step
                return (rest if what == "end" else f"wrong: {rest}"), self.number - self.step
        code = self.process.wait()
        self.number += self.step
        self.start()
        return f"wrong: the process ended with {'a hang' if code == -signal.SIGALRM else code}", self.number - self.step

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def fuzz(kinds: list[str], seconds: float, seed: int, workers: int, keep: Path, mutants: int) -> int:
    """Try mutants for so many seconds, or so many of each class, and return how many were wrong."""
    found: Counter[str] = Counter()
    wrong = 0
    for kind in kinds:
        pool = [Worker(kind, seed, i, workers) for i in range(workers)]
        until, done = time.monotonic() + seconds / len(kinds), 0
        with selectors.DefaultSelector() as ready:
            while (time.monotonic() < until or done == 0) and done < mutants:
                for key in list(ready.get_map().values()):
                    ready.unregister(key.fileobj)
                for worker in pool:
                    ready.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
                for key, _ in ready.select(1):
                    outcome, number = key.data.step_on()
                    done += 1
                    found[f"{kind} {outcome if not outcome.startswith('wrong') else 'wrong'}"] += 1
                    if outcome.startswith("wrong"):
                        wrong += 1
                        keep.mkdir(parents=True, exist_ok=True)
                        saved = keep / f"{kind}-{seed}-{number}{CLASSES[kind][2]}"
                        make = CLASSES[kind][0]
                        make(np.random.default_rng([seed, list(CLASSES).index(kind), number]), saved)
                        print(f"{saved}: {outcome}", flush=True)
        for worker in pool:
            worker.stop()
    for what, count in sorted(found.items()):
        print(f"{count:8d} {what}")
    return wrong


def main() -> int:
    if sys.argv[1:2] == ["--work"]:
        kind, seed, first, step, folder = sys.argv[2:]
        work(kind, int(seed), range(int(first), 1 << 60, int(step)), Path(folder))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--class", dest="kinds", action="append", choices=CLASSES, help="repeatable; default all")
    parser.add_argument("--seconds", type=float, default=60, help="for all classes together (default 60)")
    parser.add_argument("--mutants", type=int, default=1 << 60, help="at most so many of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"), help="folder for mutants that went wrong")
    parser.add_argument("--only", type=int, help="the number of one mutant, to see its traceback")
    args = parser.parse_args()
    kinds = args.kinds or list(CLASSES)
    if args.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(one(kinds[0], args.seed, args.only, Path(folder) / f"mutant{CLASSES[kinds[0]][2]}"))
        return 0
    return int(fuzz(kinds, args.seconds, args.seed, args.workers, args.keep, args.mutants) > 0)


if __name__ == "__main__":
    sys.exit(main())
