"""A token of a decoder with its cache: pqnet from codes and in float against transformers, both step by step.

The network has the shape of GPT-2 (or, with ``--llama``, of a small Llama with grouped queries) and random weights;
linear layers and embeddings are packed (d = 8, K = 256, random codes: speed does not depend on which). transformers
runs its own cache on PyTorch. All have read a prompt before, and take one more token in each run; the prompt is read
anew when the texts have grown by ``--tokens``.

Example: ``python bench/bench_decoder.py --prompt 128 --runs 48``, ``--layers 4 --llama``
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from common import emit, interleaved, machine
from nets import Draw

import pqnet
from pqnet_converters import from_transformers

TOLERANCE = 1e-4


def network(layers: int, llama: bool) -> Any:
    """Return a decoder with random weights."""
    torch.manual_seed(0)
    if not llama:
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=layers)).eval()
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_hidden_layers=layers)).eval()


def packed(model: pqnet.Model) -> pqnet.Model:
    """Return a model with random codes."""
    draw, params = Draw(0), dict(model.graph.params)
    for name in {node.params["weight"] for node in model.graph.nodes if node.op in ("linear", "embedding")}:
        if params[name].ndim == 2 and params[name].shape[1] % 8 == 0:
            params[name] = draw.packed(params[name].shape, 8, "channel", 1)
    return pqnet.Model(dataclasses.replace(model.graph, params=params))


def stepper(model: pqnet.Model, ids: np.ndarray, tokens: int, threads: int) -> Callable[[], np.ndarray]:
    """Return a function that reads one more token."""
    state: list[Any] = [None, tokens]

    def step() -> np.ndarray:
        if state[1] == tokens:
            state[:] = [pqnet.Decoder(model, threads=threads), 0]
            state[0].prefill(ids[:, :-1])
        state[1] += 1
        return state[0].step(ids[:, -1])

    return step


def torch_stepper(module: Any, ids: np.ndarray, tokens: int) -> Callable[[], np.ndarray]:
    """Return a function by which transformers reads one more token."""
    state: list[Any] = [None, tokens]
    given = torch.from_numpy(ids)

    @torch.inference_mode()
    def step() -> np.ndarray:
        if state[1] == tokens:
            state[:] = [module(given[:, :-1], use_cache=True, logits_to_keep=1).past_key_values, 0]
        state[1] += 1
        output = module(given[:, -1:], past_key_values=state[0], use_cache=True)
        return output.logits[:, -1].numpy()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--llama", action="store_true")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    emit("machine", **machine(["torch", "transformers"]) | {"threads": args.threads})
    torch.set_num_threads(args.threads)
    module = network(args.layers, args.llama)
    model = from_transformers(module)
    ids = np.random.default_rng(0).integers(0, 30000, (1, args.prompt + 1))
    engines = {
        "codes": stepper(packed(model), ids, args.tokens, args.threads),
        "float": stepper(model, ids, args.tokens, args.threads),
        "transformers": torch_stepper(module, ids, args.tokens),
    }
    first = {name: step() for name, step in engines.items()}
    apart = np.abs(first["float"] - first["transformers"]).max() / np.abs(first["transformers"]).max()
    if not apart <= TOLERANCE:
        raise AssertionError(f"logits are {apart:.2g} of the largest apart")
    seconds, others = interleaved(engines, args.runs, block=6)
    emit(
        "decoder",
        network=f"{'Llama' if args.llama else 'GPT-2'}, {args.layers} layers, after {args.prompt} tokens",
        ms={name: float(f"{1e3 * s:.4g}") for name, s in seconds.items()},
        codes_over_transformers=seconds["codes"] / seconds["transformers"],
        float_over_transformers=seconds["float"] / seconds["transformers"],
        other_load=others,
    )


if __name__ == "__main__":
    main()
