"""Enforces the import table of the design: which place may import what, deferred imports included."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from numba.core import config
from numba.core.dispatcher import Dispatcher

import pqnet.kernels
from pqnet.kernels import cache

ROOT = Path(__file__).parents[1]
DATA = {"pqnet._cached", "pqnet._check", "pqnet._html", "pqnet.codecs", "pqnet.errors", "numpy"}
PUBLIC = {
    f"pqnet.{name}" for name in ("codecs", "errors", "fit", "graph", "io", "pipeline", "processing", "runtime", "train")
}
PUBLIC |= {"pqnet"}  # the names of pqnet/__init__.py itself, not its other sub-packages
CONVERTER = PUBLIC - {"pqnet.fit", "pqnet.train"} | {"numpy", "pqnet._progress"}

# Place (a file, or a folder with all below it) -> what it may import besides itself and the standard library.
# A file's place is the longest that fits. A dotted third-party name allows that sub-module only.
TABLE: dict[str, set[str]] = {
    "pqnet/__init__.py": PUBLIC | {"pqnet.report"},
    "pqnet/__main__.py": {"pqnet.cli"},
    "pqnet/errors.py": set(),
    "pqnet/_check.py": {"pqnet.errors", "numpy"},
    "pqnet/_cached.py": set(),
    "pqnet/_cgroup.py": set(),
    "pqnet/_html.py": set(),
    "pqnet/_progress.py": {"numba", "tqdm"},
    "pqnet/_threads.py": {"pqnet._cgroup", "pqnet._check", "threadpoolctl"},
    "pqnet/kernels": {"llvmlite", "numba", "numpy"},
    "pqnet/codecs": {"pqnet._cached", "pqnet._check", "pqnet.errors", "numpy"},
    "pqnet/fit": DATA | {"pqnet._progress", "pqnet._threads", "pqnet.kernels"},
    "pqnet/graph": DATA,
    "pqnet/runtime": DATA | {"pqnet._threads", "pqnet.graph", "pqnet.io", "pqnet.kernels"},
    "pqnet/io": DATA | {"pqnet.graph"},
    "pqnet/io/hdf5_child.py": {"h5py", "numpy"},
    "pqnet/io/signature.py": DATA | {"cryptography"},
    "pqnet/pipeline": DATA
    | {f"pqnet.{name}" for name in ("_progress", "_threads", "fit", "graph", "io", "kernels", "runtime")}
    | {"yaml"},
    "pqnet/pipeline/cluster.py": {"dask", "distributed", "numpy"}
    | {f"pqnet.{name}" for name in ("_check", "_threads", "errors", "kernels")}
    | {"pqnet"},
    "pqnet/processing": DATA | {"PIL", "pqnet.graph", "pqnet.runtime", "tokenizers", "yaml"},
    "pqnet/train": PUBLIC | {"pqnet._progress", "pqnet._threads", "numpy", "torch"},
    "pqnet/cli": PUBLIC | {"pqnet._progress", "pqnet.demo", "pqnet.report", "numpy", "rich", "shtab"},
    "pqnet/report": PUBLIC | {"pqnet._progress", "numpy"},
    "pqnet/report/page.py": PUBLIC | {"pqnet._progress", "jinja2", "markupsafe"},
    "pqnet/report/plots.py": PUBLIC | {"matplotlib"},
    "pqnet/demo": PUBLIC | {"numpy"},
    "converters/pqnet_converters": set(),
    "converters/pqnet_converters/checkpoints": CONVERTER | {"torch"},
    "converters/pqnet_converters/core": CONVERTER,
    "converters/pqnet_converters/onnx": CONVERTER | {"google.protobuf", "onnx"},
    # The sizes in torch.export graphs are sympy expressions.
    "converters/pqnet_converters/torch": CONVERTER | {"pqnet.train", "safetensors", "sympy", "torch"},
    "converters/pqnet_converters/transformers": CONVERTER | {"torch", "transformers"},
}
FORBIDDEN = {"marshal", "pickle", "shelve"}  # they run code from files
DYNAMIC = {"__import__", "import_module"}

KERNEL_OPTIONS = "cache=True, nogil=True, error_model='numpy'"
JIT = {"cfunc", "generated_jit", "guvectorize", "jit", "jit_module", "njit", "stencil", "vectorize"}
# Without _nrt=False Numba counts references to every array that a function is given, with atomics: 60 ns a call.
# forceinline=True: functions of so many arguments that LLVM calls them, each time for 20 ns.
ALLOWED_JIT = {f"njit({KERNEL_OPTIONS}{more})" for more in ("", ", _nrt=False", ", _nrt=False, forceinline=True")}


def sources() -> list[str]:
    """Return every Python file of the packages, relative to the root."""
    return sorted(
        path.relative_to(ROOT).as_posix() for top in ("pqnet", "converters") for path in (ROOT / top).rglob("*.py")
    )


def place_of(file: str) -> str | None:
    """Return the longest place of the table that holds the file, or None."""
    fitting = [place for place in TABLE if file == place or file.startswith(place + "/")]
    return max(fitting, key=len, default=None)


def module_of(file: str) -> list[str]:
    """Return the dotted name of a file's module, in parts."""
    parts = list(Path(file).with_suffix("").parts)
    return parts[1:] if parts[0] == "converters" else parts


def imports(file: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and full dotted name of everything that a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module_of(file)[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in DYNAMIC:
            name = node.args[0] if node.args else None
            yield node.lineno, str(name.value) if isinstance(name, ast.Constant) else "an import by computed name"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pqnet":
            yield node.lineno, f"pqnet.{node.attr}"


def target_of(name: str) -> str:
    """Shorten an imported name of pqnet to its sub-package or top file, or to ``pqnet`` for a public name."""
    first, _, rest = name.partition(".")
    if first != "pqnet":
        return name
    child = rest.partition(".")[0]
    base = ROOT / "pqnet" / child
    return f"pqnet.{child}" if child and (base.is_dir() or base.with_suffix(".py").is_file()) else "pqnet"


def allowed(target: str, place: str) -> bool:
    """Tell whether the table lets a place import a target."""
    own = ".".join(module_of(place)[:2] if place.startswith("pqnet/") else module_of(place)[:1])
    top = target.partition(".")[0]
    if top in sys.stdlib_module_names:
        return top not in FORBIDDEN
    if top == "pqnet":
        return target in TABLE[place] or target == own
    return any(target == name or target.startswith(name + ".") for name in {*TABLE[place], own})


def violations(file: str, source: str) -> list[str]:
    """Return what a file imports against the table, readable."""
    place = place_of(file)
    if place is None:
        return [f"{file}: add the place to the table of tests/test_architecture.py (and to the design)"]
    found = ((line, target_of(name)) for line, name in imports(file, ast.parse(source)))
    return sorted({f"{file}:{line}: {place} may not import {t}" for line, t in found if not allowed(t, place)})


def jit_violations(file: str, source: str) -> list[str]:
    """Return the uses of Numba's compilers whose options are not literally those of the house."""
    tree = ast.parse(source)
    calls = {id(node.func): ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)]
    names = [(node, node.id if isinstance(node, ast.Name) else node.attr) for node in uses]
    written = [(node.lineno, calls.get(id(node), f"bare {name}")) for node, name in names if name in JIT]
    return [
        f"{file}:{line}: expected one of {sorted(ALLOWED_JIT)}, got {text}"
        for line, text in written
        if text not in ALLOWED_JIT
    ]


def test_every_file_imports_only_what_the_table_allows() -> None:
    found = [v for file in sources() for v in violations(file, (ROOT / file).read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_kernels_are_compiled_with_equal_literal_options() -> None:
    files = [file for file in sources() if file.startswith("pqnet/kernels/")]
    assert files
    found = [v for file in files for v in jit_violations(file, (ROOT / file).read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_nothing_outside_the_kernels_is_compiled() -> None:
    """Only what lies in pqnet.kernels is kept by `kernels.cache`, and is among the sources that name its folder."""
    for file in sources():
        if not file.startswith("pqnet/kernels/"):
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert not [name for _, name in imports(file, tree) if name.startswith("numba.") and name[6:] in JIT], file


def test_machine_code_of_every_kernel_is_kept_in_one_folder() -> None:
    folder, kernels = cache.folders()[0], 0
    for module in pkgutil.walk_packages(pqnet.kernels.__path__, "pqnet.kernels."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, Dispatcher):
                kernels += 1
                assert isinstance(value._cache, cache.KernelCache), f"{module.name}.{name}"
                assert value._cache.cache_path == str(folder)
    assert kernels > 50 or config.DISABLE_JIT


def test_one_file_asks_what_the_cpu_can_do() -> None:
    asking = {"get_host_cpu_features", "get_host_cpu_name", "CPU_NAME", "CPU_FEATURES", "ENABLE_AVX"}
    for file in sources():
        if file != "pqnet/kernels/cpu.py":
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            names = {
                node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in ast.walk(tree)
            }
            assert not names & asking, file


def test_nothing_takes_the_lock_of_functools_cached_property() -> None:
    # A forked process may inherit it taken, see pqnet/_cached.py.
    files = [file for file in (ROOT / "pqnet").rglob("*.py") if file.name != "_cached.py"]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "functools":
                assert "cached_property" not in {alias.name for alias in node.names}, file
            assert not (isinstance(node, ast.Attribute) and node.attr == "cached_property"), file


def test_kernel_files_import_only_each_other_from_pqnet() -> None:
    """Numba's cache does not see changes in other files; the folder of the cache is named after those of kernels."""
    for file in sources():
        if file.startswith("pqnet/kernels/") and not file.endswith("__init__.py"):
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert not [
                name
                for _, name in imports(file, tree)
                if f"{name}.".startswith("pqnet.") and not name.startswith("pqnet.kernels.")
            ], file


def field_numbers(source: str) -> list[int]:
    """Return the lines in which a step's record, the argument ``g`` of a kernel, is read by number."""
    tree = ast.parse(source)
    kernels = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and "g" in {a.arg for a in n.args.args}]
    reads = [n for kernel in kernels for n in ast.walk(kernel) if isinstance(n, ast.Subscript)]
    return sorted({n.lineno for n in reads if isinstance(n.value, ast.Name) and n.value.id == "g"})


def test_kernels_read_their_arguments_by_name() -> None:
    for file in sources():
        if file.startswith("pqnet/kernels/"):
            assert field_numbers((ROOT / file).read_text(encoding="utf-8")) == [], file
    assert field_numbers("def f(task, g, data):\n    return g.x + g.steps[0]\n") == []
    assert field_numbers("def f(task, g, data):\n    return g[3]\n") == [2]


@pytest.mark.parametrize(
    ("file", "source", "target"),
    [
        ("pqnet/graph/a.py", "import pqnet.fit", "pqnet.fit"),
        ("pqnet/graph/a.py", "def f():\n    from pqnet.fit import fit_pq", "pqnet.fit"),
        ("pqnet/graph/ops/a.py", "from ...fit import fit_pq", "pqnet.fit"),
        ("pqnet/graph/a.py", "from pqnet import fit", "pqnet.fit"),
        ("pqnet/graph/a.py", "from .. import fit", "pqnet.fit"),
        ("pqnet/graph/a.py", "import pqnet", "pqnet"),
        ("pqnet/graph/a.py", "import json, numpy.linalg, scipy.linalg", "scipy.linalg"),
        ("pqnet/graph/a.py", "import importlib\nimportlib.import_module('torch')", "torch"),
        ("pqnet/graph/a.py", "__import__(name)", "an import by computed name"),
        ("pqnet/cli/a.py", "import pqnet\npqnet.kernels.assign()", "pqnet.kernels"),
        ("pqnet/cli/a.py", "from pqnet._check import integer", "pqnet._check"),
        ("pqnet/io/model_file.py", "import h5py", "h5py"),
        ("pqnet/io/container.py", "import pickle", "pickle"),
        ("pqnet/kernels/a.py", "import numba, numpy, scipy", "scipy"),
        ("pqnet/errors.py", "import numpy", "numpy"),
        ("converters/pqnet_converters/torch/a.py", "from pqnet.fit import fit_pq", "pqnet.fit"),
    ],
)
def test_forbidden_imports_are_found(file: str, source: str, target: str) -> None:
    found = violations(file, source)
    assert len(found) == 1 and found[0].endswith(f"may not import {target}")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("pqnet/graph/ops/a.py", "from pqnet.graph.op import register\nfrom .conv import conv2d"),
        ("pqnet/graph/a.py", "from numpy.linalg import inv\nfrom numpy import linalg\nimport json, numpy as np"),
        ("pqnet/io/hdf5_child.py", "import h5py"),
        ("pqnet/cli/a.py", "import pqnet\npqnet.load\nfrom pqnet import quantize\nimport pqnet.graph"),
        (
            "converters/pqnet_converters/torch/a.py",
            "import torch.nn\nfrom pqnet_converters import c\nfrom . import b",
        ),
    ],
)
def test_allowed_imports_pass(file: str, source: str) -> None:
    assert violations(file, source) == []


@pytest.mark.parametrize("file", ["pqnet/new/a.py", "pqnet/helpers.py", "converters/other/a.py"])
def test_unknown_places_are_refused(file: str) -> None:
    assert "add the place to the table" in violations(file, "")[0]


@pytest.mark.parametrize(
    "source",
    [
        "@njit\ndef f(): ...",
        "@njit(cache=True)\ndef f(): ...",
        "@numba.njit(cache=True, nogil=True, error_model='numpy')\ndef f(): ...",
        "@njit(cache=True, nogil=True, error_model='numpy', fastmath=True)\ndef f(): ...",
        "@njit(cache=True, nogil=True, error_model='numpy', parallel=True)\ndef f(): ...",
        "@njit(cache=CACHE, nogil=True, error_model='numpy')\ndef f(): ...",
        "@njit(**OPTIONS)\ndef f(): ...",
        "f = njit(g)",
        "@vectorize(cache=True)\ndef f(): ...",
        "fast = functools.partial(njit, cache=True)",
    ],
)
def test_other_kernel_options_are_found(source: str) -> None:
    assert len(jit_violations("pqnet/kernels/a.py", source)) == 1


def test_house_kernel_options_pass() -> None:
    options = 'cache=True, nogil=True, error_model="numpy"'
    source = f"@njit({options})\ndef f(): ...\n@njit({options}, _nrt=False)\ndef g(): ..."
    assert jit_violations("pqnet/kernels/a.py", source) == []


def loaded(code: str, names: list[str]) -> list[str]:
    """Return which modules, or modules below them, a program imports."""
    code += f"\nimport sys\nprint(*[m for m in sys.modules if f'{{m}}.'.startswith({tuple(n + '.' for n in names)})])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_pqnet_stays_light() -> None:
    heavy = [
        "cryptography",
        "distributed",
        "jinja2",
        "matplotlib",
        "onnx",
        "pandas",
        "sklearn",
        "sympy",
        "torch",
        "transformers",
    ]
    assert loaded("import pqnet", heavy) == []


def test_importing_the_converters_loads_no_framework() -> None:
    assert (
        loaded(
            "import pqnet_converters\nassert {'from_onnx', 'from_torch'} <= set(dir(pqnet_converters))",
            ["onnx", "torch"],
        )
        == []
    )


def test_loading_and_running_a_network_imports_nothing_that_makes_networks_small() -> None:
    run = "import pqnet\nfrom pqnet.demo import model_path\npqnet.load(model_path())([[[[0.0] * 8] * 8]])"
    packages = ["pqnet.fit", "pqnet.kernels.fit", "pqnet.pipeline", "pqnet.processing", "pqnet.train", "pqnet.cli"]
    packages += ["pqnet.report", "h5py", "tqdm"]
    assert loaded(run, packages) == []


def test_running_kernels_that_are_kept_imports_nothing_that_compiling_needs() -> None:
    run = "import os\nos.environ['PQNET_TUNE'] = '0'\nimport pqnet\nfrom pqnet.demo import model_path\n"
    run += "pqnet.load(model_path())([[[[0.0] * 8] * 8]])"
    packages = ["numba.np.arrayobj", "numba.np.linalg", "numpy.f2py", "scipy.linalg"]
    loaded(run, packages)  # now they are kept
    assert loaded(run, packages) == []


def test_what_is_imported_later_is_there_from_the_start() -> None:
    code = """
import pqnet
later = ["KMeansResult", "Recipe", "Statistics", "assign", "calibrate", "fit", "load_statistics", "pipeline", "plan"]
assert set(later) | {"quantize", "weighted_kmeans", "load"} <= set(dir(pqnet))
try:
    pqnet.PQ(2, 2).fit("no numbers")
except pqnet.PQNetError as reason:  # of pqnet.fit
    print(reason)
assert all(getattr(pqnet, name) for name in later) and pqnet.plan is pqnet.pipeline.plan
try:
    pqnet.quantise
except AttributeError as reason:
    print(reason)
from pqnet import *
load, quantize, PQ
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    fit, attribute = done.stdout.splitlines()
    assert fit.startswith("weight: expected an array of real numbers")
    assert attribute == "module 'pqnet' has no attribute 'quantise'"


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse((ROOT / "pqnet" / "__init__.py").read_text(encoding="utf-8"))
    named = [alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(pqnet.__all__) == sorted(name for name in named if name)
