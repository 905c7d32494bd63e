"""Integer inputs of layers in training, with their ranges."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqnet.errors import ConfigError
from pqnet.train.noise import Draws, StraightThrough
from pqnet.train.observers import OBSERVERS, Observer, to_integers
from pqnet.train.parallel import rank
from pqnet.train.weights import CONVS, TRANSPOSED, find_weights, match

__all__ = ["ActivationNoise"]

PROJECTION = "out_proj.weight"  # of attention, whose inputs no hook of the layer sees
INPUTS = {  # of attention, by the weight that they meet; other layers have one
    "in_proj_weight": ("query", "key", "value"),
    "q_proj_weight": ("query",),
    "k_proj_weight": ("key",),
    "v_proj_weight": ("value",),
}


class ActivationNoise(Draws):
    """Inputs of layers as integers of few bits, while a network trains and afterwards.

    ``x' = (clamp(round(x / s) + z, 0, 2^bits - 1) - z) s`` with ``s = (high - low) / (2^bits - 1)`` and
    ``z = round(-low / s)``, for numbers chosen with probability p in ``train()`` mode, for all in ``eval()`` mode; the
    gradient passes straight through. ``low <= 0 <= high`` are found by the ``observer``, with several processes from
    the batches of all. They are buffers of the layers, and saved with them; a layer that has seen no batch in
    ``train()`` mode does nothing.

    Parameters
    ----------
    module : Module
    what : dict of str to int or None
        Bits, 2 to 16, by name pattern, see `pqnet.train.match`: of the inputs that a weight is multiplied with.
    p : float
        May be changed at any time. Which numbers are chosen differs between processes.
    observer : {"minmax", "mse", "histogram"}
        ``low`` and ``high`` are running means (momentum 0.1, starting with the first batch) of the ends of each batch,
        its least and largest input (``minmax``) or those that round it with the least squared error (``mse``); or the
        ends of the least squared error for all inputs so far (``histogram``).
    seed : int

    Raises
    ------
    ConfigError
        A pattern that matches no weight, a number of bits that is none; a weight whose inputs are no activations of
        their own: embeddings, weights of a `TorchGraph`. The module is then unchanged.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    >>> noise = ActivationNoise(net, {"0": 2})
    >>> seen = []
    >>> hook = net[0].register_forward_hook(lambda layer, inputs, out: seen.append(inputs[0].tolist()))
    >>> out = net(torch.tensor([[-1.0, 0.4], [0.9, 2.0]]))
    >>> seen
    [[[-1.0, 0.0], [1.0, 2.0]]]
    >>> [name for name in net.state_dict() if "range" in name]
    ['0.input_range.low', '0.input_range.high', '0.input_range.seen']
    """

    def __init__(
        self,
        module: nn.Module,
        what: Mapping[str, int | None],
        p: float = 1.0,
        *,
        observer: Literal["minmax", "mse", "histogram"] = "minmax",
        seed: int = 0,
    ) -> None:
        if observer not in OBSERVERS:
            raise ConfigError(f"observer: expected one of {OBSERVERS}, got {observer!r}")
        self.observer = observer
        weights = find_weights(module)
        bypassed = {part.out_proj: part for part in module.modules() if isinstance(part, nn.MultiheadAttention)}
        layers = (nn.Linear, *CONVS, *TRANSPOSED, nn.MultiheadAttention)
        places: list[tuple[nn.Module, str, int]] = []
        for name, bits in match(module, what).items():
            here = [
                (bypassed[owner], PROJECTION) if owner in bypassed else (owner, attribute)
                for owner, attribute in weights[name].places
                if isinstance(owner, layers)
            ]
            if not here:
                raise ConfigError(
                    f"weight {name!r}: expected a layer that is called with the inputs of its weight, got none; "
                    "leave it out with None"
                )
            if not isinstance(bits, int) or not 2 <= bits <= 16:
                raise ConfigError(f"weight {name!r}: expected 2 to 16 bits, got {bits!r}")
            for owner, attribute in here:
                if hasattr(owner, _label(attribute)):
                    raise ConfigError(f"weight {name!r}: expected a layer without noise on its inputs, got one")
                places.append((owner, attribute, bits))
        super().__init__(module, p, seed)
        self._added: list[tuple[nn.Module, str, Any]] = []
        for owner, attribute, bits in places:
            projection = attribute == PROJECTION
            weight = owner.out_proj.weight if projection else getattr(owner, attribute)
            inputs = _Range(self, len(self._added), bits, weight.device)
            owner.add_module(_label(attribute), inputs.train(owner.training))
            if projection:
                hooks = [
                    owner.register_forward_pre_hook(_without_projection),
                    owner.register_forward_hook(_project, always_call=True),
                ]
            else:
                hooks = [owner.register_forward_pre_hook(_Quantize(attribute), with_kwargs=True)]
            self._added.append((owner, _label(attribute), hooks))

    def remove(self) -> None:
        """Take the noise off, and the ranges."""
        self._hook.remove()
        for owner, label, hooks in self._added:
            for hook in hooks:
                hook.remove()
            delattr(owner, label)
        self._added = []


def ranges_of_inputs(module: nn.Module) -> dict[str, tuple[int, float, float]]:
    """Return bits, least and largest number of the inputs that are integers, by the weight's name in the state dict."""
    parts = ((name, part) for name, part in module.named_modules() if isinstance(part, _Range) and bool(part.seen))
    return {
        f"{name.removesuffix('input_range')}weight": (part.bits, float(part.low), float(part.high))
        for name, part in parts
    }


def _label(attribute: str) -> str:
    """Return the name under which a layer has the range of the inputs of a weight."""
    return f"{attribute.removesuffix('weight').replace('.', '_')}input_range"


class _Quantize:
    """The hook of a layer; an object that names the range, so that copies of the layer use their own."""

    def __init__(self, attribute: str) -> None:
        self.label, self.names = _label(attribute), INPUTS.get(attribute, ("input",))
        self.order = INPUTS["in_proj_weight"] if attribute in INPUTS else self.names

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, owner: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        given = dict(zip(self.order, args, strict=False)) | kwargs
        wanted = {name: given[name] for name in self.names}
        distinct = {id(x): x for x in wanted.values()}
        made = dict(zip(distinct, getattr(owner, self.label)(*distinct.values()), strict=True))
        new = {name: made[id(x)] for name, x in wanted.items()}  # what was one tensor stays one: attention asks
        changed = [new.get(name, x) for name, x in zip(self.order, args, strict=False)]
        return (*changed, *args[len(changed) :]), {name: new.get(name, x) for name, x in kwargs.items()}


class _Identity(nn.Module):  # type: ignore[misc]
    """What stands for the last layer of attention, which computes with its weight and bias and does not call it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = [layer]  # a list keeps it out of the sub-modules
        weight = layer.weight
        self.weight = torch.eye(len(weight), device=weight.device, dtype=weight.dtype)
        self.bias = None if layer.bias is None else torch.zeros_like(layer.bias)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _without_projection(attention: nn.MultiheadAttention, args: tuple) -> None:
    """Let attention return what its last layer is to be given."""
    attention.out_proj = _Identity(attention.out_proj)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _project(attention: nn.MultiheadAttention, args: tuple, found: Any) -> Any:
    """Do what the last layer does, to integers, whether or not there is something to do it to."""
    layer = attention.out_proj.layer[0]
    attention.out_proj = layer
    if found is None:  # an error is on its way
        return None
    (values,) = getattr(attention, _label(PROJECTION))(found[0])
    return F.linear(values, layer.weight, layer.bias), *found[1:]


class _Range(Observer):
    """The range of the inputs of a layer."""

    def __init__(self, noise: ActivationNoise, index: int, bits: int, device: torch.device) -> None:
        super().__init__(noise.observer, bits, device)
        self.noise, self.index = noise, index

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            if self.training:
                self.observe(inputs)
        return [StraightThrough.apply(x, self._integers(x.detach())) for x in inputs]

    def _integers(self, x: Tensor) -> Tensor:
        chosen = self.seen
        if self.training and self.noise.p < 1:
            chosen = chosen & self.noise.chosen(x.shape, x.device, self.index, rank())
        return torch.where(chosen, to_integers(x, self.low, self.high, self.bits), x).to(x.dtype)
