"""Operations that PyTorch makes of others: with a rule, an exported program is translated without decomposing it."""

from collections.abc import Callable
from typing import Any

from pqnet_converters.torch.aten.activation import clamp
from pqnet_converters.torch.aten.layers import convolution
from pqnet_converters.torch.aten.norm import batch_norm, batch_norm_of_batch
from pqnet_converters.torch.aten.pool import max_pool2d
from pqnet_converters.torch.aten.registry import rule
from pqnet_converters.torch.aten.shape import permute, split
from pqnet_converters.torch.importer import Importer, Tensor


def _batched(b: Importer, n: int, x: Tensor, *arguments: Any) -> str:
    """Emit a convolution over n axes, of one sample as of a batch of one."""
    if x.rank == n + 2:
        return convolution(b, x, *arguments)
    one = Tensor((1, *x.shape), x.dtype, value=b.emit("reshape", x, shape=(1, *x.shape)))
    return b.emit("reshape", convolution(b, one, *arguments), shape=b.out_shape())


def _conv(n: int) -> Callable[..., str]:
    def conv(
        b: Importer, x: Tensor, w: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> str:
        if padding == "valid":
            padding = (0,)
        elif padding == "same":  # of an odd number of pixels one more behind
            steps = tuple(dilation) * (n if len(dilation) == 1 else 1)
            total = [step * (b.fixed(size) - 1) for step, size in zip(steps, w.shape[2:], strict=True)]
            padding = (*(t // 2 for t in total), *(t - t // 2 for t in total))
        return _batched(b, n, x, w, bias, stride, padding, dilation, False, (0,), groups)

    return conv


def _conv_transpose(n: int) -> Callable[..., str]:
    def conv(
        b: Importer, x: Tensor, w: Tensor, bias: Any, stride: Any, padding: Any, more: Any, groups: int, dilation: Any
    ) -> str:
        return _batched(b, n, x, w, bias, stride, padding, dilation, True, more, groups)

    return conv


for _n in (1, 2, 3):
    rule(f"aten.conv{_n}d.default", f"aten.conv{_n}d.padding")(_conv(_n))
    rule(f"aten.conv_transpose{_n}d.{'default' if _n == 1 else 'input'}")(_conv_transpose(_n))


@rule("aten.batch_norm.default")
def norm(
    b: Importer,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> str:
    if training or mean is None or var is None:
        batch_norm_of_batch(b)
    assert mean is not None and var is not None
    return batch_norm(b, x, weight, bias, mean, var, momentum, eps)[0]


@rule("aten.dropout.default", "aten.feature_dropout.default", "aten.contiguous.default")
def same(b: Importer, x: Tensor, *_: Any) -> Tensor:
    """Dropout in a network that is imported for inference, and how elements lie in memory."""
    return x


@rule("aten.relu6.default")
def relu6(b: Importer, x: Tensor) -> Tensor | str:
    return clamp(b, x, 0, 6)


@rule("aten.max_pool2d.default")
def pool(b: Importer, x: Tensor, *window: Any) -> str:
    return max_pool2d(b, x, *window)[0]


@rule("aten.transpose.int")
def transpose(b: Importer, x: Tensor, first: int, second: int) -> Tensor | str:
    axes = list(range(x.rank))
    if axes:
        axes[first], axes[second] = axes[second], axes[first]
    return permute(b, x, axes)


@rule("aten.chunk.default")
def chunk(b: Importer, x: Tensor, count: int, axis: int) -> tuple[str, ...]:
    return split(b, x, count, axis)
