"""Decoders with a cache of keys and values against transformers: token by token, float and from codes."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
t = pytest.importorskip("transformers")
import pqnet  # noqa: E402
from pqnet import PQ, Decoder, PQNetError  # noqa: E402
from pqnet.demo import model_path  # noqa: E402
from pqnet.graph import GraphBuilder, ValueInfo  # noqa: E402
from pqnet.graph.heads import share_heads  # noqa: E402
from pqnet.graph.op import get_op  # noqa: E402
from pqnet.runtime.decoder import _capacity  # noqa: E402
from pqnet_converters import from_torch, from_transformers  # noqa: E402

ENDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **ENDS}
LLAMA = {**SIZES, "intermediate_size": 40, "num_key_value_heads": 2, "max_position_embeddings": 64}
NETS = {
    "GPT2": {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **ENDS},
    "Llama": LLAMA,
    # No code was written against these; one layer is enough.
    "Mistral": {**LLAMA, "sliding_window": 6, "num_hidden_layers": 1},  # a window shorter than the text
    "OPT": {**SIZES, "num_hidden_layers": 1, "ffn_dim": 37, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "GPTNeoX": {**SIZES, "num_hidden_layers": 1, "intermediate_size": 37, "max_position_embeddings": 64},
    "Bloom": {"vocab_size": 99, "hidden_size": 32, "n_layer": 1, "n_head": 4, **ENDS},  # slopes, no positions
}


def make(name: str):
    """Return a small decoder with random weights; larger ones than usual, so that tokens differ."""
    torch.manual_seed(0)
    config = getattr(t, f"{name}Config")(**NETS[name])
    module = getattr(t, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return module


MADE: dict = {}


def both(name: str):
    """Return a module and its model, made once."""
    if name not in MADE:
        module = make(name)
        MADE[name] = module, from_transformers(module)
    return MADE[name]


def theirs(module, ids: np.ndarray, mask: np.ndarray | None = None, new: int = 12) -> np.ndarray:
    """Return how transformers continues texts by the most likely tokens."""
    mask = np.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        made = module.generate(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), max_new_tokens=new, do_sample=False
        )
    return made.numpy()


@pytest.mark.parametrize("name", NETS)
def test_decoders_give_the_logits_and_texts_of_transformers(name: str) -> None:
    module, model = both(name)
    ids = np.random.default_rng(0).integers(3, 99, (2, 20))
    with torch.no_grad():
        cache, want = None, []
        for part in (ids[:, :7], *np.split(ids[:, 7:], 13, 1)):
            output = module(torch.from_numpy(part), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            want.append(output.logits.numpy())
    decoder = Decoder(model, threads=1)
    got = [decoder.prefill(ids[:, :7], logits="all"), *(decoder.step(ids[:, i])[:, None] for i in range(7, 20))]
    largest = max(np.abs(w).max() for w in want)
    for ours, other in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5 * largest)
    assert decoder.length == 20
    mask = np.ones_like(ids)
    mask[1, :5] = 0
    for seen in (None, mask):
        assert np.array_equal(Decoder(model).generate(ids, 12, mask=seen), theirs(module, ids, seen))


def test_grouped_queries_read_keys_and_values_without_copies() -> None:
    module, model = both("Llama")
    ids = np.random.default_rng(2).integers(3, 99, (2, 20))
    with torch.no_grad():
        want = module(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(Decoder(model).prefill(ids, logits="all"), want, atol=1e-5 * np.abs(want).max())
    sizes = {**model.graph.symbols, **dict.fromkeys(model.graph.symbols, 9)}
    shared = share_heads(model.graph, sizes)
    (infos, nodes), before = (shared.infer_shapes(sizes), shared.nodes), model.graph.nodes
    attention = [node for node in nodes if node.op == "attention"]
    assert [infos[v].shape[1:3] for node in attention for v in node.inputs[:3]] == [(2, 2), (2, 1), (2, 1)] * 2
    assert sum(node.op == "expand" for node in before) - sum(node.op == "expand" for node in nodes) == 4


@pytest.mark.parametrize("queries", [1, 3, 20])
@pytest.mark.parametrize("mask", [None, (2, 1, 1), (2, 6, 1), (1, 1), ()])
def test_attention_of_shared_heads(queries: int, mask: tuple[int, ...] | None) -> None:
    b = GraphBuilder(
        {"q": ValueInfo(("n", 6, queries, 8)), "k": ValueInfo(("n", 2, 9, 8)), "v": ValueInfo(("n", 2, 9, 5))}, {"n": 2}
    )
    wide = []
    for name, size in (("k", 8), ("v", 5)):
        apart = b.add("expand", b.add("reshape", name, shape=("n", 2, 1, 9, size)), shape=("n", 2, 3, 9, size))
        wide.append(b.add("reshape", apart, shape=("n", 6, 9, size)))
    rng = np.random.default_rng(0)
    masks = [] if mask is None else [b.add("constant", params={"value": rng.random((*mask, 9)).astype(np.float32)})]
    graph = b.build({"y": b.add("attention", "q", *wide, *masks), "k": wide[0]})
    inputs = {n: rng.standard_normal([s if s != "n" else 2 for s in i.shape], np.float32) for n, i in b.inputs.items()}
    got = pqnet.Model(graph).run(inputs)
    repeated = [np.repeat(inputs[name], 3, 1) for name in ("k", "v")]
    added = [graph.params[node.params["value"]] for node in graph.nodes if node.op == "constant"]
    want = get_op("attention").evaluate([inputs["q"], *repeated, *added], {}, {"scale": None, "causal": False})
    np.testing.assert_allclose(got["y"], want, atol=1e-5)
    np.testing.assert_array_equal(got["k"], repeated[0])


def test_norms_without_means_are_one_node() -> None:
    """As transformers writes them out, and whole, as PyTorch has them since 2.4."""
    _, model = both("Llama")
    ops = [node.op for node in model.graph.nodes]
    assert ops.count("rms_norm") == 5
    assert not {"rsqrt", "pow"} & set(ops)
    module = torch.nn.Sequential(torch.nn.RMSNorm(8, eps=1e-3), torch.nn.RMSNorm((4, 8), elementwise_affine=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.randn(8))
    x = torch.randn(3, 4, 8)
    whole = from_torch(module, x)
    assert [node.op for node in whole.graph.nodes] == ["rms_norm", "rms_norm"]
    np.testing.assert_allclose(whole(x.numpy()), module(x).detach().numpy(), atol=1e-5)


def test_a_text_goes_on_in_parts_and_ends_where_it_is_at_its_end() -> None:
    module, model = both("GPT2")
    ids = np.random.default_rng(1).integers(3, 99, (2, 30))
    whole, parts = Decoder(model), Decoder(model)
    want = whole.prefill(ids, logits="all")
    got = np.concatenate([parts.prefill(ids[:, a:b], logits="all") for a, b in ((0, 1), (1, 12), (12, 30))], 1)
    np.testing.assert_allclose(got, want, atol=1e-4)
    ends = Decoder(model).generate(ids, 8, stop=())
    stop = int(ends[0, 33])
    end = 30 + ends[0, 30:].tolist().index(stop) + 1
    assert np.array_equal(Decoder(model).generate(ids[:1], 8, stop=stop), ends[:1, :end])
    module.generation_config.eos_token_id = stop
    try:
        assert np.array_equal(Decoder(model).generate(ids, 8, stop=[stop]), theirs(module, ids, new=8))
    finally:
        module.generation_config.eos_token_id = ENDS["eos_token_id"]
    assert np.array_equal(Decoder(model).generate(ids[0], 3), Decoder(model).generate(ids[:1], 3))


@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_packed_decoders_run_step_by_step_from_codes(name: str, tmp_path: Path) -> None:
    """They give what the network with decoded weights gives; tied tables are stored once."""
    _, model = both(name)
    ids = np.random.default_rng(2).integers(3, 99, (16, 24))
    inputs = Decoder(model).inputs(ids)
    small = pqnet.quantize(model, {"default": PQ(k=16, d=4)}, inputs, seed=0, progress=False)
    packed = {n: p for n, p in small.graph.params.items() if isinstance(p, pqnet.Packed)}
    tables = {n.params["weight"] for n in small.graph.nodes if n.op == "embedding"}
    heads = {n.params["weight"] for n in small.graph.nodes if n.op == "linear" and "lm_head" in n.name}
    assert tables | heads <= packed.keys()
    assert (heads <= tables) == (name == "GPT2")
    small.save(tmp_path / "small.h5")
    decoded = {**small.graph.params, **{n: p.decode() for n, p in packed.items()}}
    want = Decoder(pqnet.Model(dataclasses.replace(small.graph, params=decoded)))
    got = Decoder(pqnet.load(tmp_path / "small.h5"))
    assert np.array_equal(got.generate(ids[:3], 8), want.generate(ids[:3], 8))
    logits = want.step(ids[:3, 0])
    np.testing.assert_allclose(got.step(ids[:3, 0]), logits, atol=1e-5 * np.abs(logits).max())


def test_few_programs_are_made() -> None:
    _, model = both("Llama")
    model = pqnet.Model(model.graph)
    decoder = Decoder(model)
    decoder.generate([[5, 6, 7]], 45, stop=())
    assert decoder.length == 47
    assert len(model._engine._programs) == 5  # the prompt, then up to 16, 24, 32 and 48 earlier tokens
    sizes = [_capacity(n) for n in range(1, 5000)]
    assert all(size >= n and size <= max(1.5 * n, 16) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 20


def test_what_a_decoder_refuses() -> None:
    _, model = both("GPT2")
    decoder = Decoder(model)
    with pytest.raises(PQNetError, match="model: expected a decoder with a cache, .*from_transformers makes one"):
        Decoder(pqnet.load(model_path()))
    for ids, reason in (
        ([[1.5]], "ids"),
        (np.zeros((1, 0), int), "ids: expected tokens of shape"),
        ([[99]], r"entries in \[0, 99\)"),
    ):
        with pytest.raises(PQNetError, match=reason):
            decoder.prefill(ids)
    with pytest.raises(PQNetError, match=r"mask: expected zeros and ones of shape \(1, 3\)"):
        decoder.prefill([[5, 6, 7]], [[1, 1]])
    with pytest.raises(PQNetError, match="logits: expected"):
        decoder.prefill([[5]], logits="first")
    with pytest.raises(PQNetError, match="ids: expected one token for each text"):
        decoder.step([[5]])
    with pytest.raises(PQNetError, match="ids: expected at most 64 tokens in a text, .* got 65; begin again"):
        decoder.prefill(np.full((1, 65), 5))
    decoder.prefill([[5, 6]])
    with pytest.raises(PQNetError, match="ids: expected 1 texts, as before, got 2"):
        decoder.step([5, 6])
    assert decoder.length == 2


def test_a_module_in_half_precision_stays_as_it_is() -> None:
    config = t.GPT2Config(**{**NETS["GPT2"], "n_layer": 1})
    module = t.GPT2LMHeadModel(config).half().train()
    model = from_transformers(module)
    assert module.training and module.dtype == torch.float16
    assert all(info.dtype in ("int64", "float32") for info in model.graph.inputs.values())
    with torch.no_grad():
        want = module.float().eval()(torch.tensor([[5, 6, 7]])).logits.numpy()
    np.testing.assert_allclose(Decoder(model).prefill([[5, 6, 7]], logits="all"), want, atol=1e-5)


def test_networks_without_a_cache() -> None:
    module = make("Llama")
    ids = np.random.default_rng(0).integers(3, 99, (3, 11))
    model = from_transformers(module, cache=False)
    assert list(model.inputs) == ["input_ids", "attention_mask"]
    with torch.no_grad():
        want = module(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(model(ids, np.ones_like(ids)), want, atol=1e-4)
    bert = t.BertModel(t.BertConfig(**SIZES, intermediate_size=37)).eval()
    assert list(from_transformers(bert).inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    with pytest.raises(PQNetError, match="cache: expected False for BertModel"):
        from_transformers(bert, cache=True)
    with pytest.raises(PQNetError, match="source: expected a transformers.PreTrainedModel or the folder of one"):
        from_transformers(torch.nn.Linear(2, 2))


def test_a_decoder_by_from_torch_says_how_to_keep_the_cache() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        from_torch(make("GPT2"), {"input_ids": torch.zeros(1, 8, dtype=torch.int64)})
    assert any("from_transformers keeps it" in str(w.message) for w in said)
