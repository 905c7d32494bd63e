"""Transformers with ids and masks as inputs run as kernels from end to end."""

import numpy as np
import pytest
import torch

from pqnet import PQNetError
from pqnet.runtime.builder import HostStep
from pqnet_converters import from_torch

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
