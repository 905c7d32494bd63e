"""Imports networks of the package transformers."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pqnet import Model, PQNetError
from pqnet_converters.torch.from_torch import graph_from_torch
from pqnet_converters.transformers.cache import cache_shapes, decoder_examples, with_arrays
from pqnet_converters.transformers.folder import load_folder

__all__ = ["from_transformers", "without_cache"]

TEXT = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")


def from_transformers(source: Any, *, cache: bool | None = None) -> Model:
    """Import a network of the package transformers; batch and lengths of texts are free.

    Parameters
    ----------
    source : transformers.PreTrainedModel, str or Path
        A module, or the folder of one (see `pqnet convert hf -h`), which is read without network access.
    cache : bool, optional
        Whether a network that writes text takes and returns keys and values of its tokens, as `pqnet.Decoder` wants
        it; by default where it can.

    Returns
    -------
    Model
        Its inputs are called as tokenizers call them. With a cache there are also ``past_mask`` and ``past.0.key``,
        ``past.0.value`` and so on, of at least one earlier token, which may be masked; outputs are ``logits``,
        ``new.0.key`` and so on.

    Raises
    ------
    PQNetError
        For what is no such network, or one with other inputs than texts or images.

    Examples
    --------
    >>> from pqnet_converters import from_transformers
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=0)
    >>> model = from_transformers(GPT2LMHeadModel(config))
    >>> import pqnet
    >>> pqnet.Decoder(model).generate([[3, 1, 4]], 5, stop=()).shape
    (1, 8)
    """
    module = load_folder(source) if isinstance(source, str | Path) else source
    if not isinstance(module, torch.nn.Module) or not hasattr(module, "config"):
        raise PQNetError(
            f"source: expected a transformers.PreTrainedModel or the folder of one, got {type(module).__name__}; "
            "from_torch takes other modules"
        )
    with _experts_by_token(module):
        return _imported(module, cache)


def _imported(module: Any, cache: bool | None) -> Model:
    writes = bool(module.can_generate()) and not module.config.is_encoder_decoder and cache is not False
    shapes = cache_shapes(module) if writes else []
    if not shapes:
        if cache:
            raise PQNetError(f"cache: expected False for {type(module).__name__}, which keeps no tokens, got True")
        examples, dynamic = _plain_examples(module)
        with without_cache(module):
            return Model(graph_from_torch(module, examples, dynamic=dynamic))
    examples, free = decoder_examples(module, shapes)
    news = [f"new.{i}.{kind}" for i in range(len(shapes)) for kind in ("key", "value")]
    with with_arrays(module, list(examples)):
        graph = graph_from_torch(module, list(examples.values()), list(examples), ["logits", *news], dynamic=free)
    return Model(replace(graph, meta={**graph.meta, "decoder": _ends(module)}))


def _ends(module: Any) -> dict[str, Any]:
    """Return the tokens that end a text, and that which pads it, as `generate` of the module takes them."""
    config = getattr(module, "generation_config", None) or module.config
    stop, pad = config.eos_token_id, config.pad_token_id
    stops = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
    return {"stop": stops, "pad": pad if isinstance(pad, int) else stops[0] if stops else 0}


@contextmanager
def _experts_by_token(module: Any) -> Iterator[None]:
    """Let each token look up the weights of its experts; other ways have sizes that depend on data."""
    if not getattr(module, "_can_set_experts_implementation", bool)():
        yield
        return
    before = module.get_experts_implementation()
    module.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        module.set_experts_implementation(before)


@contextmanager
def without_cache(module: Any) -> Iterator[None]:
    """Let a module return no cache."""
    configs = {id(m.config): m.config for m in module.modules() if hasattr(getattr(m, "config", None), "use_cache")}
    before = {key: config.use_cache for key, config in configs.items()}  # parts of T5 have one of their own
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for key, config in configs.items():
            config.use_cache = before[key]


def _plain_examples(module: Any) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """Return examples for a network without a cache, by name, and their free sizes."""
    config, takes = module.config, inspect.signature(module.forward).parameters
    if module.main_input_name == "pixel_values":
        config = getattr(config, "vision_config", config)
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        return {
            "pixel_values": torch.zeros(2, getattr(config, "num_channels", 3), height, width, dtype=module.dtype)
        }, {}
    if module.main_input_name != "input_ids" or "pixel_values" in takes:
        raise PQNetError(
            f"source: expected a network that reads texts or images, got {type(module).__name__}, which reads "
            f"{module.main_input_name}; from_torch takes it with examples of its inputs"
        )
    names = [name for name in TEXT if name in takes]
    if getattr(config, "type_vocab_size", 0) < 2 and "token_type_ids" in names:
        names.remove("token_type_ids")
    if not config.is_encoder_decoder and "decoder_input_ids" in names:
        names.remove("decoder_input_ids")
    sizes = {name: 5 if name == "decoder_input_ids" else 9 for name in names}
    examples = {name: torch.ones((2, size), dtype=torch.int64) for name, size in sizes.items()}
    return examples, {n: {1: "decoder_tokens" if n == "decoder_input_ids" else "tokens"} for n in names}
