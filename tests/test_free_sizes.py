"""Free sizes on import: any axis by name, what its size may be, and networks that are exported once for all sizes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import sympy  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from test_from_torch import Fn, compare  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._sympy.functions import FloorDiv, Mod  # noqa: E402

import pqnet  # noqa: E402
from pqnet import Model, PQNetError  # noqa: E402
from pqnet.graph import GraphBuilder, ValueInfo  # noqa: E402
from pqnet.graph.sizes import resolve_dim  # noqa: E402
from pqnet_converters import from_torch  # noqa: E402
from pqnet_converters.torch.sizes import _condition, size_text  # noqa: E402

X = torch.zeros(2, 3, 8, 12)
AXES = {2: "height", 3: "width"}

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "times a size": lambda x: x * x.shape[0] + x.shape[2],
    "times a quotient": lambda x: x * (x.shape[0] / 2) + x.shape[3] / x.shape[2],
    "minus a size": lambda x: x.shape[3] - x,
    "of the size": lambda x: torch.full((x.shape[0], 2), x.shape[3]),
    "clamped by a size": lambda x: (x * 9).clamp(max=x.shape[2]),
    "backwards": lambda x: x.flip(0, 2, 3),
    "rolled": lambda x: x.roll((3, -2), (2, 3)),
    "all rolled": lambda x: x[:1, :, :1, :1].roll(2),
    "outer product": lambda x: (x[:, None] * x[None]).reshape(-1),
    "positions": lambda x: x + torch.arange(x.shape[3]) * torch.arange(x.shape[2])[:, None],
    "triangle": lambda x: x[..., :1].expand(*x.shape[:3], x.shape[2]).triu(1),
    "halves": lambda x: x[:, :, : x.shape[2] // 2] + x[:, :, -(x.shape[2] // 2) :],
    "last by index": lambda x: x[torch.arange(x.shape[0]), :, -1],
    "gathered": lambda x: x.gather(3, x.argsort(3)),
    "below zero": lambda x: x[:, :, torch.arange(-2, 1)],
    "written into": lambda x: assigned(x.clone(), (slice(None), slice(None), slice(-3, None)), 1.0),
    "written by a mask": lambda x: assigned(x.clone(), x > 0, 3.0),
    "written by a mask of rows": lambda x: assigned(x.clone(), x[..., 0] > 0, -1.0),
    "written at places": lambda x: assigned(x.clone(), (torch.arange(x.shape[0]), x[:, :, 0, 0].argmax(1)), 5.0),
    "written into windows": lambda x: x + windows(x.new_zeros(x.shape[2], x.shape[3])),
    "cut as a tensor says": lambda x: x + x.new_ones(40)[20 - span(x) : span(x) + 20].sum() + span(x) * 2,
    "clamped as a tensor says": lambda x: (x * 20).clamp(-3, span(x) - 3),
    "padded to a multiple": lambda x: F.pad(x, (0, -x.shape[3] % 5, 0, -x.shape[2] % 4)),
    "windows": lambda x: F.pad(x, (0, -x.shape[3] % 4)).unflatten(3, (-1, 4)).mean(4),
    "windows that overlap": lambda x: x.unfold(2, 3, 2).sum(-1) + 1,
    "of the last axis": lambda x: x.unfold(3, 4, 3),
    "pooled to one": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "pooled to bins": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "twice as large": lambda x: F.interpolate(x, scale_factor=2),
    "half as large": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear"),
    "as large as the input": lambda x: F.interpolate(F.avg_pool2d(x, 2), x.shape[2:], mode="bilinear"),
    "at least four": lambda x: F.pad(x, (0, max(0, 16 - x.shape[3]))),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "split": lambda x: torch.cat(x.split([x.shape[2] - 3, 3], 2)[::-1], 2),
    "pixels": lambda x: F.pixel_shuffle(F.pixel_unshuffle(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), 2), 2),
}


def assigned(x: torch.Tensor, at: Any, value: Any) -> torch.Tensor:
    x[at] = value
    return x


def windows(x: torch.Tensor) -> torch.Tensor:
    x[:-4] = 1
    x[-4:, :-2] = 2
    return x


def span(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(min(x.shape[3], 10))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_free_sizes_give_what_pytorch_gives(name: str) -> None:
    torch.manual_seed(0)
    module = Fn(lambda _, x: FUNCTIONS[name](x))
    model = from_torch(module, X, dynamic=AXES)
    assert model.inputs == {"input": ((None, 3, None, None), "float32")}
    for shape in ((2, 3, 8, 12), (1, 3, 13, 9), (3, 3, 6, 7)):
        compare(model, module, {"input": torch.randn(shape)})


BRANCHES = {
    "a product": lambda h, w: h * w > 80,
    "a remainder of a product": lambda h, w: h * w % 16 == 0,
    "many terms": lambda h, w: sum((h + i) // (i + 2) + (w + 2 * i) // (i + 3) for i in range(12)) > 40,
}


@pytest.mark.parametrize("name", BRANCHES)
def test_sizes_at_which_a_network_takes_another_branch_are_refused(name: str) -> None:
    module = Fn(lambda _, x: x * 2 if BRANCHES[name](*x.shape[2:]) else x * 3)
    model = from_torch(module, X, dynamic=AXES)
    (condition,) = model.graph.conditions
    exported, answers = BRANCHES[name](*X.shape[2:]), set()
    for size in ((8, 12), (16, 16), (4, 6), (7, 9), (5, 7)):
        x = torch.randn(2, 3, *size)
        answers.add(same := BRANCHES[name](*size) == exported)
        if same:
            compare(model, module, {"input": x})
        else:
            with pytest.raises(PQNetError, match=f"expected sizes at which {re.escape(condition)} is not negative"):
                model(x.numpy())
    assert answers == {True, False}


def test_padded_sizes_are_short_expressions() -> None:
    symbol = sympy.Symbol("s0", positive=True, integer=True)
    padded, number = symbol, 0
    for _ in range(5):  # as a network of windows has them, halved between its stages
        padded = FloorDiv(padded + Mod(4 - Mod(padded, 4), 4) + Mod(padded, 2), 2)
    text = size_text(padded, {"s0": "n"})
    assert text is not None and len(text) < 1000
    for n in range(1, 60):
        number = n
        for _ in range(5):
            number = (number + (4 - number % 4) % 4 + number % 2) // 2
        assert resolve_dim(text, {"n": n}) == number
    assert size_text(symbol + Mod(symbol, 2), {"s0": "n"}) == "((-2)*(((-1)*n)//2))"


def test_conditions_that_only_a_batch_of_one_fails() -> None:
    batch, n = (sympy.Symbol(name, positive=True, integer=True) for name in ("s0", "s1"))
    names = {"s0": "batch", "s1": "n"}
    rows = 4 * FloorDiv(n + Mod(4 - Mod(n, 4), 4), 4)
    assert _condition(sympy.Gt(batch * rows, rows), names) is None
    assert _condition(sympy.Ne(batch * rows, rows), names) is None
    assert _condition(sympy.Gt(batch * (n - 8), n - 8), names) == "(batch*((-8)+n))-(((-8)+n))-1"  # of either sign


def test_a_length_that_the_code_of_a_module_counts() -> None:
    module = Fn(lambda _, x: x + torch.tensor(list(range(x.shape[2]))))
    with pytest.raises(
        PQNetError, match="every size of 'width', got one whose code makes it the constant 8; leave 'wi"
    ):
        from_torch(module, torch.zeros(2, 3, 8), dynamic={2: "width"})


def test_names_of_sizes_and_forms_of_dynamic() -> None:
    module = Fn(lambda _, ids, mask: ids * mask)
    ids, mask = torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
    wanted = {"ids": ("rows", "tokens"), "mask": ("rows", "tokens")}
    tokens = torch.export.Dim("tokens", max=9)
    axes = {0: "rows", 1: "tokens"}
    for dynamic in ({"ids": axes, "mask": axes}, [axes, axes], [("rows", tokens), {-2: "rows", -1: tokens}]):
        graph = from_torch(module, [ids, mask], input_names=["ids", "mask"], dynamic=dynamic).graph
        assert {n: i.shape for n, i in graph.inputs.items()} == wanted and graph.symbols == {"rows": 2, "tokens": 5}
    assert graph.conditions == ("9-tokens",)
    graph = from_torch(Fn(lambda _, x: x + 1), torch.zeros(1, 4, 1), dynamic={"input": {1: "n", 2: "m", 0: None}}).graph
    assert graph.inputs["input"].shape == (1, "n", "m") and graph.symbols == {"n": 4, "m": 2}


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"x": {1: "n"}}, r"dynamic: expected the names of inputs, \['input'\], got 'x'"),
        ({"input": {4: "n"}}, r"dynamic: expected a dict from axes of input 'input', of shape \(2, 3, 8, 12\)"),
        ({"input": "n"}, "dynamic: expected a dict from axes"),
        ({"input": {1: "1n"}}, "dynamic: expected a name or a torch.export.Dim for axis 1 of input 'input', got '1n'"),
        ([{}, {}], r"dynamic: expected free axes for the inputs \['input'\], got"),
        ({1: "batch"}, "example_inputs: expected one batch size"),
        ({1: "n", 2: "n"}, "example_inputs: expected one size of 'n', at least 1, got {\"axis 1 of 'input'\": 3, "),
        ({1: "channels"}, "every size of 'channels', got one whose code makes it the constant 3; leave 'channels' out"),
    ],
)
def test_refused_dynamic(dynamic: Any, message: str) -> None:
    with pytest.raises(PQNetError, match=message):
        from_torch(nn.Conv2d(3, 4, 1), X, dynamic=dynamic)


def test_sizes_that_a_network_is_not_right_for_are_refused(tmp_path: Path) -> None:
    """Of a table of positions, of windows, and of a branch that was not taken."""
    table = nn.Parameter(torch.randn(10, 4))
    module = Fn(lambda m, x: x + m.table[: x.shape[1]] * (2 if x.shape[1] > 4 else 3), table=table)
    from_torch(module, torch.zeros(2, 6, 4), dynamic={1: "tokens"}).save(tmp_path / "net.h5")
    model = pqnet.load(tmp_path / "net.h5")
    compare(model, module, {"input": torch.randn(1, 9, 4)})
    for tokens in (3, 12):
        with pytest.raises(
            PQNetError, match=f"expected sizes at which .*tokens.* is not negative, got tokens {tokens}"
        ):
            model(np.zeros((1, tokens, 4), np.float32))
    with pytest.raises(PQNetError, match="converted for this size only: leave the axis free there"):
        model(np.zeros((1, 9, 5), np.float32))


def test_products_that_are_scaled_have_the_factors_of_their_own_size() -> None:
    """The engine keeps constants for all input sizes of a model; a scaled product has a free number of outputs."""
    module = Fn(lambda _, x: torch.softmax((x @ x.transpose(1, 2)) * 0.3, 2))
    model = from_torch(module, torch.zeros(2, 6, 4), dynamic={1: "tokens"})
    for tokens in (5, 23, 12):
        compare(model, module, {"input": torch.randn(2, tokens, 4)})


def test_parts_of_an_input_beside_parts_without_elements() -> None:
    """NumPy joins them; it reads a part of the input from where kernels would."""
    b = GraphBuilder({"x": ValueInfo((2, "n"))}, {"n": 4})
    parts = b.add("slice", "x", axis=1, stop="n-1"), b.add("slice", "x", axis=1, start="n")
    model = Model(b.build({"y": b.add("concat", *parts, axis=1)}))
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    assert np.array_equal(model(x), x[:, :5])


def test_position_biases_stay_tables() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(32, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            places = torch.arange(x.shape[1])
            distance = (places[:, None] - places).clamp(-16, 15) + 16
            return x[:, None, :, None] + self.table(distance).permute(2, 0, 1)

    module = Biased()
    for dynamic in (None, {1: "tokens"}):
        model = from_torch(module, torch.zeros(2, 64), dynamic=dynamic)
        assert sum(p.size for p in model.graph.params.values() if p.dtype.kind == "f") == 32 * 8
        compare(model, module, {"input": torch.randn(2, 64)})
        assert list(model.graph.layers()) == ["table"]


CONFIG = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}


def text_networks() -> dict[str, Callable[[], nn.Module]]:
    t = pytest.importorskip("transformers")
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {
        "bert": lambda: t.BertModel(t.BertConfig(vocab_size=50, **CONFIG)),
        "albert": lambda: t.AlbertModel(t.AlbertConfig(vocab_size=50, **{**CONFIG, "num_hidden_layers": 3})),
        "deberta": lambda: t.DebertaV2Model(
            t.DebertaV2Config(vocab_size=50, **CONFIG, relative_attention=True, pos_att_type=["p2c", "c2p"])
        ),
        "deberta 1": lambda: t.DebertaModel(
            t.DebertaConfig(
                vocab_size=50,
                **CONFIG,
                relative_attention=True,
                pos_att_type=["p2c", "c2p"],
                max_relative_positions=10,
            )
        ),
        "t5": lambda: t.T5EncoderModel(
            t.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=20, num_layers=1, num_heads=2)
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, **ids)),
        "llama": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(vocab_size=50, **CONFIG, num_key_value_heads=1, tie_word_embeddings=True, **ids)
        ),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["bert", "albert", "deberta", "deberta 1", "t5", "gpt2", "llama"])
def test_text_networks_take_texts_of_any_length(name: str) -> None:
    torch.manual_seed(0)
    module = text_networks()[name]().eval()
    axes = {0: "batch", 1: "tokens"}

    def draw(batch: int, tokens: int) -> dict[str, torch.Tensor]:
        mask = torch.ones(batch, tokens, dtype=torch.int64)
        mask[0, tokens * 2 // 3 :] = 0
        return {"input_ids": torch.randint(3, 50, (batch, tokens)), "attention_mask": mask}

    model = from_torch(module, draw(2, 9), dynamic={"input_ids": axes, "attention_mask": axes})
    assert model.graph.symbols == {"batch": 2, "tokens": 9}
    for batch, tokens in ((1, 14), (3, 5)):
        inputs = draw(batch, tokens)
        with torch.no_grad():
            wanted = module(**inputs)[0].numpy()
        given = {n: x.numpy() for n, x in inputs.items()} | {"token_type_ids": np.zeros((batch, tokens), np.int64)}
        given["attention_mask"] = given["attention_mask"].astype(bool)
        got = model(**given)
        np.testing.assert_allclose(got[0] if isinstance(got, tuple) else got, wanted, atol=1e-4 * np.abs(wanted).max())
    if "deberta" in name:  # what its projections make of the table of positions is computed once
        return
    floats = {x.data_ptr(): x.numel() for x in module.parameters()}  # tied and shared ones once
    assert sum(p.size for p in model.graph.params.values() if p.dtype.kind == "f") <= sum(floats.values()) + 100


def test_caches_of_decoders_are_left_out_with_a_warning() -> None:
    module = text_networks()["gpt2"]()
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.warns(UserWarning, match=r"outputs left out: .*past_key_values.* \(DynamicCache\) .*use_cache=False"):
        model = from_torch(module, {"input_ids": ids})
    assert model.outputs == {"output": ((None, 4, 50), "float32")}


def test_a_forward_of_any_keywords() -> None:
    class Any_(nn.Module):
        def forward(self, scale: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
            return scale * others["left"] - others["right"]

    inputs = {name: torch.randn(2, 3) for name in ("right", "scale", "left")}
    module = Any_()
    model = from_torch(module, inputs, dynamic={name: {1: "n"} for name in inputs})
    assert list(model.inputs) == list(inputs) and "forward" not in vars(module)
    compare(model, module, {name: torch.randn(4, 5) for name in inputs}, keywords=True)


def test_what_tokenizers_give() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 8)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            mask = attention_mask[..., None].float()
            return (self.table(input_ids) * mask).sum(1) / mask.sum(1)

    module = Mean()
    ids, mask = torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": mask}
    model = from_torch(module, inputs, dynamic={n: {1: "tokens"} for n in inputs})
    wanted = module(ids, mask).detach().numpy()
    for kind in (bool, np.int32, np.uint8):
        given = {"attention_mask": mask.numpy().astype(kind), "input_ids": ids.numpy().astype(np.int32)}
        np.testing.assert_allclose(model(**given), wanted, rtol=1e-5)
    with pytest.warns(UserWarning, match="the network does not read token_type_ids: ignored"):
        model(**given, token_type_ids=np.zeros((2, 7), np.int64))
    with pytest.raises(PQNetError, match="input 'input_ids': expected an array of integers, got bool"):
        model(mask.numpy().astype(bool), mask.numpy())
    model = from_torch(Fn(lambda _, x, m: torch.where(m, x, 0)), [X, X > 0])
    assert model(X.numpy(), np.ones(X.shape, np.int64)).shape == X.shape
