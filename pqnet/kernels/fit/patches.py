"""Gathering the patches that a convolution's filters see at chosen positions."""

from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
def gather_patches(windows, rows, columns, groups, out_patches):
    # IN windows (B, C, kh, kw, Ho, Wo) f4, any strides; rows, columns (B, n) i8: positions taken of each image;
    # OUT patches (G, B * n, C / G * kh * kw) f4
    batch, n = rows.shape
    channels = windows.shape[1] // groups
    height, width = windows.shape[2], windows.shape[3]
    for b in range(batch):
        for i in range(n):
            y, x = rows[b, i], columns[b, i]
            for g in range(groups):
                patch = out_patches[g, b * n + i]
                at = 0
                for c in range(g * channels, (g + 1) * channels):
                    for r in range(height):
                        for s in range(width):
                            patch[at] = windows[b, c, r, s, y, x]
                            at += 1
