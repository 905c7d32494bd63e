"""`from_torch`: recurrent layers, and convolutions over one and three axes, against PyTorch's modules."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from test_from_torch import Fn, compare  # noqa: E402
from torch import nn  # noqa: E402

from pqnet import UnsupportedOpError  # noqa: E402
from pqnet.train import to_model  # noqa: E402
from pqnet_converters import from_torch  # noqa: E402

RECURRENT: dict[str, tuple[nn.Module, Callable[..., Any], list[str]]] = {
    "lstm": (
        nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True),
        lambda m, x: m.cell(x),
        [f"cell.weight_{kind}_l{i}{end}" for i in (0, 1) for end in ("", "_reverse") for kind in ("ih", "hh")],
    ),
    "lstm without biases": (
        nn.LSTM(6, 4, bias=False),
        lambda m, x: m.cell(x.transpose(0, 1))[0].transpose(0, 1),
        ["cell.weight_ih_l0", "cell.weight_hh_l0"],
    ),
    "initial states": (
        nn.LSTM(6, 4, batch_first=True),
        lambda m, x: m.cell(x, (x[:, :1, :4].transpose(0, 1), torch.zeros(1, x.shape[0], 4))),
        ["cell.weight_ih_l0", "cell.weight_hh_l0"],
    ),
    "gru": (
        nn.GRU(6, 4, 2, batch_first=True, dropout=0.5),
        lambda m, x: (m.cell(x)[0], m.cell(x, torch.ones(2, x.shape[0], 4))[1].transpose(0, 1)),
        [f"cell.weight_{kind}_l{i}" for i in (0, 1) for kind in ("ih", "hh")],
    ),
    "last state of a gru": (
        nn.GRU(6, 4),
        lambda m, x: m.cell(x.transpose(0, 1))[1].squeeze(0),
        ["cell.weight_ih_l0", "cell.weight_hh_l0"],
    ),
    "rnn": (
        nn.RNN(6, 4, nonlinearity="relu", batch_first=True, bidirectional=True),
        lambda m, x: m.cell(x)[0],
        [f"cell.weight_{kind}_l0{end}" for end in ("", "_reverse") for kind in ("ih", "hh")],
    ),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers(name: str) -> None:
    cell, function, layers = RECURRENT[name]
    net = Fn(lambda m, x: function(m, x), cell=cell).eval()
    model = from_torch(net, torch.zeros(1, 5, 6))
    assert list(model.graph.layers()) == layers
    kinds = [node.op for node in model.graph.layers().values()]
    assert kinds == ["linear", type(cell).__name__.lower()] * (len(layers) // 2)
    assert name == "initial states" or name == "gru" or "full" not in [node.op for node in model.graph.nodes]
    assert {n for n in model.graph.params if n.startswith("cell")} == {f"cell.{n}" for n, _ in cell.named_parameters()}
    x = torch.randn(3, 5, 6)
    with torch.no_grad():
        wanted = [t for out in flat_tensors(net(x)) for t in [out.numpy()]]
    got = model(x.numpy())
    for ours, theirs in zip(got if isinstance(got, tuple) else (got,), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def flat_tensors(output: Any) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else [t for part in output for t in flat_tensors(part)]


def test_projections_of_an_lstm_are_refused() -> None:
    with pytest.raises(
        UnsupportedOpError, match=r"aten.lstm.input in cell: expected a layer without .*, got proj_size"
    ):
        from_torch(
            Fn(lambda m, x: m.cell(x)[0], cell=nn.LSTM(6, 4, proj_size=2, batch_first=True)), torch.zeros(1, 5, 6)
        )


CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, 2, 2, dilation=2, groups=2), (4, 9), "conv1d"),
    (nn.Conv1d(4, 6, 4, padding="same", bias=False), (4, 9), "conv1d"),
    (nn.Conv3d(4, 6, (1, 2, 3), (2, 1, 1), (0, 1, 2), groups=2), (4, 3, 4, 5), "conv3d"),
    (nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2), (4, 5), "conv_transpose1d"),
    (nn.ConvTranspose3d(4, 6, (1, 2, 3), (2, 1, 1), (0, 1, 2)), (4, 3, 4, 5), "conv_transpose3d"),
]


@pytest.mark.parametrize(("layer", "shape", "op"), CONVOLUTIONS, ids=[c[-1] for c in CONVOLUTIONS])
def test_convolutions_over_one_and_three_axes(layer: nn.Module, shape: tuple[int, ...], op: str) -> None:
    model = from_torch(nn.Sequential(layer), torch.zeros(1, *shape))
    assert {name: node.op for name, node in model.graph.layers().items()} == {"0": op}
    compare(model, nn.Sequential(layer), {"input": torch.randn(3, *shape)})


def test_trained_recurrent_modules_go_back_into_their_model() -> None:
    net = Fn(lambda m, x: m.cell(x)[0], cell=nn.LSTM(6, 4, batch_first=True)).eval()
    model = from_torch(net, torch.zeros(1, 5, 6))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    compare(to_model(net, model), net, {"input": torch.randn(3, 5, 6)})
