"""Transformers with ids and masks as inputs, also of two texts, and of experts; they run as kernels from end to end."""

import numpy as np
import pytest
import torch

from pqnet import PQNetError
from pqnet.runtime.builder import HostStep
from pqnet_converters import from_torch, from_transformers

transformers = pytest.importorskip("transformers")
SIZES = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def nets():
    bert = transformers.BertConfig(**SIZES, intermediate_size=64, max_position_embeddings=64)
    yield transformers.BertModel(bert)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    gpt2 = transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, n_positions=64, **ends)
    gpt2.use_cache = False
    yield transformers.GPT2Model(gpt2)


def test_nothing_is_left_to_numpy():
    rng = np.random.default_rng(0)
    tokens = {"input_ids": rng.integers(3, 100, (3, 12)), "attention_mask": np.ones((3, 12), np.int64)}
    tokens["attention_mask"][0, 8:] = 0
    torch.manual_seed(0)
    for net in nets():
        model = from_torch(net.eval(), {name: torch.from_numpy(a[:2]) for name, a in tokens.items()})
        for batch in (1, 3):
            inputs = {name: a[:batch] for name, a in tokens.items()}
            with torch.no_grad():
                want = net(**{name: torch.from_numpy(a) for name, a in inputs.items()})[0].numpy()
            np.testing.assert_allclose(next(iter(model.run(inputs).values())), want, atol=2e-6)
            assert not [s for s in model._engine.program(inputs).segments if isinstance(s, HostStep)]
        with pytest.raises(PQNetError, match=r"ids: expected entries in \[0, 100\), got range \[\d+, 100\]"):
            model.run({**inputs, "input_ids": np.full((3, 12), 100)})


def encoder_decoder(name):
    """Return a network that reads a text and writes another."""
    t = transformers
    t5 = t.T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=20, num_layers=2, num_heads=2, decoder_start_token_id=0)
    sizes = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    widths = {"d_model": 16, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "max_position_embeddings": 40}
    if name == "T5":
        return t.T5ForConditionalGeneration(t5)
    return t.BartForConditionalGeneration(t.BartConfig(vocab_size=60, **sizes, **widths))


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_networks_that_read_one_text_and_write_another(name):
    net = encoder_decoder(name)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.2)
    model = from_transformers(net.eval())
    for batch, read, written in ((2, 13, 6), (1, 4, 17)):
        inputs = {"input_ids": rng.integers(3, 60, (batch, read)), "attention_mask": np.ones((batch, read), np.int64)}
        inputs["attention_mask"][0, read - 2 :] = 0
        inputs["decoder_input_ids"] = rng.integers(3, 60, (batch, written))
        with torch.no_grad():
            want = net(**{name: torch.from_numpy(a) for name, a in inputs.items()})
        found = list(model.run(inputs).values())
        assert [x.shape for x in found] == [want.logits.shape, want.encoder_last_hidden_state.shape]
        for got, wanted in zip(found, (want.logits, want.encoder_last_hidden_state), strict=True):
            np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5 * float(wanted.abs().max()))


def test_experts_that_a_router_chooses():
    sizes = {**SIZES, "intermediate_size": 40, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
    experts = {"num_experts": 4, "moe_intermediate_size": 18, "shared_expert_intermediate_size": 16}
    torch.manual_seed(0)
    net = transformers.Qwen2MoeForCausalLM(transformers.Qwen2MoeConfig(**sizes, **experts)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    before = net.get_experts_implementation()
    model = from_transformers(net, cache=False)
    assert net.get_experts_implementation() == before
    net.set_experts_implementation("eager")  # experts one after the other, in parts whose sizes depend on data
    ids = np.random.default_rng(0).integers(3, 100, (3, 11))
    with torch.no_grad():
        want = net(torch.from_numpy(ids)).logits.numpy()
    got = next(iter(model.run({"input_ids": ids, "attention_mask": np.ones_like(ids)}).values()))
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
