"""Iterative product quantization: group after group of weights, while the rest of the network adapts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pqnet.codecs import PACKED, Codec
from pqnet.errors import ConfigError, PQNetError, of_layer
from pqnet.train.packed import PackedWeight, attach, check_codec, fit_weight, packed_weights
from pqnet.train.stored import Gradient
from pqnet.train.weights import find_weights, match

__all__ = ["IterativePQ"]


class IterativePQ:
    """Packs the weights of a module in stages, between which you train it (iPQ, Fan et al. 2021).

    Each stage quantizes some weights as training has left them; from then on their codes stay, and training moves their
    codebooks, and all weights that are not packed yet, so that they make up for what is lost. Weights near the input
    go first, as a rule, so that those behind can adapt.

    Parameters
    ----------
    module : Module
        Changed in place by `advance`.
    stages : sequence of dict of str to Codec or None
        By name pattern, see `pqnet.train.match`. ``"default"`` is for the weights that no other key matches and no
        earlier stage has packed. ``PQ(codebook_dtype="int8")`` gives codewords of integers.
    gradient : {"mean", "sum"}
        Of codewords, see `PackedWeight`.
    seed : int

    Attributes
    ----------
    stage : int
        Stages that `advance` has packed.
    done : bool
        Whether all are.

    Raises
    ------
    ConfigError
        A pattern that matches no weight, a weight in two stages, a codec that does not fit its weight: for all stages,
        before the first.

    Examples
    --------
    >>> import pqnet, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> ipq = IterativePQ(net, [{"0": pqnet.PQ(k=8, d=4)}, {"default": pqnet.PQ(k=4, d=4)}])
    >>> while not ipq.done:
    ...     made = ipq.advance()
    ...     optimizer = torch.optim.SGD(net.parameters(), 0.01)  # codebooks have taken the place of weights
    ...     for _ in range(3):
    ...         loss = net(torch.ones(2, 8)).square().mean()
    ...         optimizer.zero_grad()
    ...         loss.backward()
    ...         optimizer.step()
    ...     print(ipq.stage, *made)
    1 0
    2 2

    An optimizer that is to keep its state gets the new parameters by
    ``optimizer.add_param_group({"params": [p for weight in made.values() for p in weight.parameters()]})``; the weights
    that are packed now have no gradients any more, and it leaves them alone. ``DistributedDataParallel`` has to be made
    anew after `advance`.

    To resume, save ``ipq.state_dict()`` beside those of the module and the optimizer. Make module and `IterativePQ` as
    before, load the latter's state first, which packs the weights of the stages that are past, then the module's.
    """

    def __init__(
        self,
        module: nn.Module,
        stages: Sequence[Mapping[str, Codec | None]],
        *,
        gradient: Gradient = "mean",
        seed: int = 0,
    ) -> None:
        if isinstance(stages, Mapping | str) or not isinstance(stages, Sequence) or not stages:
            raise ConfigError(f"stages: expected a list of dicts, got {stages!r}")
        if gradient not in ("mean", "sum"):
            raise ConfigError(f"gradient: expected 'mean' or 'sum', got {gradient!r}")
        self.module, self.gradient, self.seed, self.stage = module, gradient, seed, 0
        weights = find_weights(module)
        self._stages: list[dict[str, Codec]] = []
        taken: set[str] = set()
        for number, what in enumerate(stages):
            try:
                chosen = _choose(module, what, taken)
                self._stages.append({name: check_codec(weights[name], codec) for name, codec in chosen.items()})
            except ConfigError as reason:
                raise ConfigError(f"stage {number}: {reason}") from None
            taken |= set(chosen)

    @property
    def done(self) -> bool:
        """Whether all stages are packed."""
        return self.stage == len(self._stages)

    def advance(self, metrics: Mapping[str, Any] | None = None) -> dict[str, PackedWeight]:
        """Pack the weights of the next stage.

        Parameters
        ----------
        metrics : dict of str to array, optional
            By name of the weight: second moments of its inputs, see `pqnet.fit.fit_pq`; of inputs from the present
            module, whose packed weights have changed them. Weights that it has not are fitted with none.

        Returns
        -------
        dict of str to PackedWeight
            By name of the weight; their parameters are new to the optimizer.

        Raises
        ------
        PQNetError
            If all stages are packed.
        ConfigError
            A metric for a weight that is not in the stage; a weight that cannot be packed, see `attach`.
        """
        if self.done:
            raise PQNetError(f"stage: expected one of the {self.stage} stages to be left, got none")
        stage, metrics = self._stages[self.stage], metrics or {}
        if unknown := [name for name in metrics if name not in stage]:
            raise ConfigError(f"metrics: expected names among {list(stage)}, got {unknown[0]!r}")
        weights = find_weights(self.module)
        what: dict[str, Any] = {}
        for name, codec in stage.items():
            what[name] = codec
            if name in metrics:
                dense = weights[name].form.to_filters(weights[name].tensor.detach()).float().cpu().numpy()
                with of_layer(name):
                    what[name] = fit_weight(weights[name], codec, dense, metric=metrics[name], seed=self.seed)
        made = attach(self.module, what, gradient=self.gradient, seed=self.seed)
        self.stage += 1
        return made

    def state_dict(self) -> dict[str, Any]:
        """Return the stage and the packed weights, as numbers and tensors."""
        packed = packed_weights(self.module)
        if lost := [name for stage in self._stages[: self.stage] for name in stage if name not in packed]:
            raise PQNetError(f"weight {lost[0]!r}: expected what advance has packed, got a plain weight; save earlier")
        weights = {
            name: {key: torch.from_numpy(array.copy()) for key, array in packed[name].packed().arrays().items()}
            for stage in self._stages[: self.stage]
            for name in stage
        }
        return {"stage": self.stage, "weights": weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Pack what was packed when `state_dict` was called; the module's own state dict can be loaded then.

        Raises
        ------
        PQNetError
            If a stage is packed already, or the state is of other stages.
        """
        if set(state) != {"stage", "weights"}:
            raise PQNetError(f"state: expected the keys stage and weights, got {sorted(state)}")
        stages = self._stages[: state["stage"]]
        names = [name for stage in stages for name in stage]
        if self.stage or set(state["weights"]) != set(names):
            raise PQNetError(
                f"state: expected the weights {names} of stages before the first advance, got {list(state['weights'])} "
                f"after {self.stage}"
            )
        weights = find_weights(self.module)
        what = {}
        for stage in stages:
            for name, codec in stage.items():
                arrays = {key: np.asarray(tensor.cpu().numpy()) for key, tensor in state["weights"][name].items()}
                what[name] = PACKED[codec.name].from_arrays(codec, weights[name].form.shape, arrays)
        if what:
            attach(self.module, what, gradient=self.gradient)
        self.stage = state["stage"]


def _choose(module: nn.Module, what: Mapping[str, Codec | None], taken: set[str]) -> dict[str, Codec]:
    """Return what a stage chooses for weights; its default leaves out what stages before have taken."""
    chosen: dict[str, Codec] = match(module, what)
    if again := taken & set(chosen):
        named = {pattern: codec for pattern, codec in what.items() if pattern != "default"}
        both = again & set(match(module, named) if any(codec is not None for codec in named.values()) else ())
        if both:
            raise ConfigError(f"weight {min(both)!r}: expected each weight in one stage, got it in an earlier one too")
        chosen = {name: codec for name, codec in chosen.items() if name not in taken}
        if not chosen:
            raise ConfigError("expected weights that no stage before has taken, got none")
    return chosen
