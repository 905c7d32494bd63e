"""Changes files so that they reach lines of pqnet that none reached before: coverage-guided fuzzing, by atheris.

    pip install atheris
    python tests/fuzz/covered.py model --seconds 600

Headers of models and updates are changed in their structure or byte by byte and get right checksums; recipes, arrays
and ONNX files are changed byte by byte. Right is what can be read, and for models written and read again, or a
PQNetError. All else, more than 1 GiB or 5 seconds ends the program; it says what came of it, and leaves the input in
a file ``crash-...`` that is given again by ``--again FILE``. `fuzz.py` also compares what networks compute.
"""

# ruff: noqa: E402  # instrumented as they are imported

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT / "converters"), str(ROOT)]
READERS = ("pqnet.codecs", "pqnet.graph", "pqnet.io", "pqnet.pipeline.recipe", "pqnet_converters")
MODULES = [
    ".".join(path.relative_to(top).with_suffix("").parts).removesuffix(".__init__")
    for top, package in ((ROOT, "pqnet"), (ROOT / "converters", "pqnet_converters"))
    for path in (top / package).rglob("*.py")
]
with atheris.instrument_imports(  # what Numba compiles has to be Python's own bytecode
    include=["pqnet", "pqnet_converters"], exclude=[name for name in MODULES if not name.startswith(READERS)]
):
    import fuzz
    from fuzz import changed_bytes

    from pqnet import Model, PQNetError, Recipe, diff, patch
    from pqnet.io import graph_from_bytes, graph_to_bytes, load_graph, read_numpy
    from pqnet_converters import from_onnx, to_onnx

import numpy as np
from forge import DTYPES, document_of, forge
from random_graphs import random_graph
from test_forged_graphs import forged

SEEDS, SECONDS = 40, 5
FOLDER = Path(tempfile.mkdtemp(prefix="pqnet-covered-"))
FILE, OLD = FOLDER / "mutant.h5", FOLDER / "old.h5"
LARGEST = 1 << 20  # bytes of arrays that a mutant of a header gets


def vectors_for(document: Any) -> dict[str, bytes]:
    """Return numbers for the arrays that a header states: a forger would not stumble over their lack."""
    sizes: dict[str, int] = {}
    try:
        for dtype, shape in document["arrays"].values():
            sizes[dtype] = sizes.get(dtype, 0) + int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}
    known = {name: n for name, n in sizes.items() if name in DTYPES and n > 0}
    if sum(known.values()) > LARGEST:
        return {}
    return {name: bytes(i % 2 for i in range(n)) for name, n in known.items()}


def model(data: bytes) -> None:
    """Read a model file whose header is given, as text."""
    if not data:  # which no HDF5 file has
        return
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    graph, golden = load_graph(forge(FILE, data, vectors_for(document)))
    again, _ = graph_from_bytes(graph_to_bytes(graph, golden))
    assert list(again.params) == list(graph.params) and again.nodes == graph.nodes


def update(data: bytes) -> None:
    """Apply an update: the header of the new file, and that of the update, each as text on a line."""
    inner, _, outer = data.partition(b"\n")
    if not inner:
        return
    try:
        header = json.loads(outer)
        body = bytes.fromhex(header.pop("body"))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return
    packed = zlib.compress(inner)
    arrays = {"header": ["uint8", [len(packed)]], "data": ["uint8", [len(body)]]}
    document = {"kind": "update", "writer": "forger", "arrays": arrays, "header": header | {"size": len(inner)}}
    patch(OLD, forge(FILE, document, {"uint8": packed + body}), FOLDER / "new.h5")


def recipe(data: bytes) -> None:
    FILE.write_bytes(data)
    read = Recipe.read(FILE)
    assert Recipe.from_yaml(read.to_yaml()) == read


def npy(data: bytes) -> None:
    FILE.write_bytes(data)
    read_numpy(FILE)


def onnx(data: bytes) -> None:
    FILE.write_bytes(data)
    from_onnx(FILE)


def header_mutator(data: bytes, limit: int, seed: int) -> bytes:
    """Change a header in its structure, or its text."""
    rng = np.random.default_rng(seed)
    lines = data.split(b"\n")
    try:
        at = int(rng.integers(len(lines)))
        if rng.random() < 0.7:
            document = json.loads(lines[at])
            if isinstance(document.get("header"), dict) and rng.random() < 0.8:
                document["header"] = forged(rng, document["header"])
            else:
                document = forged(rng, document)
            lines[at] = json.dumps(document).encode()
            return b"\n".join(lines)[:limit]
    except (ValueError, AttributeError, IndexError, RecursionError, TypeError):
        pass
    return bytes(atheris.Mutate(data, limit) if rng.random() < 0.5 else changed_bytes(rng, data)[:limit])


def seeds(kind: str) -> list[bytes]:
    """Return good inputs to begin with."""
    if kind == "recipe":
        return [text.encode() for text in fuzz.RECIPES]
    found = []
    for i in range(SEEDS):
        if kind == "npy":
            fuzz.numpy_file(np.random.default_rng(i), FILE)
            found.append(FILE.read_bytes())
            continue
        graph = random_graph(i)[0]
        Model(graph).save(FILE)
        if kind == "model":
            found.append(json.dumps(document_of(FILE)[0]).encode())
        elif kind == "update":
            Model(random_graph(0)[0]).save(OLD)
            diff(OLD, FILE, FOLDER / "u.pqd")
            document, vectors = document_of(FOLDER / "u.pqd")
            size = document["arrays"]["header"][1][0]
            packed, body = vectors["uint8"][:size], vectors["uint8"][size:]
            found.append(
                zlib.decompress(packed) + b"\n" + json.dumps(document["header"] | {"body": body.hex()}).encode()
            )
        else:
            try:
                found.append(to_onnx(Model(graph)).SerializeToString())
            except PQNetError:  # no such operation there
                continue
    return found


KINDS = {"model": model, "update": update, "recipe": recipe, "npy": npy, "onnx": onnx}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--again", type=Path, help="an input that was left, to see its traceback")
    args = parser.parse_args()
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for i, data in enumerate(seeds(args.kind)):
        (corpus / str(i)).write_bytes(data)

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds of CPU")

    signal.signal(signal.SIGPROF, too_long)

    def one(data: bytes) -> None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of CPU: the fuzzer's own limit counts what others take, too
        try:
            with contextlib.suppress(PQNetError):
                KINDS[args.kind](data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    if args.again is not None:
        one(args.again.read_bytes())
        return
    options = [f"-max_total_time={args.seconds}", f"-seed={args.seed}", "-rss_limit_mb=1024", "-timeout=600"]
    options += ["-max_len=65536", "-print_final_stats=1"]
    mutator = {"custom_mutator": header_mutator} if args.kind in ("model", "update") else {}
    os.environ["PQNET_NUM_THREADS"] = "1"
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, **mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
