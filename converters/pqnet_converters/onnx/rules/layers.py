"""Layers with weights and matrix products."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pqnet_converters.core.importer import Tensor, as_known
from pqnet_converters.onnx.importer import OnnxImporter
from pqnet_converters.onnx.registry import rule


def windows(b: OnnxImporter, x: Tensor, kernel: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return stride, dilation and padding of a convolution or pooling, whichever way the node gives them."""
    n = len(kernel)
    if x.rank != n + 2:
        raise b.refuse(f"expected an input of {n + 2} axes for a kernel of {n}, got shape {x.shape}")
    stride, dilation = tuple(b.attr("strides", [1] * n)), tuple(b.attr("dilations", [1] * n))
    auto = b.attr("auto_pad", "NOTSET")
    padding = tuple(b.attr("pads", [0] * 2 * n))
    if auto == "VALID":
        padding = (0,) * 2 * n
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for i in range(n):
            reach = (kernel[i] - 1) * dilation[i]
            if stride[i] == 1:
                total = reach
            else:
                size = b.fixed(x.shape[2 + i], f"size of axis {2 + i}, whose padding ({auto}) depends on it")
                total = max((-(-size // stride[i]) - 1) * stride[i] + reach + 1 - size, 0)
            before.append(total // 2 if auto == "SAME_UPPER" else -(-total // 2))
            after.append(total - before[-1])
        padding = (*before, *after)
    return {"stride": stride, "dilation": dilation, "padding": padding}


def _bias(bias: Tensor | None) -> Tensor | None:
    """Return the bias; none where it is zero, as some exporters write it."""
    return None if bias is None or (bias.constant is not None and not bias.constant.any()) else bias


@rule("Conv")
def conv(b: OnnxImporter, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = b.known(weight, "weight").shape[2:]
    window = windows(b, x, kernel)
    pads = window["padding"]
    if any(p < 0 for p in pads):
        raise b.refuse(f"expected padding of at least 0, got {pads}")
    params = {"weight": weight, "bias": _bias(bias)}
    return b.emit(f"conv{len(kernel)}d", x, name=b.layer(weight), params=params, groups=b.attr("group", 1), **window)


@rule("ConvTranspose")
def conv_transpose(b: OnnxImporter, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    array, groups = b.known(weight, "weight"), b.attr("group", 1)
    kernel = array.shape[2:]
    n = len(kernel)
    stride, dilation = tuple(b.attr("strides", [1] * n)), tuple(b.attr("dilations", [1] * n))
    more, padding = list(b.attr("output_padding", [0] * n)), list(b.attr("pads", [0] * 2 * n))
    auto, wanted = b.attr("auto_pad", "NOTSET"), b.attr("output_shape")
    if wanted is not None or auto in ("SAME_UPPER", "SAME_LOWER"):
        for i in range(n):
            size = b.fixed(x.shape[2 + i], f"size of axis {2 + i}, whose padding depends on it") if wanted else 0
            full = stride[i] * (size - 1) + more[i] + (kernel[i] - 1) * dilation[i] + 1
            total = full - (wanted[-n:][i] if wanted else stride[i] * size)
            if total < 0:
                more[i], total = more[i] - total, 0
            padding[i] = -(-total // 2) if auto != "SAME_UPPER" else total // 2
            padding[n + i] = total - padding[i]
    elif auto == "VALID":
        padding = [0] * 2 * n
    # (Cin, O / groups, *kernel) -> (O, Cin / groups, *kernel)
    grouped = array.reshape(groups, -1, *array.shape[1:]).swapaxes(1, 2)
    filters = grouped.reshape(-1, array.shape[0] // groups, *kernel)
    params = {"weight": as_known(filters, "float32", weight.origin), "bias": _bias(bias)}
    attrs: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": tuple(padding), "groups": groups}
    return b.emit(f"conv_transpose{n}d", x, name=b.layer(weight), params=params, output_padding=tuple(more), **attrs)


def linear(b: OnnxImporter, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """Emit a linear layer with a known matrix, (inputs, outputs) unless it is ``transposed``."""
    array = b.known(weight, "weight").reshape(weight.shape[-2:])
    filters = as_known(array if transposed else array.T, "float32", weight.origin)
    return b.emit("linear", x, name=b.layer(weight), params={"weight": filters, "bias": _bias(bias)})


@rule("MatMul")
def matmul(b: OnnxImporter, x: Tensor, y: Tensor) -> Tensor:
    x, y = b.cast(x, "float32"), b.cast(y, "float32")
    known = y.constant is not None and x.constant is None and y.constant.size > 0
    if known and x.rank >= y.rank >= 2 and all(size == 1 for size in y.shape[:-2]):
        return linear(b, x, y, None, False)
    return b.emit("matmul", x, y)


@rule("Gemm")
def gemm(b: OnnxImporter, x: Tensor, y: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta, dtype = b.attr("alpha", 1.0), b.attr("beta", 1.0), x.dtype
    left = b.cast(b.permute(x, (1, 0)) if b.attr("transA", 0) else x, "float32")
    transposed = bool(b.attr("transB", 0))
    if y.constant is not None and left.constant is None and alpha == 1:
        outputs = y.shape[0] if transposed else y.shape[1]
        row = c is not None and c.constant is not None and c.constant.size in (1, outputs) and c.shape[-1:] != ()
        if c is not None and row and beta == 1 and (c.rank == 1 or c.shape[0] == 1):
            assert c.constant is not None
            bias = np.broadcast_to(c.constant.reshape(-1), (outputs,))
            same = bias.size == c.constant.size
            return linear(b, left, y, as_known(bias, "float32", c.origin if same else None), transposed)
        product = linear(b, left, y, None, transposed)
    else:
        right = b.permute(y, (1, 0)) if transposed else y
        product = b.emit("matmul", left, b.cast(right, "float32"))
        product = product if alpha == 1 else b.emit("mul", product, scalar=alpha)
    if c is not None and beta != 0:
        term = b.cast(c, "float32")
        product = b.binary("add", product, term if beta == 1 else b.emit("mul", term, scalar=beta))
    return b.cast(product, dtype)


@rule("Einsum")
def einsum(b: OnnxImporter, *operands: Tensor) -> Tensor:
    equation = b.attr("equation").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if "." in equation:
        if any(t.count("...") > 1 for t in (*terms, result)):
            raise b.refuse(f"expected one ellipsis in each term, got {equation!r}")
        extra = max(x.rank - len(t.replace("...", "")) for t, x in zip(terms, operands, strict=True) if "." in t)
        letters = "".join(chr(ord("Ā") + i) for i in range(extra))
        terms = [
            t.replace("...", letters[extra - (x.rank - len(t) + 3) :]) if "." in t else t
            for t, x in zip(terms, operands, strict=True)
        ]
        result = result.replace("...", letters)
        if not arrow:
            result = letters
    if not arrow:
        every = "".join(terms)
        result += "".join(sorted(c for c in set(every) if every.count(c) == 1 and c not in result))
    if any(len(set(t)) != len(t) for t in terms):
        return _diagonal(b, operands, terms, result, equation)
    value, labels = operands[0], terms[0]
    for x, term in zip(operands[1:], terms[1:], strict=True):
        later = "".join(terms[terms.index(term) + 1 :]) + result
        value, labels = _contract(b, value, labels, x, term, later)
    gone = [i for i, c in enumerate(labels) if c not in result]
    if gone:
        value = b.emit("sum", value, axes=tuple(gone))
        labels = "".join(c for c in labels if c in result)
    return b.permute(value, tuple(labels.index(c) for c in result))


def _diagonal(b: OnnxImporter, operands: Sequence[Tensor], terms: list[str], result: str, equation: str) -> Tensor:
    raise b.refuse(f"a letter twice in one term, as in {equation!r}, has no rule")


def _contract(b: OnnxImporter, x: Tensor, left: str, y: Tensor, right: str, later: str) -> tuple[Tensor, str]:
    """Multiply two operands and add up along the letters that nothing later needs: one product of matrices."""
    batch = [c for c in left if c in right and c in later]
    inner = [c for c in left if c in right and c not in later]
    rows, columns = [c for c in left if c not in right], [c for c in right if c not in left]
    sizes = dict(zip(right, y.shape, strict=True)) | dict(zip(left, x.shape, strict=True))

    def product(letters: list[str]) -> Any:
        total: Any = 1
        for c in letters:
            total = total * sizes[c]
        return total

    a = b.permute(x, tuple(left.index(c) for c in (*batch, *rows, *inner)))
    d = b.permute(y, tuple(right.index(c) for c in (*batch, *inner, *columns)))
    lead = [sizes[c] for c in batch]
    a = b.reshape(a, (*lead, product(rows), product(inner)))
    d = b.reshape(d, (*lead, product(inner), product(columns)))
    value = matmul(b, a, d)
    labels = (*batch, *rows, *columns)
    return b.reshape(value, tuple(sizes[c] for c in labels)), "".join(labels)
