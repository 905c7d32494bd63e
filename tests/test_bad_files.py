"""Files that are missing, damaged or foreign, saves that fail, and bad input of the converters."""

import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from realdata import DATA, needs_data
from test_bad_input import NAN, NET, RECIPE, STATISTICS, TEXT, C, F, P, Row, U, X, check

import pqnet
from pqnet import Model, PQNetError, Statistics, calibrate, quantize

# -- files -----------------------------------------------------------------------------------------------------


def write_files() -> None:
    NET.save("model.h5")
    STATISTICS.save("statistics.h5")
    data = Path("model.h5").read_bytes()
    for name, content in {
        "text.h5": b"hello\n" * 1000,
        "empty.h5": b"",
        "cut.h5": data[:-5],
        "head.h5": data[:100],
        "version.h5": data[:6] + b"\x09" + data[7:],
        "byte.h5": data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        "old.pth": pickle.dumps({"weight": 1}),
    }.items():
        Path(name).write_bytes(content)
    with zipfile.ZipFile("new.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    np.save("x.npy", X)


FILES: list[tuple[str, Any, type[PQNetError], str]] = [
    ("missing", "missing.h5", P, "path: cannot read missing.h5: No such file"),
    ("folder", ".", P, r"path: cannot read \.: Is a directory"),
    ("inside a file", "model.h5/x", P, "path: cannot read model.h5/x: Not a directory"),
    ("no name", "", P, "path: expected a file name, got str ''"),
    ("none", None, P, "path: expected a file name, got NoneType None"),
    ("zero byte", "a\0b", P, "path: expected a file name, got str"),
    ("text", "text.h5", F, "text.h5: expected a pqnet file, got a file of another format"),
    ("empty", "empty.h5", F, "empty.h5: expected a pqnet file, got an empty file"),
    ("array", "x.npy", F, "x.npy: expected a pqnet file, got a file of another format"),
    ("truncated", "cut.h5", F, r"cut.h5: the file is damaged: expected \d+ bytes, got \d+; get a fresh copy"),
    ("head only", "head.h5", F, "head.h5: the file is damaged: truncated to 100 bytes"),
    ("version", "version.h5", F, "version.h5: expected format version 1 or 2, got version 9; update pqnet"),
    ("damaged", "byte.h5", F, "byte.h5: the file is damaged: its content does not match its checksum"),
    ("torch zip", "new.pth", F, r"new.pth: .*, got a zip archive \(a PyTorch checkpoint\?\); convert networks"),
    ("torch pickle", "old.pth", F, r"old.pth: .*, got a Python pickle \(an old PyTorch checkpoint\?\); convert"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "kind", "match"), [pytest.param(*row[1:], id=row[0]) for row in FILES])
@pytest.mark.parametrize("load", [pqnet.load, pqnet.load_statistics])
def test_bad_files(load: Callable[[Any], Any], path: Any, kind: type[PQNetError], match: str) -> None:
    write_files()
    check(lambda: load(path), kind, match)


def test_files_of_the_other_kind_say_what_opens_them() -> None:
    write_files()
    other = "expected a model file, got a statistics file; open it with pqnet.load_statistics"
    check(lambda: pqnet.load("statistics.h5"), F, other)
    check(lambda: pqnet.load_statistics("model.h5"), F, "expected a statistics file, got a model file; open it")


SAVES: list[tuple[str, Any, str]] = [
    ("no folder", "none/model.h5", "path: cannot write .*none/model.h5: No such file or directory"),
    ("folder", ".", "path: expected a file name, got .* which is a directory or a device"),
    ("device", "/dev/null", "path: expected a file name, got /dev/null, which is a directory or a device"),
    ("no name", "", "path: expected a file name, got str ''"),
    ("none", None, "path: expected a file name, got NoneType None"),
]


@pytest.mark.parametrize(("path", "match"), [pytest.param(*row[1:], id=row[0]) for row in SAVES])
@pytest.mark.parametrize("what", [NET, STATISTICS], ids=["model", "statistics"])
def test_bad_places_to_save_to(what: Model | Statistics, path: Any, match: str) -> None:
    check(lambda: what.save(path), P, match)
    assert not os.listdir()


# -- nothing half-written --------------------------------------------------------------------------------------


class DiskFullError(OSError):
    strerror = "No space left on device"


def unstorable() -> None:
    Model(replace(NET.graph, meta={"note": np.ones(3)})).save("model.h5")


@pytest.mark.parametrize(
    ("call", "broken", "match"),
    [
        pytest.param(unstorable, None, "header key 'note': expected plain data", id="content"),
        pytest.param(lambda: NET.save("model.h5"), "fsync", "cannot write .*No space left on device", id="disk full"),
        pytest.param(lambda: NET.save("model.h5"), "replace", "cannot write .*No space left on device", id="rename"),
    ],
)
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    call: Callable[[], Any], broken: str | None, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    TEXT.save("model.h5")
    before = Path("model.h5").read_bytes()

    def fail(*_: Any) -> None:
        raise DiskFullError

    if broken:
        monkeypatch.setattr(os, broken, fail)
    check(call, P, match)
    assert os.listdir() == ["model.h5"] and Path("model.h5").read_bytes() == before


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    TEXT.save("model.h5")
    before = Path("model.h5").read_bytes()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        NET.save("model.h5")
    assert os.listdir() == ["model.h5"] and Path("model.h5").read_bytes() == before


def test_a_failed_quantization_leaves_the_model_as_it_was() -> None:
    before = {name: param.copy() for name, param in NET.graph.params.items()}
    broken = iter([X, X[:, :2]])
    check(lambda: quantize(NET, RECIPE, broken, reestimate_norm=True), PQNetError, "input 'image': expected shape")
    check(lambda: quantize(NET, RECIPE, np.full_like(X, 3e38), reestimate_norm=True), PQNetError, "inputs of layer")
    assert NET.graph.params.keys() == before.keys()
    assert all(np.array_equal(NET.graph.params[name], array) for name, array in before.items())


def test_errors_of_the_users_own_iterable_come_out_as_they_are() -> None:
    def batches() -> Any:
        yield X
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        calibrate(NET, batches())
    assert np.isfinite(NET(X)).all()


# -- converters ------------------------------------------------------------------------------------------------


def converters() -> tuple[Any, Any]:
    return pytest.importorskip("torch"), pytest.importorskip("pqnet_converters")


def test_bad_modules() -> None:
    torch, conv = converters()
    x, net = torch.zeros(2, 8), torch.nn.Linear(8, 4)

    class Middle(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.kthvalue(x, 4)[0]

    class Broken(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("my own error")

    rows: list[Row] = [
        ("", lambda: conv.from_torch(None, x), P, r"module: expected a torch\.nn\.Module, got NoneType"),
        (
            "",
            lambda: conv.from_torch(torch.nn.Linear, x),
            P,
            r"module: expected a torch\.nn\.Module, got type",
        ),
        (
            "",
            lambda: conv.from_torch(net, np.zeros((2, 8))),
            P,
            "example_inputs: expected a tensor, .*got ndarray",
        ),
        ("", lambda: conv.from_torch(net, x[:0]), P, "example_inputs: expected one batch size along axis 0"),
        (
            "",
            lambda: conv.from_torch(net, x, input_names=[None]),
            P,
            "input_names: expected 1 different names",
        ),
        (
            "",
            lambda: conv.from_torch(Middle(), x),
            U,
            r"aten\.kthvalue.*: there is no rule for this operation",
        ),
        (
            "",
            lambda: conv.from_torch(Broken(), x),
            P,
            "module: expected one that torch.export takes, .*my own error",
        ),
        ("", lambda: conv.to_torch(None), P, "model: expected a pqnet.Model or a Graph, got NoneType"),
    ]
    for _, call, kind, match in rows:
        check(call, kind, match)


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


def test_bad_checkpoints_and_none_runs_code() -> None:
    torch, conv = converters()
    torch.save({"conv1": Hostile()}, "hostile.pth")
    Path("hostile.pkl").write_bytes(pickle.dumps({"conv1": Hostile()}, protocol=2))
    torch.save([1], "list.pth")
    torch.save({"conv1": torch.zeros(3)}, "flat.pth")
    torch.save({"conv1": {"weight": torch.zeros(3)}}, "nested.pth")
    Path("text.pth").write_text("hello")
    Path("empty.pth").write_bytes(b"")
    NET.save("model.h5")
    before = sorted(os.listdir())
    unreadable = (
        r"expected a PyTorch checkpoint of tensors and dicts, got a file that is damaged, of another format, or "
    )
    for load in (conv.from_kill_the_bits, conv.from_pqf):
        for name in ("hostile.pth", "hostile.pkl", "text.pth", "empty.pth", "model.h5"):
            check(lambda load=load, name=name: load(name, "resnet18"), F, f"{name}: {unreadable}")
        for path, match in (("missing.pth", "got missing.pth: .*No such file"), (".", "Is a directory")):
            check(lambda load=load, path=path: load(path, "resnet18"), P, f"path: expected .*{match}")
        check(lambda load=load: load(None, "resnet18"), P, "path: expected a file name, got NoneType")
        check(
            lambda load=load: load("list.pth", "resnet18"),
            F,
            "list.pth: expected a dict by layer name, got list",
        )
        for arch in ("vgg", None, ["resnet18"]):
            check(
                lambda load=load, arch=arch: load("flat.pth", arch),
                C,
                "arch: expected one of resnet18, resnet50",
            )
    check(
        lambda: conv.from_kill_the_bits("flat.pth", "resnet18"),
        F,
        "flat.pth: conv1: expected a dict, got Tensor",
    )
    check(
        lambda: conv.from_pqf("nested.pth", "resnet18"),
        F,
        "nested.pth: conv1: expected a float16 or float32 te",
    )
    check(lambda: conv.from_pqf("flat.pth", "resnet18"), F, "parameter 'conv1.weight' of resnet18 is missing")
    assert sorted(os.listdir()) == before  # no "pwned"


@needs_data
def test_published_checkpoints_with_the_wrong_reader_or_architecture() -> None:
    _, conv = converters()
    ktb, pqf = DATA / "checkpoints" / "ktb_resnet18_small_blocks.pth", DATA / "checkpoints" / "pqf_resnet18.pth"
    check(lambda: conv.from_kill_the_bits(pqf, "resnet18"), F, "conv1.weight: expected a dict, got Tensor")
    check(lambda: conv.from_pqf(ktb, "resnet18"), F, "expected a float16 or float32 tensor, got dict")
    check(lambda: conv.from_pqf(pqf, "resnet50"), F, r"layer1.0.conv1.weight: expected shape .* for resnet50")


def test_bad_activations() -> None:
    torch, conv = converters()
    good = {"stem": X, "conv": np.ones((6, 4, 6, 6), np.float32), "fc": np.ones((6, 8), np.float32)}
    assert conv.statistics_from_activations(NET, good).layers.keys() == good.keys()
    halves = {name: torch.tensor(a, dtype=torch.bfloat16, requires_grad=True) for name, a in good.items()}
    assert conv.statistics_from_activations(NET, halves).layers["fc"].count == 6
    rows: list[tuple[Any, str]] = [
        ({"stem": X, "fc": good["fc"]}, r"activations: expected an array for every layer, got none for \['conv'\]"),
        (good | {1: X}, r"activations: expected the layers \['stem', 'conv', 'fc'\], got also \[1\]"),
        (
            good | {"fc": good["fc"][:, :3]},
            r"activations\['fc'\]: expected an input whose last axis has size 8, got .*\(6, 3\)",
        ),
        (good | {"fc": good["fc"][0]}, r"activations\['fc'\]: expected 2 or 3 or 4 or 5 axes, got shape \(8,\)"),
        (good | {"fc": NAN}, r"activations\['fc'\]: expected finite float32 numbers"),
        (good | {"fc": [[1], [2, 3]]}, r"activations\['fc'\]: expected an array of numbers, got list"),
        (good | {"stem": X[:, :2]}, r"activations\['stem'\]: expected 3 input channels"),
        ([X], "activations: expected a dict or a path, got list"),
        ("missing.h5", "path: cannot read missing.h5"),
    ]
    for activations, match in rows:
        check(lambda a=activations: conv.statistics_from_activations(NET, a), P, match)
    check(
        lambda: conv.statistics_from_activations(None, good), PQNetError, "model: expected a pqnet.Model, got NoneType"
    )
