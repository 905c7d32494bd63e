"""The cache of a decoder as plain arrays: keys and values of earlier tokens go in, those of new tokens come out."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from pqnet import PQNetError
from pqnet_converters.torch.export import inference, replaced_forward

__all__ = ["cache_shapes", "decoder_examples", "with_arrays"]

BATCH, TOKENS, PAST = 2, 5, 7  # sizes of the examples; different ones, so that none is taken for another
Shapes = list[tuple[tuple[int, int], tuple[int, int]]]  # heads and features of keys and of values, by layer


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """The cache of a layer that remembers what was added to it."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.new: tuple[torch.Tensor, ...] = ()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.new = key_states, value_states
        return super().update(key_states, value_states, *args, **kwargs)


def cache_shapes(module: Any) -> Shapes:
    """Return heads and features of the keys and values that each layer keeps, nothing for a network without a cache."""
    with inference(module):
        ids = torch.ones((1, TOKENS), dtype=torch.int64)
        output = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    if getattr(output, "past_key_values", None) is None:
        return []
    layers = getattr(output.past_key_values, "layers", None)
    kept = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers or ()]
    shapes = [tuple(tuple(x.shape) if isinstance(x, torch.Tensor) else () for x in pair) for pair in kept]
    plain = (len(shape) == 4 and shape[0] == 1 and shape[2] == TOKENS for pair in shapes for shape in pair)
    if not shapes or not all(plain):
        kinds = sorted({type(layer).__name__ for layer in layers or ()}) or type(layers).__name__
        raise PQNetError(
            f"module: expected a decoder whose layers keep keys and values of all tokens, got {type(module).__name__} "
            f"with {kinds}; cache=False converts it without"
        )
    return [(key[1::2], value[1::2]) for key, value in shapes]


def decoder_examples(module: Any, shapes: Shapes) -> tuple[dict[str, torch.Tensor], list[dict[int, str]]]:
    """Return examples for a decoder called by `with_arrays`, by name, and their free sizes."""
    takes = inspect.signature(module.forward).parameters
    ids = torch.ones((BATCH, TOKENS), dtype=torch.int64)
    texts, places = {0: "batch", 1: "tokens"}, torch.arange(PAST, PAST + TOKENS).repeat(BATCH, 1)
    examples, free = {"input_ids": ids, "attention_mask": ids.clone()}, [texts, texts]
    examples["past_mask"] = torch.ones((BATCH, PAST), dtype=torch.int64)
    free.append({0: "batch", 1: "past"})
    if "position_ids" in takes:
        examples["position_ids"] = places
        free.append(texts)
    if "logits_to_keep" in takes:
        examples["logits_to_keep"] = torch.arange(TOKENS - 1).repeat(BATCH, 1)
        free.append({0: "batch", 1: "logits"})
    for i, pair in enumerate(shapes):
        for kind, (heads, features) in zip(("key", "value"), pair, strict=True):
            examples[f"past.{i}.{kind}"] = torch.zeros((BATCH, heads, PAST, features), dtype=module.dtype)
            free.append({0: "batch", 2: "past"})
    return examples, free


@contextmanager
def with_arrays(module: Any, names: list[str]) -> Iterator[None]:
    """Let a decoder be called by arrays, those of its cache included, and return the logits and what is new of it.

    ``logits_to_keep`` are numbers of tokens, (batch, logits) as other inputs are; those of the first text count.
    """
    forward = module.forward
    past = [i for i, name in enumerate(names) if name.startswith("past.")]

    def called(*arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = {name: x for name, x in zip(names, arrays, strict=True) if not name.startswith("past.")}
        layers: list[Any] = [_Layer(arrays[i], arrays[i + 1]) for i in past[::2]]
        mask = torch.cat([given.pop("past_mask"), given["attention_mask"]], 1)
        if "logits_to_keep" in given:
            given["logits_to_keep"] = given["logits_to_keep"][0]
        cache = {"past_key_values": Cache(layers=layers), "use_cache": True, "return_dict": True}
        output = forward(**{**given, "attention_mask": mask, **cache})
        return output.logits, *(x for layer in layers for x in layer.new)

    with replaced_forward(module, called):
        yield
