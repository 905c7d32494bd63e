"""Which weights a PyTorch module has, under which names, and the form in which codecs see them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pqnet.errors import ConfigError, PQNetError
from pqnet.graph import weight_op
from pqnet.pipeline.recipe import choose_by_name
from pqnet.train.ops import TorchGraph

__all__ = ["FilterForm", "Weight", "find_weights", "match"]

X = TypeVar("X")
Place = tuple[nn.Module, str]

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class FilterForm:
    """Between a parameter of PyTorch and the filter form of codecs, see `pqnet.codecs.layout`.

    Both directions are differentiable, and views but for transposed convolutions.

    Parameters
    ----------
    tensor_shape : tuple of int
        Shape of the parameter: (outputs, inputs), or (outputs, channels per group, *kernel) of a convolution over one
        to three axes, or (channels, outputs per group, *kernel) of a transposed one.
    transposed_groups : int
        Groups of a transposed convolution; 0 for all else.

    Examples
    --------
    >>> import torch
    >>> form = FilterForm((6, 2, 5), transposed_groups=3)  # of nn.ConvTranspose1d(6, 6, 5, groups=3)
    >>> form.shape, form.to_filters(torch.zeros(6, 2, 5)).shape
    ((6, 2, 5), torch.Size([6, 2, 5]))
    """

    tensor_shape: tuple[int, ...]
    transposed_groups: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in filter form: (O, I), or (O, C, *kernel)."""
        o, c, *kernel = self.tensor_shape
        if self.transposed_groups:
            o, c = c * self.transposed_groups, o // self.transposed_groups
        return (o, c, *kernel)

    def to_filters(self, tensor: Tensor) -> Tensor:
        """Return a tensor of shape ``tensor_shape`` in filter form."""
        if self.transposed_groups:
            tensor = tensor.unflatten(0, (self.transposed_groups, -1)).transpose(1, 2)
        return tensor.reshape(self.shape)

    def from_filters(self, filters: Tensor) -> Tensor:
        """Return what `to_filters` was given."""
        if self.transposed_groups:
            c, outputs, *kernel = self.tensor_shape
            groups = self.transposed_groups
            filters = filters.reshape(groups, outputs, c // groups, *kernel).transpose(1, 2)
        return filters.reshape(self.tensor_shape)


@dataclass(frozen=True)
class Weight:
    """One weight of a module, once however many places use it.

    Parameters
    ----------
    name : str
        Path of the layer that has it as ``weight``, else path of the parameter: ``"layer1.0.conv1"``,
        ``"attn.in_proj_weight"``.
    places : tuple of (Module, str)
        Owners and names of the attribute, first that of ``name``; more than one for tied weights.
    form : FilterForm
    kind : {"linear", "conv", "embedding", "recurrent"}
        Of the layer that ``name`` names.
    transposed : bool
        Whether that is the transpose of a convolution.
    """

    name: str
    places: tuple[Place, ...]
    form: FilterForm
    kind: str
    transposed: bool = False

    @property
    def tensor(self) -> Tensor:
        """The parameter, or what its parametrization gives."""
        owner, attribute = self.places[0]
        return getattr(owner, attribute)


def find_weights(module: nn.Module) -> dict[str, Weight]:
    """Return the weights of a module that codecs apply to.

    They are those of linear layers, embeddings, convolutions and transposed convolutions over one to three axes, the
    projections of ``nn.MultiheadAttention``, and all layers of a `TorchGraph`.

    Parameters
    ----------
    module : Module

    Returns
    -------
    dict of str to Weight
        By name, in the order of ``module.named_modules()``.

    Raises
    ------
    PQNetError
        If ``module`` is no module in Python, or a layer still waits for its first input to learn its shape.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Linear(5, 6))
    >>> {name: weight.form.shape for name, weight in find_weights(net).items()}
    {'0': (4, 2, 3), '2': (6, 5)}
    """
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise PQNetError(f"module: expected a torch.nn.Module that is not scripted, got {type(module).__name__}")
    places: dict[int, list[Place]] = {}
    for owner in module.modules():
        for attribute, holder in _holders(owner).items():
            places.setdefault(id(holder), []).append((owner, attribute))
    found: dict[str, Weight] = {}
    seen: set[int] = set()
    for path, owner in module.named_modules():
        for label, attribute, kind, transposed, form in _layer_weights(path, owner):
            here, holder = (owner, attribute), _holders(owner).get(attribute)
            if id(holder) in seen:
                continue
            others: list[Place] = []
            if holder is not None:  # else a hook computes it
                seen.add(id(holder))
                others = [place for place in places[id(holder)] if place != here]
            name = ".".join(part for part in (path, label) if part) or attribute
            found[name] = Weight(name, (here, *others), form, kind, transposed)
    return found


def _holders(owner: nn.Module) -> dict[str, Any]:
    """Return what a module's parameters live in: themselves, or their parametrizations. Tied ones share it."""
    holders = {name: p for name, p in owner._parameters.items() if p is not None}
    parametrizations = getattr(owner, "parametrizations", None)
    return {**holders, **dict(parametrizations.items())} if isinstance(parametrizations, nn.ModuleDict) else holders


def _layer_weights(path: str, owner: nn.Module) -> Iterator[tuple[str, str, str, bool, FilterForm]]:
    """Yield label below the path and the fields of `Weight`, of the weights that a module itself computes with."""
    if isinstance(owner, TorchGraph):
        for name, node in owner.graph.layers().items():
            attribute = owner.key(node.params["weight"])
            rule = weight_op(node.op)
            yield name, attribute, rule.kind, rule.transposed, _form(path, owner, attribute)
    elif isinstance(owner, nn.Linear):
        yield "", "weight", "linear", False, _form(path, owner, "weight")
    elif isinstance(owner, CONVS):
        yield "", "weight", "conv", False, _form(path, owner, "weight")
    elif isinstance(owner, TRANSPOSED):
        yield "", "weight", "conv", True, _form(path, owner, "weight", owner.groups)
    elif isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        yield "", "weight", "embedding", False, _form(path, owner, "weight")
    elif isinstance(owner, nn.MultiheadAttention):
        for attribute in ATTENTION:
            if getattr(owner, attribute, None) is not None:
                yield attribute, attribute, "linear", False, _form(path, owner, attribute)


def _form(path: str, owner: nn.Module, attribute: str, transposed_groups: int = 0) -> FilterForm:
    tensor = getattr(owner, attribute)
    if is_lazy(tensor):
        raise PQNetError(f"module: {path or 'it'} has no weight yet; call the module once with an input")
    return FilterForm(tuple(tensor.shape), transposed_groups)


def match(module: nn.Module, patterns: Mapping[str, X | None]) -> dict[str, X]:
    """Return what patterns choose for the weights of a module.

    Parameters
    ----------
    module : Module
    patterns : dict of str to anything
        Keys are names of `find_weights` or globs (``*``, ``?``, ``[..]``); of several that match a weight the longest
        wins, and a whole name over a glob of its length. ``"default"`` is for weights that no other key matches, but
        for the first convolution, as in a `pqnet.Recipe`. None leaves a weight out.

    Returns
    -------
    dict of str to anything
        By name of the weight.

    Raises
    ------
    ConfigError
        A pattern that matches no weight, or nothing chosen for any.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Linear(5, 6), nn.Linear(6, 6))
    >>> match(net, {"default": 8, "3": 4})
    {'2': 8, '3': 4}
    >>> match(net, {"default": 8, "0": 4})
    {'0': 4, '2': 8, '3': 8}
    """
    if not isinstance(patterns, Mapping) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f"patterns: expected a dict with name patterns as keys, got {type(patterns).__name__}")
    weights = find_weights(module)
    stem = next((name for name, weight in weights.items() if weight.kind == "conv" and not weight.transposed), None)
    chosen, lost = choose_by_name(weights, patterns, stem)
    listed = ", ".join(list(weights)[:8]) + (f", ... ({len(weights)} in all)" if len(weights) > 8 else "")
    if lost:
        raise ConfigError(f"pattern {lost[0]!r} matches no weight of the module; they are: {listed or 'none'}")
    kept = {name: choice for name, choice in chosen.items() if choice is not None}
    if not kept:
        raise ConfigError(
            f"patterns: expected a choice for at least one weight, got none; they are: {listed or 'none'} (the first "
            "convolution only by its name or a glob)"
        )
    return kept
