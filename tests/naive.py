"""Slow twins that are obviously right: loops over plain indices, float64."""

import numpy as np

Pair = tuple[int, int]
Quad = tuple[int, int, int, int]


def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Pair = (1, 1),
    padding: Quad = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """Convolve x (B, C, H, W) with weight (O, C / groups, kh, kw); padding is top, left, bottom, right."""
    batch, _, height, width = x.shape
    filters, channels, kh, kw = weight.shape
    rows = (height + padding[0] + padding[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (width + padding[1] + padding[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((batch, filters, rows, columns))
    for b in range(batch):
        for o in range(filters):
            for r in range(rows):
                for s in range(columns):
                    for c in range(channels):
                        for i in range(kh):
                            for j in range(kw):
                                y = r * stride[0] + i * dilation[0] - padding[0]
                                z = s * stride[1] + j * dilation[1] - padding[1]
                                if 0 <= y < height and 0 <= z < width:
                                    source = o // (filters // groups) * channels + c
                                    out[b, o, r, s] += float(x[b, source, y, z]) * float(weight[o, c, i, j])
            out[b, o] += 0.0 if bias is None else float(bias[o])
    return out


def conv_transpose2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Pair = (1, 1),
    padding: Quad = (0, 0, 0, 0),
    output_padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """Spread every pixel of x (B, C, H, W) with weight (O, C / groups, kh, kw), the filter form."""
    batch, _, height, width = x.shape
    filters, channels, kh, kw = weight.shape
    rows = (height - 1) * stride[0] + dilation[0] * (kh - 1) + 1 - padding[0] - padding[2] + output_padding[0]
    columns = (width - 1) * stride[1] + dilation[1] * (kw - 1) + 1 - padding[1] - padding[3] + output_padding[1]
    out = np.zeros((batch, filters, rows, columns))
    for b in range(batch):
        for o in range(filters):
            for y in range(height):
                for z in range(width):
                    for c in range(channels):
                        for i in range(kh):
                            for j in range(kw):
                                r = y * stride[0] + i * dilation[0] - padding[0]
                                s = z * stride[1] + j * dilation[1] - padding[1]
                                if 0 <= r < rows and 0 <= s < columns:
                                    source = o // (filters // groups) * channels + c
                                    out[b, o, r, s] += float(x[b, source, y, z]) * float(weight[o, c, i, j])
            out[b, o] += 0.0 if bias is None else float(bias[o])
    return out
