"""Packed weights inside PyTorch modules: decoded wherever the module uses them, their codebooks trained."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pqnet.codecs import PQ, Codec, Packed, PackedPQ
from pqnet.errors import ConfigError, PQNetError
from pqnet.train.stored import Gradient, make_stored
from pqnet.train.weights import FilterForm, Weight, find_weights, match

__all__ = ["PackedWeight", "attach", "detach", "packed_weights"]

TABLES = (nn.Embedding, nn.EmbeddingBag)


class PackedWeight(nn.Module):  # type: ignore[misc]
    """A packed weight as a parametrization (`torch.nn.utils.parametrize`) of a weight of a module; see `attach`.

    Codebooks, scales and the values of sparse weights are float32 parameters; codes, zero points and places are
    buffers. In ``eval()`` mode these parameters act as a file would hold them (float16 or int8), so that the weight
    is that of `packed`; in ``train()`` mode as they are, but for int8 codewords, which are rounded in both. Gradients
    pass through all rounding unchanged.

    Parameters
    ----------
    packed : Packed
    form : FilterForm
        Of the weight that it stands for.
    gradient : {"mean", "sum"}
        What a codeword's gradient is made of those of the blocks b_j that it stands for: their mean
        ``dL/dc_k = 1/|J_k| sum_{j in J_k} dL/db_j`` (And the Bit Goes Down; zero without members), or their sum, which
        is the derivative of the loss. That of scales is always the sum.

    Examples
    --------
    >>> import numpy as np, pqnet, torch
    >>> packed = pqnet.Scalar(k=2).fit(np.float32([[1, 1, 1, -1]]))
    >>> weight = PackedWeight(packed, FilterForm((1, 4)))
    >>> (weight() * torch.tensor([1.0, 2.0, 6.0, 4.0])).sum().backward()
    >>> {name: parameter.grad.tolist() for name, parameter in weight.named_parameters()}
    {'stored.codebook': [[4.0], [3.0]]}
    """

    def __init__(self, packed: Packed, form: FilterForm, gradient: Gradient = "mean") -> None:
        super().__init__()
        if not isinstance(packed, Packed) or packed.shape != form.shape:
            got = f"one of shape {packed.shape}" if isinstance(packed, Packed) else type(packed).__name__
            raise ConfigError(f"packed: expected a packed weight of shape {form.shape}, got {got}")
        if gradient not in ("mean", "sum"):
            raise ConfigError(f"gradient: expected 'mean' or 'sum', got {gradient!r}")
        self.form = form
        self.stored = make_stored(packed, gradient)
        self.attached = False

    def forward(self) -> Tensor:
        """Return the weight in the form of the module's parameter."""
        return self.form.from_filters(self.stored.decode())

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that PyTorch is to keep for `forward`: none, all parameters are here."""
        if self.attached:
            raise PQNetError("weight: expected no assignment to a packed weight; use reassign, or detach first")
        return ()

    def packed(self) -> Packed:
        """Return what the codec makes of the present parameters, as a file holds them.

        Raises
        ------
        PQNetError
            If training has left numbers that cannot be stored: NaN, or beyond the range of float16.
        """
        return self.stored.packed()

    def reassign(self, target: Tensor, metric: np.ndarray | None = None) -> None:
        """Choose all codes anew for the present codebooks and scales: the nearest to a weight.

        Sparse weights keep the largest numbers of ``target``; of a sum each part in turn takes what the others leave.

        Parameters
        ----------
        target : tensor
            In the form of the module's parameter.
        metric : array, optional
            For the `PQ` codec: second moments of the inputs of a block, shape (D, D), (M, D, D) or
            (groups, M, D, D), or of all inputs, (groups, 1, Kin, Kin), see `pqnet.fit.fit_pq`; under these a block's
            code depends on the others, and the present ones are the start. None is Euclidean.
        """
        if tuple(target.shape) != self.form.tensor_shape:
            raise PQNetError(f"target: expected shape {self.form.tensor_shape}, got {tuple(target.shape)}")
        if metric is not None and not self.stored.takes_metric:
            raise PQNetError(f"metric: expected None for {self.stored.codec!r}, got {type(metric).__name__}")
        training = self.training
        self.eval()  # codes are chosen for what is stored
        try:
            with torch.no_grad():
                self.stored.reassign(self.form.to_filters(target.detach()), metric)
        finally:
            self.train(training)


def attach(
    module: nn.Module,
    what: Mapping[str, Codec | Packed | None],
    *,
    gradient: Gradient = "mean",
    seed: int = 0,
) -> dict[str, PackedWeight]:
    """Pack weights of a module, in place: the module stays what it is, and computes with weights decoded from codes.

    Biases, padding, dropout and all else of the layers work as before, and so do other users of a tied weight. Hand the
    module's parameters to the optimizer after this: codebooks and scales take the place of the weights.

    Parameters
    ----------
    module : Module
    what : dict of str to Codec, Packed or None
        By name pattern, see `match`. A codec is fitted to the present weight; of an embedding whose row of its
        ``padding_idx`` is zero, `PQ` keeps it so.
    gradient : {"mean", "sum"}
        Of codewords, see `PackedWeight`.
    seed : int

    Returns
    -------
    dict of str to PackedWeight
        By name of the weight.

    Raises
    ------
    ConfigError
        A pattern that matches no weight, a codec that does not fit its weight, a weight that is already parametrized
        or not a float32 parameter. The module is then unchanged.

    Examples
    --------
    >>> import pqnet, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> packed = attach(net, {"0": pqnet.PQ(k=8, d=4)})
    >>> net(torch.zeros(1, 8)).sum().backward()
    >>> {name: tuple(p.grad.shape) for name, p in net.named_parameters() if "stored" in name}
    {'0.parametrizations.weight.0.stored.codebook': (8, 4)}
    >>> detach(net)
    >>> torch.equal(net[0].weight.detach(), torch.from_numpy(packed["0"].packed().decode()))
    True
    """
    weights = find_weights(module)
    chosen: dict[str, Codec | Packed] = match(module, what)
    for name, choice in chosen.items():
        check_choice(weights[name], choice)
    made = {}
    for name, choice in chosen.items():
        weight = weights[name]
        if weight.tensor.is_meta:
            raise PQNetError(f"module: expected weights with values, got {name!r} on the meta device; load it first")
        dense = weight.form.to_filters(weight.tensor.detach()).cpu().numpy()
        packed = fit_weight(weight, choice, dense, seed=seed) if isinstance(choice, Codec) else choice
        made[name] = PackedWeight(packed, weight.form, gradient)
    for name, parametrization in made.items():
        register(weights[name], parametrization)
    return made


def zero_row(weight: Weight, filters: np.ndarray | Tensor) -> int | None:
    """Return the row of an embedding's ``padding_idx`` if it is zero, as networks count on; None without one."""
    row = next((owner.padding_idx for owner, _ in weight.places if isinstance(owner, TABLES)), None)
    return None if row is None or bool(filters[row].any()) else int(row)


def fit_weight(weight: Weight, codec: Codec, filters: np.ndarray, warm: Packed | None = None, **options: Any) -> Packed:
    """Pack a weight, given in filter form. A row of zeros at the ``padding_idx`` of an embedding stays zero.

    `PQ` keeps a codeword for it alone, the last one, which `nn.Embedding` gives no gradient.
    """
    row = zero_row(weight, filters)
    if row is None:
        return codec.fit(filters, warm=warm, **options)
    found = codec.check(filters.shape)
    if isinstance(found, PQ) and found.k > 1 and len(filters) > 1:
        start = None if warm is None or warm.codec.n_codewords == 1 else _without_row(warm, row)
        k = found.k - 1 if start is None else start.codec.k
        rest = replace(found, k=k).fit(np.delete(filters, row, 0), warm=start, **options)
        assert isinstance(rest, PackedPQ)
        zero = np.zeros_like(rest.codebook[:1])
        codes = np.insert(rest.codes.astype(np.int64), row, rest.codec.k, axis=0)
        words = np.concatenate([rest.codebook, zero])
        return PackedPQ(replace(found, k=len(words)), filters.shape, codes, words, _scale(rest))
    packed = codec.fit(filters, warm=warm, **options)
    if packed.decode()[row].any():
        warnings.warn(
            f"weight {weight.name!r}: row {row}, its padding_idx, is no longer zero, which only PQ keeps; leave the "
            "weight out with None if the network counts on it",
            stacklevel=3,
        )
    return packed


def _without_row(packed: Packed, row: int) -> PackedPQ:
    """Return a packed weight without the row of the padding, and without the codeword for it."""
    assert isinstance(packed, PackedPQ)
    codec, (rows, *rest) = replace(packed.codec, k=packed.codec.k - 1), packed.shape
    codes = np.minimum(np.delete(packed.codes, row, 0), codec.k - 1)
    return PackedPQ(codec, (rows - 1, *rest), codes, packed.codebook[:-1], _scale(packed))


def _scale(packed: PackedPQ) -> float | None:
    return float(packed.arrays()["scale"][0]) if packed.codec.codebook_dtype == "int8" else None


def check_choice(weight: Weight, choice: Codec | Packed) -> None:
    """Raise ConfigError, naming the weight, if it cannot be packed by what was chosen for it."""
    where = f"weight {weight.name!r}"
    check_plain(weight)
    if any(getattr(owner, "sparse", False) for owner, _ in weight.places):
        raise ConfigError(f"{where}: expected sparse=False, for codebooks have dense gradients, got sparse=True")
    if weight.tensor.dtype != torch.float32:
        raise ConfigError(f"{where}: expected float32, got {weight.tensor.dtype}; call .float() on the module first")
    if not isinstance(choice, Packed):
        check_codec(weight, choice)
    elif choice.shape != weight.form.shape:
        raise ConfigError(f"{where}: expected a packed weight of shape {weight.form.shape}, got {choice.shape}")


def check_plain(weight: Weight) -> None:
    """Refuse a weight that something parametrizes already."""
    if any(attribute not in owner._parameters for owner, attribute in weight.places):
        raise ConfigError(
            f"weight {weight.name!r}: expected a plain parameter, got one that is already parametrized; undo this first"
        )


def check_codec(weight: Weight, codec: Codec) -> Codec:
    """Return a codec as it applies to a weight."""
    if not isinstance(codec, Codec):
        kind = type(codec).__name__
        raise ConfigError(f"weight {weight.name!r}: expected a codec, a packed weight or None, got {kind}")
    try:
        return codec.check(weight.form.shape)
    except ConfigError as reason:
        raise ConfigError(f"weight {weight.name!r}: {reason}") from None


def register(weight: Weight, parametrization: PackedWeight) -> None:
    """Put a packed weight in all places of a plain one."""
    tensor = weight.tensor
    parametrization.to(tensor.device).requires_grad_(tensor.requires_grad)
    parametrize_places(weight, parametrization)
    parametrization.attached = True


def parametrize_places(weight: Weight, parametrization: nn.Module) -> None:
    """Put one parametrization in all places of a plain weight."""
    shared = None
    for owner, attribute in weight.places:
        own_class(owner)
        parametrize.register_parametrization(owner, attribute, parametrization, unsafe=True)
        shared = shared or owner.parametrizations[attribute]
        owner.parametrizations[attribute] = shared  # tied weights stay one object, as PyTorch saves and copies them


def own_class(owner: nn.Module) -> None:
    """Give a parametrized module a class that copies of it do not share: PyTorch keeps the weights' names there."""
    if parametrize.is_parametrized(owner):
        cls = type(owner)
        members = {name: member for name, member in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        owner.__class__ = type(cls.__name__, cls.__bases__, members)


def packed_weights(module: nn.Module) -> dict[str, PackedWeight]:
    """Return the packed weights of a module, by name of the weight as in `find_weights`."""
    return {name: packed for name, (_, packed) in _attached(module).items()}


def _attached(module: nn.Module) -> dict[str, tuple[Weight, PackedWeight]]:
    found = {}
    for name, weight in find_weights(module).items():
        owner, attribute = weight.places[0]
        if parametrize.is_parametrized(owner, attribute):
            first = owner.parametrizations[attribute][0]
            if isinstance(first, PackedWeight):
                found[name] = weight, first
    return found


def detach(module: nn.Module) -> None:
    """Replace the packed weights of a module by plain parameters: the decoded weights, as a file would give them.

    Parameters
    ----------
    module : Module
        Changed in place; tied weights stay tied.

    Raises
    ------
    PQNetError
        If something else parametrizes a packed weight too, or one cannot be stored, see `PackedWeight.packed`.
    """
    attached = _attached(module)
    for name, (weight, _) in attached.items():
        owner, attribute = weight.places[0]
        if len(owner.parametrizations[attribute]) > 1:
            kind = type(owner.parametrizations[attribute][1]).__name__
            raise PQNetError(
                f"weight {name!r}: expected nothing on top of the packed weight, got {kind}; remove it first"
            )
    dense = {name: torch.from_numpy(packed.packed().decode()) for name, (_, packed) in attached.items()}
    for name, (weight, packed) in attached.items():
        trained = all(parameter.requires_grad for parameter in packed.parameters())
        tensor = packed.form.from_filters(dense[name]).contiguous().to(weight.tensor.device)
        plain = nn.Parameter(tensor, requires_grad=trained)
        for owner, attribute in weight.places:
            own_class(owner)
            parametrize.remove_parametrizations(owner, attribute)
            delattr(owner, attribute)
            owner.register_parameter(attribute, plain)
