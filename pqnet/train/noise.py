"""Quantization noise: networks that learn to be quantized, because part of their weights already is in each step."""

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pqnet.codecs import PACKED, Codec
from pqnet.errors import ConfigError, PQNetError, of_layer
from pqnet.train.checks import check_integer
from pqnet.train.packed import check_codec, check_plain, own_class, parametrize_places, zero_row
from pqnet.train.state import check_numbers
from pqnet.train.stored import Stored, make_stored
from pqnet.train.weights import Weight, find_weights, match

__all__ = ["Draws", "LayerDrop", "QuantNoise", "StraightThrough"]


class Draws:
    """Random numbers for the training of a module, new ones at every call of it in ``train()`` mode.

    They depend on a seed and the number of calls alone: all uses of a weight in one call, all processes and a resumed
    run draw the same.

    Parameters
    ----------
    module : Module
    p : float
        Probability, 0 to 1.
    seed : int
    """

    def __init__(self, module: nn.Module, p: float, seed: int) -> None:
        check_integer("seed", seed, 0)
        self.seed, self.step = seed, 0
        self.p = p
        self._hook = module.register_forward_pre_hook(self._called)

    @property
    def p(self) -> float:
        """The probability; may be changed at any time."""
        return self._p

    @p.setter
    def p(self, p: float) -> None:
        if not isinstance(p, int | float) or not 0 <= p <= 1:
            raise ConfigError(f"p: expected a number from 0 to 1, got {p!r}")
        self._p = float(p)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _called(self, module: nn.Module, inputs: Any) -> None:
        if module.training:
            self.draw()

    def draw(self) -> None:
        """Count a step: what is random is drawn anew. Calls of the module do this; parts of it called alone do not."""
        self.step += 1

    def chosen(self, shape: Iterable[int], device: torch.device, *key: int) -> Tensor:
        """Return booleans, each true with probability p."""
        state = np.random.SeedSequence([self.seed, self.step, *key]).generate_state(1)
        generator = torch.Generator(device).manual_seed(int(state[0]))
        return torch.rand(tuple(shape), generator=generator, device=device) < self.p

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, to go on with the same numbers."""
        return {"step": self.step, "p": self.p}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, or raise PQNetError if it is one of something else."""
        if set(state) != set(self.state_dict()):
            raise PQNetError(f"state: expected keys {sorted(self.state_dict())}, got {sorted(state)}")
        check_numbers({"step": state["step"]}, {"p": state["p"]})
        self.step, self.p = state["step"], state["p"]


class QuantNoise(Draws):
    """Quantization noise on the weights of a module while it trains (Quant-Noise, Fan et al. 2021).

    At every call of the module in ``train()`` mode, random blocks J of each weight are replaced by a quantized form
    phi; the gradient of the replaced blocks passes straight to the weight:

    ``w'_j = phi(w_j) if j in J else w_j``,  ``dL/dw = dL/dw'``

    The parameters themselves are never changed and stay the same objects, so that an optimizer made before works on.
    In ``eval()`` mode, and at p = 0, weights are as they are. With p = 1 and ``phi="exact"`` this is quantization-aware
    training. Attach before the module is wrapped in ``DistributedDataParallel``; all processes draw the same blocks.

    Parameters
    ----------
    module : Module
        Its weights are parametrized in place (`torch.nn.utils.parametrize`): the parameter of ``net.fc.weight`` is
        ``net.fc.parametrizations.weight.original`` until `remove`, in ``net.state_dict()`` too.
    what : dict of str to Codec or None
        By name pattern, see `pqnet.train.match`. Blocks are those of the codec: d weights of `PQ`, single numbers of
        `Scalar`, `Fixed` and `IntN`.
    p : float
        Probability of a block to be chosen; may be changed at any time (``noise.p = 0.2``). For `PQ` 0.05 to 0.2 has
        served best, for `IntN` 0.5.
    phi : {"proxy", "exact"}
        What chosen blocks become: zeros, or what the codec makes of them: codes of the present weights under
        codebooks and scales fitted every ``refresh`` calls.
    unit : {"block", "cluster"}
        What is chosen: single blocks, or codewords with all their blocks.
    rescale : bool
        Of the proxy: multiply the weights that are kept by 1 / (1 - p), as dropout does.
    refresh : int
        Calls between two fits of codebooks and scales, which start from those before. The first is made in the first
        call that needs them.
    seed : int

    Raises
    ------
    ConfigError
        A pattern that matches no weight, a codec that does not fit its weight or the unit, a weight that is already
        parametrized. The module is then unchanged.

    Examples
    --------
    Train a network so that it can be quantized, take the noise off, and quantize:

    >>> import pqnet, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> optimizer = torch.optim.SGD(net.parameters(), 0.1)
    >>> noise = QuantNoise(net, {"default": pqnet.PQ(k=8, d=4)}, p=0.5)
    >>> for _ in range(3):
    ...     loss = net(torch.ones(2, 8)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    >>> bool((net[0].weight == 0).any()), bool((net.eval()[0].weight == 0).any())  # in training
    (True, False)
    >>> noise.remove()
    >>> net[0].weight is optimizer.param_groups[0]["params"][0]
    True
    >>> packed = pqnet.train.attach(net, {"default": pqnet.PQ(k=8, d=4)})

    Save ``noise.state_dict()`` beside those of the module and the optimizer, and load it into a `QuantNoise` made with
    the same arguments: a resumed run is the same to the bit.
    """

    def __init__(
        self,
        module: nn.Module,
        what: Mapping[str, Codec | None],
        p: float = 0.1,
        *,
        phi: Literal["proxy", "exact"] = "proxy",
        unit: Literal["block", "cluster"] = "block",
        rescale: bool = False,
        refresh: int = 1000,
        seed: int = 0,
    ) -> None:
        if phi not in ("proxy", "exact"):
            raise ConfigError(f"phi: expected 'proxy' or 'exact', got {phi!r}")
        if unit not in ("block", "cluster"):
            raise ConfigError(f"unit: expected 'block' or 'cluster', got {unit!r}")
        if rescale and phi == "exact":
            raise ConfigError("rescale: expected False with phi='exact', which keeps the weights' size, got True")
        check_integer("refresh", refresh, 1)
        self.phi, self.unit, self.rescale, self.refresh = phi, unit, rescale, refresh
        weights = find_weights(module)
        codecs: dict[str, Codec] = match(module, what)
        for name, codec in codecs.items():
            check_plain(weights[name])
            codecs[name] = check_codec(weights[name], codec)
            if unit == "cluster" and codec.n_codewords is None:
                raise ConfigError(f"weight {name!r}: expected a codec of one code a block, got {codec!r}")
        super().__init__(module, p, seed)
        self._noisy: dict[str, _Noisy] = {}
        for name, codec in codecs.items():
            self._noisy[name] = _Noisy(self, len(self._noisy), weights[name], codec)
            parametrize_places(weights[name], _Noise(self._noisy[name]))

    def remove(self) -> None:
        """Take the noise off: weights are plain parameters again, the same objects, under their names."""
        self._hook.remove()
        for name, noisy in self._noisy.items():
            for owner, attribute in noisy.weight.places:
                if len(owner.parametrizations[attribute]) > 1:
                    kind = type(owner.parametrizations[attribute][1]).__name__
                    raise PQNetError(f"weight {name!r}: expected nothing on top of noise, got {kind}; remove it first")
            for (owner, attribute), order in zip(noisy.weight.places, noisy.order, strict=True):
                own_class(owner)
                parametrize.remove_parametrizations(owner, attribute, leave_parametrized=False)
                for other in order[order.index(attribute) + 1 :]:  # optimizers' checkpoints go by the order
                    if other in owner._parameters:
                        owner._parameters[other] = owner._parameters.pop(other)
        self._noisy = {}

    def state_dict(self) -> dict[str, Any]:
        """Return step, p, and the codebooks and scales in use, as numbers and tensors."""
        states = {name: noisy.state() for name, noisy in self._noisy.items() if noisy.stored is not None}
        return {**super().state_dict(), "weights": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises
        ------
        ConfigError
            If it is of other weights.
        FormatError
            If it is of other codecs.
        """
        if unknown := [name for name in state.get("weights", ()) if name not in self._noisy]:
            raise ConfigError(f"state: expected weights among {list(self._noisy)}, got {unknown[0]!r}")
        super().load_state_dict(state)
        for name, noisy in self._noisy.items():
            noisy.load(state["weights"].get(name))


class _Noise(nn.Module):  # type: ignore[misc]
    """The parametrization; its state is outside the module's, whose parameters are the user's."""

    def __init__(self, noisy: "_Noisy") -> None:
        super().__init__()
        self.noisy = noisy

    def forward(self, weight: Tensor) -> Tensor:
        return self.noisy(weight) if self.training else weight


class StraightThrough(torch.autograd.Function):  # type: ignore[misc]
    """A tensor instead of another, to which the gradient goes."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, instead: Tensor) -> Tensor:
        return instead.view_as(instead)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Noisy:
    """One weight with noise."""

    def __init__(self, noise: QuantNoise, index: int, weight: Weight, codec: Codec) -> None:
        self.noise, self.index, self.weight, self.codec = noise, index, weight, codec
        self.order = [list(owner._parameters) for owner, _ in weight.places]
        self.stored: Stored | None = None
        self.fitted = 0
        self._drawn: tuple[Any, Tensor] | None = None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, weight: Tensor) -> Tensor:
        if self.noise.p == 0:
            return weight
        key = self.noise.step, self.noise.p, weight._version, weight.device
        if self._drawn is None or self._drawn[0] != key:  # else another use of it in the same call
            with torch.no_grad():
                self._drawn = key, self._draw(weight)
        noisy: Tensor = StraightThrough.apply(weight, self._drawn[1])
        return noisy

    def _draw(self, weight: Tensor) -> Tensor:
        noise, kept = self.noise, self.weight.form.to_filters(weight)
        instead: Tensor | float = 0.0
        if noise.phi == "exact" or noise.unit == "cluster":
            stored = self._nearest(kept.float())
            if noise.phi == "exact":
                instead = stored.decode().to(kept.dtype)
        mask = self._mask(weight.device)
        if (row := zero_row(self.weight, kept)) is not None:
            mask[row] = False  # it stays zero, as it is when the weight is packed
        if noise.rescale:
            kept = kept / (1 - noise.p)
        return self.weight.form.from_filters(torch.where(mask, instead, kept))

    def _nearest(self, filters: Tensor) -> Stored:
        """Return the codec's state with codes for a weight, fitted anew when it is time."""
        if self.stored is None or self.noise.step - self.fitted >= self.noise.refresh:
            warm = None if self.stored is None else self.stored.packed()
            with of_layer(self.weight.name):
                packed = self.codec.fit(filters.cpu().numpy(), warm=warm, seed=self.noise.seed)
            self.stored, self.fitted = make_stored(packed, "sum").eval(), self.noise.step
        self.stored.to(filters.device).reassign(filters, None)
        return self.stored

    def _mask(self, device: torch.device) -> Tensor:
        """Return which weights are in chosen blocks, in filter form."""
        shape = self.weight.form.shape
        d, layout = self.codec.blocks
        if self.noise.unit == "cluster":
            k = self.codec.n_codewords
            assert self.stored is not None and k is not None
            blocks = self.noise.chosen((k,), device, self.index)[self.stored.codes.long()]
        else:
            blocks = self.noise.chosen((shape[0], prod(shape[1:]) // d), device, self.index)
        mask = blocks.repeat_interleave(d, 1) if d > 1 else blocks
        if layout == "channel":
            o, c, *kernel = shape
            return mask.reshape(o, *kernel, c).movedim(-1, 1)
        return mask.reshape(shape)

    def state(self) -> dict[str, Any]:
        assert self.stored is not None
        arrays = self.stored.packed().arrays()
        return {"fitted": self.fitted, "arrays": {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}}

    def load(self, state: Mapping[str, Any] | None) -> None:
        self.stored = self._drawn = None
        if state is not None:
            arrays = {name: tensor.cpu().numpy() for name, tensor in state["arrays"].items()}
            packed = PACKED[self.codec.name].from_arrays(self.codec, self.weight.form.shape, arrays)
            self.stored, self.fitted = make_stored(packed, "sum").eval(), state["fitted"]


class LayerDrop(Draws):
    """Layers left out at random while a network trains, so that it can do without some of them (Fan et al. 2020).

    At every call of the module in ``train()`` mode, each layer is left out with probability p: it returns its first
    input. The same layers are left out in all processes; ``DistributedDataParallel`` has to be told
    ``find_unused_parameters=True``.

    Parameters
    ----------
    module : Module
        The network.
    layers : sequence of Module
        Of the network, a ``ModuleList`` say; the output of each must have the form of its first input.
    p : float
        May be changed at any time.
    chunk : int
        So many consecutive layers are left out together: those that share parameters, see `share_layers`.
    seed : int

    Examples
    --------
    >>> import torch
    >>> layers = [torch.nn.Linear(4, 4) for _ in range(6)]
    >>> net = torch.nn.Sequential(*layers)
    >>> drop = LayerDrop(net, layers, p=1)
    >>> x = torch.ones(1, 4)
    >>> net(x) is x
    True
    >>> kept = drop.keep_every(2)  # in eval() mode too, every other layer is left out from now on
    >>> torch.equal(net.eval()(x), torch.nn.Sequential(*kept)(x))
    True
    """

    def __init__(
        self, module: nn.Module, layers: Iterable[nn.Module], p: float = 0.2, *, chunk: int = 1, seed: int = 0
    ) -> None:
        check_integer("chunk", chunk, 1)
        self.layers, self.chunk, self.every = list(layers), chunk, 1
        parts = set(module.modules())
        if not self.layers or not all(isinstance(layer, nn.Module) and layer in parts for layer in self.layers):
            raise ConfigError("layers: expected at least one, all of them in the module")
        if any("forward" in vars(layer) for layer in self.layers):
            raise ConfigError("layers: expected each once, with the forward method of its class")
        super().__init__(module, p, seed)
        for index, layer in enumerate(self.layers):
            layer.forward = _Skip(self, index, layer)

    def keep_every(self, n: int) -> list[nn.Module]:
        """In ``eval()`` mode, run only the first of every n chunks from now on, and return its layers; 1 runs all."""
        check_integer("n", n, 1)
        self.every = n
        return [layer for i, layer in enumerate(self.layers) if i // self.chunk % n == 0]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def skips(self, index: int) -> bool:
        """Tell whether a layer is left out now."""
        if self.layers[index].training:
            return bool(self.chosen((len(self.layers),), torch.device("cpu"))[index // self.chunk])
        return index // self.chunk % self.every > 0

    def remove(self) -> None:
        """Make the layers what they were before."""
        self._hook.remove()
        for layer in self.layers:
            vars(layer).pop("forward", None)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "every": self.every}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.every = state["every"]


class _Skip:
    """The forward method of a layer that may be left out; an object, so that copies of the network have their own."""

    def __init__(self, drop: LayerDrop, index: int, layer: nn.Module) -> None:
        self.drop, self.index, self.layer = drop, index, layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.drop.skips(self.index):
            return args[0] if args else next(iter(kwargs.values()))
        return type(self.layer).forward(self.layer, *args, **kwargs)
