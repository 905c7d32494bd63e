"""From a network to a PyTorch module that trains its codebooks, and back."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from pqnet.codecs import Packed
from pqnet.errors import PQNetError
from pqnet.graph import Graph
from pqnet.graph.ranges import INPUT_RANGES, OUTPUT_SHIFTS, TOKEN_SCALES
from pqnet.runtime import Model
from pqnet.train.activations import ranges_of_inputs
from pqnet.train.ops import TorchGraph
from pqnet.train.packed import PackedWeight, packed_weights, register
from pqnet.train.stored import Gradient
from pqnet.train.weights import find_weights

__all__ = ["to_model", "to_module"]

Param = np.ndarray | Packed


def to_module(model: Model | Graph, *, gradient: Gradient = "mean") -> TorchGraph:
    """Turn a network into a PyTorch module that computes with weights decoded from its codes.

    Parameters
    ----------
    model : Model or Graph
        Float, or quantized: each packed weight becomes a `PackedWeight`.
    gradient : {"mean", "sum"}
        Of codewords, see `PackedWeight`.

    Returns
    -------
    TorchGraph
        In ``eval()`` mode, in which it gives the outputs of the model. It takes the inputs in the graph's order as
        tensors and returns one tensor, or a tuple of them.

    Raises
    ------
    PQNetError
        If ``model`` is neither a model nor a graph.

    Examples
    --------
    >>> import pqnet, torch
    >>> from pqnet.demo import load_images, model_path
    >>> train, images, _ = load_images()
    >>> model = pqnet.quantize(pqnet.load(model_path()), {"fc": pqnet.PQ(k=16, d=4)}, train[:64], progress=False)
    >>> module = to_module(model)
    >>> [name for name, _ in module.named_parameters() if name.startswith("parametrizations")]
    ['parametrizations.fc_weight.0.stored.codebook']
    >>> torch.allclose(module(torch.from_numpy(images[:2])), torch.from_numpy(model(images[:2])), atol=1e-4)
    True
    """
    module = TorchGraph(model)
    graph = module.graph
    for name, weight in find_weights(module).items():
        packed = graph.params[graph.layers()[name].params["weight"]]
        if isinstance(packed, Packed):
            register(weight, PackedWeight(packed, weight.form, gradient))
    return module


def to_model(module: nn.Module, model: Model | None = None) -> Model:
    """Return a network with the present parameters of a module, packed weights as codes.

    Parameters
    ----------
    module : Module
        A `TorchGraph`, or a module of your own.
    model : Model, optional
        For a module of your own: what ``pqnet_converters.from_torch`` made of it before `attach`. It says what the
        module computes; parameters and buffers are taken from the module by their names in its state dict. Constants
        that the model has besides them are kept.

    Returns
    -------
    Model
        Inputs of layers are floats, also where `ActivationNoise` made integers of them, which a warning says. Without
        golden pair and without the errors of layers in ``graph.meta["quantization"]``, which were those of the
        weights before.

    Raises
    ------
    PQNetError
        A missing or superfluous ``model``; parameters of other shapes than the model's; constants of the model that
        trainable parameters of the module may have gone into; numbers that cannot be stored.

    Examples
    --------
    >>> import pqnet, torch
    >>> from pqnet.train import attach
    >>> from pqnet_converters import from_torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> model = from_torch(net, torch.zeros(1, 8))
    >>> made = attach(net, {"0": pqnet.PQ(k=8, d=4)})  # now train net as ever
    >>> small = to_model(net, model)
    >>> small.graph.params["0.weight"]
    PackedPQ(pq k=8 d=4 spatial, shape=(16, 8), 76 bytes, 6.7x smaller)
    """
    own = isinstance(module, TorchGraph)
    if not isinstance(module, nn.Module) or own != (model is None) or not isinstance(model, Model | None):
        wanted = "a TorchGraph alone, or another torch.nn.Module and the Model that from_torch made of it"
        raise PQNetError(f"module, model: expected {wanted}, got {type(module).__name__}, {type(model).__name__}")
    graph = module.graph if model is None else model.graph
    with _evaluating(module):
        params = _graph_params(module) if model is None else _named_params(module, graph)
    meta = {key: value for key, value in graph.meta.items() if key != OUTPUT_SHIFTS}  # those of the weights before
    if "quantization" in meta:
        meta["quantization"] = {key: value for key, value in meta["quantization"].items() if key != "layers"}
    if ranges := _input_ranges(module, graph):
        meta |= {INPUT_RANGES: ranges, TOKEN_SCALES: []}  # the module was trained with one scale for all rows
    return Model(replace(graph, params=params, meta=meta))


def _input_ranges(module: nn.Module, graph: Graph) -> dict[str, list[float]]:
    """Return the ranges of 8-bit inputs that `ActivationNoise` learned, by layer of the graph; warn of all others."""
    layers = {node.params["weight"]: node.name for node in graph.nodes if "weight" in node.params}
    found, others = {}, []
    for weight, (bits, low, high) in ranges_of_inputs(module).items():
        if bits == 8 and weight in layers and low < high:
            found[layers[weight]] = [low, high]
        else:
            others.append(weight.removesuffix(".weight"))
    if others:
        warnings.warn(
            f"to_model: the inputs of {others[:5]} are integers in the module, by ActivationNoise, and floats in the "
            "model: files hold ranges of 8 bits, of layers of the model",
            stacklevel=3,
        )
    return found


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode: what other parametrizations do in training (noise, say) is not in the network."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _graph_params(module: TorchGraph) -> dict[str, Param]:
    graph = module.graph
    packed = {graph.layers()[name].params["weight"]: weight.packed() for name, weight in packed_weights(module).items()}
    return {
        name: packed[name] if name in packed else _array(getattr(module, module.key(name)), param)
        for name, param in graph.params.items()
    }


def _array(tensor: Tensor, like: Param) -> np.ndarray:
    """Return a tensor as an array of the dtype of a parameter, float32 in place of a packed one."""
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
    return array.astype(np.float32 if isinstance(like, Packed) else like.dtype)  # a copy


def _named_params(module: nn.Module, graph: Graph) -> dict[str, Param]:
    """Return the parameters of a graph from the module that it was made of."""
    weights = {place: weight for weight in find_weights(module).values() for place in weight.places}
    packed = packed_weights(module)
    params: dict[str, Param] = {}
    constants: list[str] = []
    taken: set[int] = set()
    for name, param in graph.params.items():
        place = _place(module, name)
        if place is None:
            if _place(module, re.sub(r"_\d+$", "", name)):
                raise PQNetError(f"parameter {name!r}: expected one form of each parameter in the model, got another")
            params[name] = param
            constants += [name] if isinstance(param, Packed) or param.dtype.kind == "f" else []
            continue
        owner, attribute = place
        weight, tensor = weights.get(place), getattr(owner, attribute)
        inner = owner.parametrizations[attribute].parameters() if is_parametrized(owner, attribute) else [tensor]
        taken.update(map(id, inner))
        if weight is not None and weight.name in packed:
            params[name] = packed[weight.name].packed()
        elif weight is not None:
            params[name] = _array(weight.form.to_filters(tensor), param)
        else:
            params[name] = _in_shape_of(_array(tensor, param), param, name)
        if params[name].shape != param.shape:
            raise PQNetError(f"parameter {name!r}: expected shape {param.shape} of the model, got {params[name].shape}")
    lost = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in taken]
    if constants and lost:
        raise PQNetError(
            f"module: expected all its trainable parameters in the model, got {lost[:5]} besides, and constants "
            f"{constants[:5]} in the model that may be made of them; give the model of this module, or freeze what "
            "has not changed by requires_grad_(False)"
        )
    return params


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str] | None:
    """Return owner and attribute of a tensor by its name in the state dict, None if there is none."""
    path, _, attribute = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return None
    return (owner, attribute) if isinstance(getattr(owner, attribute, None), Tensor) else None


def _in_shape_of(array: np.ndarray, param: Param, name: str) -> np.ndarray:
    """Return an array in the shape that the graph wants: with more or fewer axes of size 1, or a matrix transposed."""
    if array.ndim == len(param.shape) == 2 and array.shape == param.shape[::-1]:
        old = param.decode() if isinstance(param, Packed) else param
        if array.shape != old.shape:
            return array.T.copy()
        straight, transposed = (float(np.square(new - old).sum()) for new in (array, array.T))
        if transposed < straight / 4:
            return array.T.copy()
        if straight > transposed / 4:
            raise PQNetError(
                f"parameter {name!r}: expected a matrix near that of the model, to tell whether it is transposed "
                "there; give the model that from_torch makes of the module now"
            )
    if [n for n in array.shape if n > 1] == [n for n in param.shape if n > 1]:
        return array.reshape(param.shape)
    return array
