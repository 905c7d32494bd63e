"""`pqnet convert torch` and what users met with other converters: free sizes, weights, half precision, folders."""

import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from test_from_torch import Fn, compare  # noqa: E402
from torch import nn  # noqa: E402

import pqnet  # noqa: E402
from pqnet import PQ, PQNetError  # noqa: E402
from pqnet.cli.main import main  # noqa: E402
from pqnet.train import attach  # noqa: E402
from pqnet_converters import from_torch  # noqa: E402
from pqnet_converters.torch.export import inference  # noqa: E402
from pqnet_converters.torch.weights import load_weights  # noqa: E402

MODULES = """
import torch
from torch import nn

class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding="same"), nn.Linear(4, 5)
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 5)
    def forward(self, ids, mask):
        mask = mask[..., None].float()
        return self.head((self.table(ids) * mask).sum(1) / mask.sum(1))

class Padded(nn.Module):  # padding is found from the ids
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(100, 8, padding_idx=0)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    def forward(self, ids):
        pad = ids.eq(0)
        return self.layers(self.table(ids), src_key_padding_mask=pad).masked_fill(pad[..., None], 0).sum(1)

def half():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).half()

def bfloat16():
    return half().bfloat16()

def double():
    return half().double()
"""


def run(line: str) -> int:
    """Return the exit code of a command."""
    return main(line.split())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("casenet.py").write_text(MODULES, encoding="utf-8")
    return tmp_path


CONVOLUTIONS = {
    "valid": (nn.Conv2d(4, 6, 3, padding="valid", stride=2, dilation=2), (2, 4, 9, 11)),
    "same": (nn.Conv2d(4, 6, (2, 4), padding="same"), (2, 4, 9, 11)),
    "same, one axis": (nn.Conv1d(4, 6, 4, padding="same", dilation=3), (2, 4, 17)),
    "same, three axes": (nn.Conv3d(2, 3, (2, 3, 4), padding="same"), (2, 2, 5, 6, 7)),
    "one number": (
        Fn(lambda m, x: F.conv2d(x, m.w, stride=[2], padding=[1]), w=nn.Parameter(torch.randn(6, 4, 3, 3))),
        (2, 4, 9, 11),
    ),
    "one number, transposed": (
        Fn(lambda m, x: F.conv_transpose2d(x, m.w, stride=[2]), w=nn.Parameter(torch.randn(4, 6, 3, 3))),
        (2, 4, 5, 6),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_forms_of_padding(name: str) -> None:
    torch.manual_seed(0)
    module, shape = CONVOLUTIONS[name]
    compare(from_torch(module, torch.randn(shape)), module, {"input": torch.randn(shape)})


def test_in_place_operations_are_those_of_their_results() -> None:
    """What is changed in place is seen by what shares its memory; a parameter never changes."""
    weight = nn.Parameter(torch.randn(3, 4))

    def changed(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = (x + 1).relu_().mul_(2)
        seen = y.view(-1, 2)
        y.add_(m.w.clone().mul_(3)[0])
        mask = x.new_zeros(3, 4)
        mask[:, 1:3] = 1
        return F.dropout(y, training=False) + seen.view(y.shape) + mask[:1] + m.w.sum()

    module, before = Fn(changed, w=weight), weight.detach().clone()
    compare(from_torch(module, torch.zeros(2, 4)), module, {"input": torch.randn(3, 4)})
    assert torch.equal(weight, before)


U8 = torch.tensor([[5, 200], [250, 0]], dtype=torch.uint8), torch.tensor([[10, 100], [10, 50]], dtype=torch.uint8)
I32 = (torch.tensor([[65536, 3], [1, 2]], dtype=torch.int32),)
WRAPPED = {
    "difference": (lambda a, b: (a - b).float(), U8),
    "sum": (lambda a, b: (a + b).float(), U8),
    "from a float": (lambda a: 255.0 - a, U8[:1]),
    "from an integer": (lambda a: (255 - a).float(), U8[:1]),
    "quotient": (lambda a: a / 255, U8[:1]),
    "mean": (lambda a: a.float().mean(), U8[:1]),
    "product of int32": (lambda a: a * 65536, I32),
    "int32 to uint8": (lambda a: (a * 300).to(torch.uint8).float(), I32),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_integers_wrap_as_their_dtype_does(name: str) -> None:
    function, inputs = WRAPPED[name]
    module = Fn(lambda m, *x: function(*x))
    model = from_torch(module, inputs)
    compare(model, module, dict(zip(model.inputs, inputs, strict=True)), 1e-7)


def test_running_sums_of_infinities_and_large_numbers() -> None:
    module = Fn(lambda m, p: torch.log(p).cumsum(1))  # log probabilities of all prefixes
    p = torch.tensor([[0.5, 0.25, 0.0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5, 0.5]])
    np.testing.assert_allclose(from_torch(module, p)(p.numpy()), module(p).numpy(), rtol=1e-6)
    sums, x = Fn(lambda m, x: x.cumsum(1)), torch.tensor([[1.0, 2.0, 3e38, 3e38, 1.0]])
    np.testing.assert_allclose(from_torch(sums, x)(x.numpy()), sums(x).numpy(), rtol=1e-6)


BIG, TOP, LOW = 2**53 + 1, torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min
LARGE = {
    "equal": lambda i: i == BIG,
    "less": lambda i: i < BIG,
    "sum": lambda i: i + BIG,
    "product": lambda i: i[:, 2:] * BIG,
    "filled": lambda i: i.masked_fill(i < 3, BIG),
    "least of the others": lambda i: i.masked_fill(i < 3, TOP).amin(1),
    "largest of the others": lambda i: i.masked_fill(i > 3, LOW).amax(1),
    "limited": lambda i: (i + 4).clamp(max=BIG),
    "chosen": lambda i: torch.where(i < 3, i, TOP),
}


@pytest.mark.parametrize("name", LARGE)
def test_integers_beyond_those_of_floats(name: str) -> None:
    module, i = Fn(lambda m, i: LARGE[name](i)), torch.tensor([[BIG, BIG - 1, 5], [1, 2, 3]])
    assert np.array_equal(from_torch(module, i)(i.numpy()), module(i).numpy())


@pytest.mark.parametrize("kind", ["half", "bfloat16", "double"])
def test_modules_of_any_precision_on_the_command_line(folder: Path, kind: str) -> None:
    assert run(f"convert torch casenet:{kind} --input 1x8 -o t.h5") == 0
    module = vars(__import__("casenet"))[kind]()
    loaded = pqnet.load("t.h5")
    assert loaded.inputs == {"input": ((None, 8), "float32")}
    assert loaded.size().dense == sum(p.numel() for p in module.parameters()) * 4


def test_text_encoders_with_padding_on_the_command_line(folder: Path) -> None:
    assert run("convert torch casenet:Padded --input 2x6:int64 -o t.h5") == 0
    module = __import__("casenet").Padded().eval()
    ids = torch.randint(1, 100, (3, 6))
    ids[1, 4:] = 0
    with inference(module):
        want = module(ids).numpy()
    np.testing.assert_allclose(pqnet.load("t.h5")(ids.numpy()), want, atol=1e-5)


def test_networks_of_any_size_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert torch casenet:Image --input 1x3xHxW --size H=16 --size W=24 -o image.h5") == 0
    out = capsys.readouterr().out
    assert "input input: (batch, 3, H, W), batch and H and W free" in out and "random unless it loads its own" in out
    assert run("convert torch casenet:Text --input ids=BxT:int64 --input mask=BxT:int64 -o text.h5") == 0
    (folder / "images").mkdir()
    (folder / "texts").mkdir()
    rng = np.random.default_rng(0)
    for i, n in enumerate((9, 14)):
        np.save(f"images/{i}.npy", rng.standard_normal((2, 3, n, n + 3), np.float32))
        ids = rng.integers(0, 50, (2, n))
        np.savez(f"texts/{i}.npz", ids=ids, mask=np.ones((2, n), bool), token_type_ids=0 * ids)
    assert run("run image.h5 --input images -o out") == 0
    for i in (0, 1):
        wanted = pqnet.load("image.h5")(np.load(f"images/{i}.npy"))
        assert np.array_equal(np.load(f"out/{i}.npy"), wanted)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("run text.h5 --input texts -o out") == 0
    assert "warning: inputs: the network does not read token_type_ids: ignored" in capsys.readouterr().err
    assert run("calibrate image.h5 --calibration images -o stats.h5") == 0
    assert pqnet.load_statistics("stats.h5").layers
    assert run("bench text.h5 --size T=5 --runs 1") == 0
    assert run("warmup image.h5 --size H=8 --size H=9") == 0
    assert "batches of 1, H 8, 9" in capsys.readouterr().out
    for line, message in {
        "bench text.h5 --size X=5": "--size: expected a free size among ['B', 'T'], got 'X'",
        "bench text.h5 --size T": "expected NAME=N such as tokens=64, got 'T'",
        "convert torch casenet:Image --input 1x3xHxW --size B=3 -o x.h5": "--size: expected names of free sizes in",
        "convert torch casenet:Image --input 1x3xHx-1 -o x.h5": "expected [NAME=]SHAPE such as",
        "run image.h5 --input images -o image.h5": "expected a folder for the outputs",
    }.items():
        assert run(line) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("form", ["plain", "state_dict", "nested", "parallel", "safetensors"])
def test_weights_in_the_forms_that_people_have(folder: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
    )
    state = {**source.state_dict(), "head.weight": torch.zeros(2)}
    path = "w.safetensors" if form == "safetensors" else "w.pth"
    if form == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    else:
        wrapped = {f"module.{name}": x for name, x in state.items()}
        made = {"state_dict": {"state_dict": state}, "nested": {"epoch": 3, "model": {"state_dict": state}}}
        torch.save({"plain": state, "parallel": {"model": wrapped}, **made}[form], path)
    load_weights(target, path)
    assert all(torch.equal(x, target.state_dict()[name]) for name, x in source.state_dict().items())
    assert capsys.readouterr().out == "weights: the module has no place for head.weight: left out\n"


def test_weights_that_do_not_fit(folder: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4))
    torch.save({"0.weight": torch.zeros(4, 3), "1.bias": torch.zeros(4)}, "w.pth")
    with pytest.raises(PQNetError, match="w.pth does not fit the module: it lacks 0.bias, and has 1.bias"):
        load_weights(module, "w.pth")
    torch.save({"epoch": 3}, "w.pth")
    with pytest.raises(PQNetError, match=r"expected a dict of tensors, or one below .*, got \['epoch'\]"):
        load_weights(module, "w.pth")


def test_modules_that_were_never_loaded() -> None:
    with torch.device("meta"):
        module = nn.Linear(8, 2)
    with pytest.raises(PQNetError, match="meta"):
        from_torch(module, torch.zeros(1, 8))
    with pytest.raises(PQNetError, match="module: expected weights with values, got 'linear' on the meta device"):
        attach(nn.ModuleDict({"linear": module}), {"linear": PQ(4, 4)})
