"""Learning-compression: weights trained until they are what their codecs store."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from pqnet.codecs import PACKED, Additive, Codec, Packed
from pqnet.errors import ConfigError, PQNetError
from pqnet.train.packed import PackedWeight, attach, check_choice, fit_weight
from pqnet.train.state import check_numbers
from pqnet.train.weights import Weight, find_weights, match

__all__ = ["LC"]


class LC:
    """Learning-compression: minimise a loss L(w) over the weights that codecs can represent, w = Delta(Theta).

    In turns, the user's training loop lowers ``L(w) + mu/2 ||w - Delta(Theta) - lambda/mu||^2`` with any optimizer (the
    L step: the loss plus `penalty`), and `compress` packs the weights anew and raises mu (the C step). Weights that
    could not be packed well as they were move to where the loss hardly suffers from it; when mu has grown enough they
    are what is stored, see `gap`, and `finish` packs them. It is the method of Carreira-Perpinan and Idelbayev (2017).

    Two simpler methods are limits of it. Direct compression: `finish` at once. Iterated direct compression: ``mu=0``,
    where there is no penalty and `compress` sets the weights to what they are packed as; it does not converge.

    Parameters
    ----------
    module : Module
        Trained before, in float32. Its weights stay plain parameters until `finish`.
    patterns : dict of str to Codec, sequence of Codec or None
        By name pattern, see `match`. Several codecs are summed (`pqnet.Additive`).
    mu : float
        Of the first L step. Start so low that the weights are nearly free.
    growth : float
        Of mu at every `compress`, at least 1.
    joint : sequence of sequences of str
        Name patterns of weights that share one codebook, list of values or scale; their codecs must be equal, and a
        `PQ` of layout ``spatial`` or one of `Scalar`, `Fixed` and `IntN` with ``per="tensor"``.
    augmented : bool
        False keeps lambda at 0: the quadratic penalty, which needs a larger mu.
    seed : int
        Of the fits.

    Attributes
    ----------
    mu : float
        Of the present L step.
    growth : float
        May be changed at any time: a low one until the loss has settled, then a high one closes the gap soon.
    step : int
        How often `compress` was called.
    multipliers : dict of str to tensor
        lambda, in the form of the parameters, float32; at the end the gradient of the loss.

    Raises
    ------
    ConfigError
        A pattern that matches no weight, a codec that does not fit its weight, a weight that is not a plain float32
        parameter, a number out of range.

    Examples
    --------
    >>> import pqnet, torch
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(200, 8)
    >>> y = x @ torch.linspace(-1, 1, 32).reshape(8, 4)
    >>> net = torch.nn.Linear(8, 4)
    >>> lc = LC(net, {"weight": pqnet.Scalar(k=2)}, mu=0.1, growth=1.4)
    >>> while not lc.feasible():
    ...     optimizer = torch.optim.SGD(net.parameters(), lr=0.1)  # the schedule's rate for this L step
    ...     lc.clip_lr(optimizer)
    ...     for _ in range(50):
    ...         optimizer.zero_grad()
    ...         loss = torch.nn.functional.mse_loss(net(x), y) + lc.penalty()
    ...         loss.backward()
    ...         optimizer.step()
    ...     lc.compress()
    >>> packed = lc.finish()
    >>> net.weight.unique().numel(), lc.step < 40
    (2, True)

    With ``DistributedDataParallel``, make LC of the module that is wrapped; processes need not talk about it, for with
    equal weights they find equal codes. To judge the network as packed between steps, pack a copy:
    ``attach(copy.deepcopy(net), lc.packed())``.
    """

    def __init__(
        self,
        module: nn.Module,
        patterns: Mapping[str, Codec | Sequence[Codec] | None],
        *,
        mu: float = 1e-4,
        growth: float = 1.1,
        joint: Sequence[Sequence[str]] = (),
        augmented: bool = True,
        seed: int = 0,
    ) -> None:
        self._module = module
        self.mu, self.growth = _number(mu, "mu", 0), _number(growth, "growth", 1)
        self.augmented, self.seed, self.step = augmented, seed, 0
        weights = find_weights(module)
        chosen: dict[str, Codec] = {}
        for name, choice in match(module, patterns).items():
            codec = Additive(choice) if isinstance(choice, list | tuple) else choice
            if not isinstance(codec, Codec):
                raise ConfigError(f"weight {name!r}: expected codecs or None, got {type(codec).__name__}")
            check_choice(weights[name], codec)
            chosen[name] = codec
        self._weights = {name: weights[name] for name in chosen}
        together = [_members(module, group, chosen) for group in joint]
        shared = [name for names in together for name in names]
        if twice := [name for name in shared if shared.count(name) > 1]:
            raise ConfigError(f"joint: expected every weight in one group at most, got {twice[0]!r} in several")
        alone = [[name] for name in chosen if name not in shared]
        self._groups = [_Group([weights[n] for n in names], chosen[names[0]]) for names in [*together, *alone]]
        self.multipliers = {name: torch.zeros_like(tensor.detach()) for name, tensor in self._tensors().items()}
        self._theta: list[Packed] = []
        self._pack()
        self._aim()

    def penalty(self) -> Tensor:
        """Return ``mu/2 sum ||w - Delta(Theta) - lambda/mu||^2``, to be added to the loss of every batch.

        Its gradient is ``mu (w - Delta(Theta)) - lambda``. With ``mu=0`` it is 0.
        """
        terms = [F.mse_loss(w, self._targets[name], reduction="sum") for name, w in self._tensors().items()]
        return 0.5 * self.mu * torch.stack(terms).sum()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def compress(self) -> None:
        """Do the C step, after each L step.

        ``Theta = argmin ||w - lambda/mu - Delta(Theta)||^2`` by the fits of the codecs, starting from the last Theta;
        then ``lambda -= mu (w - Delta(Theta))`` and ``mu *= growth``.

        Raises
        ------
        PQNetError
            NaN or infinity in weights or multipliers: training does not converge.
        """
        self._pack()
        for name, w in self._tensors().items():
            if self.augmented:
                self.multipliers[name] = self.multipliers[name] - self.mu * (w - self._delta[name])
            if self.mu == 0:
                w.copy_(self._delta[name])
        self.mu *= self.growth
        self.step += 1
        self._aim()

    @property
    def gaps(self) -> dict[str, float]:
        """``||w - Delta(Theta)|| / ||w||`` of each weight, by name: how far its constraint is from being met."""
        with torch.no_grad():
            return {
                name: float((w - self._delta[name]).norm()) / (float(w.norm()) or 1.0)
                for name, w in self._tensors().items()
            }

    @property
    def gap(self) -> float:
        """The largest of `gaps`: large weights that are what is stored say nothing about small ones that are not."""
        return max(self.gaps.values())

    def feasible(self, tol: float = 1e-3) -> bool:
        """Tell whether `gap` is at most ``tol``: the weights are what is stored, further steps change little."""
        return self.gap <= tol

    def clip_lr(self, optimizer: torch.optim.Optimizer) -> None:
        """Limit learning rates to 1/mu, which is what keeps SGD stable on the penalty, whose curvature is mu.

        Parameters
        ----------
        optimizer : Optimizer
            Call this in every L step after the rates are set. Groups without weights of LC keep their rate.
        """
        ours = {id(w) for w in self._tensors().values()}
        for group in optimizer.param_groups:
            if self.mu and any(id(p) in ours for p in group["params"]):
                group["lr"] = min(group["lr"], 1 / self.mu)

    def packed(self) -> dict[str, Packed]:
        """Return the weights as the last C step packed them, Theta, by name."""
        found = zip(self._groups, self._theta, strict=True)
        return {name: packed for group, whole in found for name, packed in group.parts(whole).items()}

    def finish(self, batches: Iterable[Any] | None = None) -> dict[str, PackedWeight]:
        """Pack the weights of the module as the last C step did; see `attach` for what that makes of it.

        Parameters
        ----------
        batches : iterable of inputs, or of tuples that begin with them, optional
            Statistics of batch norms are measured again on these with the packed weights
            (`torch.optim.swa_utils.update_bn`); without, they are those of the last L step.

        Returns
        -------
        dict of str to PackedWeight
            By name. Their codebooks and scales can be trained further.
        """
        attached = attach(self._module, self.packed())
        if batches is not None:
            update_bn(batches, self._module)
        return attached

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and tensors from which `load_state_dict` goes on as if there had been no break.

        The module's and the optimizer's own state are not in it.
        """
        theta = [{key: torch.from_numpy(a.copy()) for key, a in packed.arrays().items()} for packed in self._theta]
        numbers = {"mu": self.mu, "growth": self.growth, "step": self.step}
        return {**numbers, "multipliers": dict(self.multipliers), "theta": theta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, of an LC made with the same arguments.

        Raises
        ------
        PQNetError
            If it is that of other weights or codecs.
        """
        tensors = self._tensors()
        shapes = {name: tuple(w.shape) for name, w in tensors.items()}
        wanted = {"mu", "growth", "step", "multipliers", "theta"}
        if set(state) != wanted:
            raise PQNetError(f"state: expected keys {sorted(wanted)}, got {sorted(state)}")
        got = {name: tuple(t.shape) for name, t in state["multipliers"].items()}
        if got != shapes or len(state["theta"]) != len(self._groups):
            raise PQNetError(f"state: expected that of weights {shapes}, got {got}")
        self._theta = [group.read(arrays) for group, arrays in zip(self._groups, state["theta"], strict=True)]
        check_numbers({"step": state["step"]}, {"mu": state["mu"], "growth": state["growth"]})
        self.mu, self.growth, self.step = float(state["mu"]), float(state["growth"]), int(state["step"])
        self.multipliers = {name: state["multipliers"][name].to(w.device) for name, w in tensors.items()}
        self._decode()
        self._aim()

    def _tensors(self) -> dict[str, Tensor]:
        for name, weight in self._weights.items():
            owner, attribute = weight.places[0]
            if attribute not in owner._parameters:
                raise PQNetError(f"weight {name!r}: expected a plain parameter, got a parametrized one; LC is finished")
        return {name: weight.tensor for name, weight in self._weights.items()}

    def _pack(self) -> None:
        """Find Theta for w - lambda/mu."""
        shifted = {name: w.detach() - self._shift(name) for name, w in self._tensors().items()}
        starts: Sequence[Packed | None] = self._theta or [None] * len(self._groups)
        try:
            fits = [group.fit(shifted, start, self.seed) for group, start in zip(self._groups, starts, strict=True)]
        except PQNetError as reason:
            if not self._theta or all(bool(target.isfinite().all()) for target in shifted.values()):
                raise
            # Steps of more than about 1/mu let weights go round what they are pulled to, ever further.
            raise PQNetError(
                f"{reason}; training does not converge: let learning rates fall as mu grows, {self.mu:.3g} after "
                f"{self.step} C steps (for SGD, `clip_lr` limits them), or choose a lower growth than {self.growth:g}"
            ) from None
        self._theta = fits
        self._decode()

    def _decode(self) -> None:
        """Set Delta(Theta)."""
        packed = self.packed()
        self._delta = {}
        for name, w in self._tensors().items():
            filters = torch.from_numpy(packed[name].decode())
            self._delta[name] = self._weights[name].form.from_filters(filters).contiguous().to(w.device)

    def _aim(self) -> None:
        """Set what the penalty pulls the weights to."""
        self._targets = {name: delta + self._shift(name) for name, delta in self._delta.items()}

    def _shift(self, name: str) -> Tensor:
        """Return lambda/mu, which is 0 where there is no penalty."""
        return self.multipliers[name] / (self.mu or math.inf)


class _Group:
    """Weights that are packed together: one, or several as one vector."""

    def __init__(self, weights: list[Weight], codec: Codec) -> None:
        self.weights = weights
        sizes = [math.prod(weight.form.shape) for weight in weights]
        self.shape = weights[0].form.shape if len(weights) == 1 else (1, sum(sizes))
        self.codec = codec.check(self.shape)
        self.label = ", ".join(repr(weight.name) for weight in weights)

    def fit(self, tensors: Mapping[str, Tensor], start: Packed | None, seed: int) -> Packed:
        """Pack tensors, given by name."""
        parts = [w.form.to_filters(tensors[w.name]).cpu().numpy().reshape(-1) for w in self.weights]
        target = np.concatenate(parts).reshape(self.shape)
        try:
            if len(self.weights) == 1:
                return fit_weight(self.weights[0], self.codec, target, warm=start, seed=seed)
            return self.codec.fit(target, warm=start, seed=seed)
        except PQNetError as reason:
            raise PQNetError(f"weight {self.label}: {reason}") from None

    def parts(self, whole: Packed) -> dict[str, Packed]:
        """Return each weight on its own."""
        if len(self.weights) == 1:
            return {self.weights[0].name: whole}
        split = whole.split([weight.form.shape for weight in self.weights])
        return {weight.name: own for weight, own in zip(self.weights, split, strict=True)}

    def read(self, arrays: Mapping[str, Tensor]) -> Packed:
        """Return what was saved as arrays."""
        plain = {key: tensor.cpu().numpy() for key, tensor in arrays.items()}
        return PACKED[self.codec.name].from_arrays(self.codec, self.shape, plain)


def _members(module: nn.Module, patterns: Iterable[str], chosen: Mapping[str, Codec]) -> list[str]:
    """Return the names of weights that are packed together."""
    if isinstance(patterns, str):
        raise ConfigError(f"joint: expected sequences of name patterns, got {patterns!r}")
    names = [name for name in match(module, dict.fromkeys(patterns, True)) if name in chosen]
    codecs = [chosen[name] for name in names]
    if len(names) < 2 or any(codec != codecs[0] for codec in codecs):
        got = {name: chosen[name] for name in names}
        raise ConfigError(f"joint: expected two weights or more with one codec, got {got}")
    if not codecs[0].joint:
        wanted = "a spatial PQ, or a Scalar, Fixed or IntN with per='tensor'"
        raise ConfigError(f"joint: expected {wanted}, got {codecs[0]!r}")
    return names


def _number(value: float, name: str, least: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < math.inf:
        raise ConfigError(f"{name}: expected a number of at least {least}, got {value!r}")
    return float(value)
