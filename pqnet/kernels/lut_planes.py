"""Products with packed weights for one position by tables in registers: sixty-four look-ups by a few byte permutations.

T[m, k] = block m of the position . codeword k; an output is the sum of T[m, code m]. A table of up to 256 float32 is
kept as four planes of bytes, which fill sixteen registers: a plane looks up sixty-four codes by two permutations of
128 bytes and a choice by the codes' highest bit. The four bytes of a number are then braided together again. Nothing
is rounded on the way, so sums are those of `kernels.lut_rows`. Needs AVX-512 VBMI: see `simd.BYTE_TABLES`.

Two steps: `look_up_planes` sums parts of the blocks, `sum_parts` adds the parts and finishes the outputs.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from pqnet.kernels.lut_rows import finish_outputs
from pqnet.kernels.simd import FLOATS, WIDTH, add, fma, load, splat, store

TILE = 64  # codes of one register
_BYTE, _WORD, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BYTES = ir.VectorType(_BYTE, TILE)


def order_codes(codes):
    """Return codes (.., TILE) of consecutive outputs in the order in which `look_up` leaves sums in order.

    Braiding works within the four quarters of a register: vector j of sums has bytes 4 j .. 4 j + 3 of each quarter.
    """
    quarters = codes.reshape(*codes.shape[:-1], 4, 4, 4)  # vector, quarter, byte
    return np.swapaxes(quarters, -3, -2).reshape(codes.shape)


def _shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_WORD, len(lanes)), list(lanes)))


def _braid(builder, a, b, size):
    """Return a0 b0 a1 b1 .. of the lower half of each quarter of two registers, and of the upper; lanes of ``size``."""
    n = TILE // size
    kind = ir.VectorType(ir.IntType(8 * size), n)
    a, b = builder.bitcast(a, kind), builder.bitcast(b, kind)
    halves = []
    for start in (0, n // 8):
        firsts = [quarter * (n // 4) + start + i for quarter in range(4) for i in range(n // 8)]
        halves.append(_shuffle(builder, a, b, [lane for i in firsts for lane in (i, n + i)]))
    return halves


def _looker(words):
    """Return look_up(tables, t, codes, c, n, sums, s): add the table at tables[t] to n tiles of sums from s.

    The table has ``words`` numbers, 128 or 256, in planes; codes c .. are in the order of `order_codes`.
    """

    def twin(tables, t, codes, c, n, sums, s):
        planes = tables[t : t + words].view(np.uint8).reshape(4, words)
        table = np.ascontiguousarray(planes.T).view(np.float32).reshape(-1)
        tiles = codes[c : c + n * TILE].reshape(n, TILE)
        sums[s : s + n * TILE] += table[order_codes(tiles).reshape(-1)]

    @intrinsic
    def look_up(context, tables, t, codes, c, n, sums, s):
        def codegen(context, builder, signature, values):
            def pointer(array, at, kind):
                data = context.make_array(signature.args[array])(context, builder, values[array]).data
                return builder.bitcast(builder.gep(data, [values[at]]), kind.as_pointer())

            def loaded(at, align):
                value = builder.load(at)
                value.align = align
                return value

            permutation = ir.FunctionType(_BYTES, [_BYTES] * 3)
            name = "llvm.x86.avx512.vpermi2var.qi.512"
            permute = cgutils.get_or_insert_function(builder.module, permutation, name)
            start, first = pointer(0, 1, _BYTES), pointer(2, 3, _BYTES)
            target = pointer(5, 6, FLOATS.llvm)
            parts = [loaded(builder.gep(start, [_LONG(i)]), 4) for i in range(words // 16)]
            planes = [parts[i : i + words // TILE] for i in range(0, len(parts), words // TILE)]
            with cgutils.for_range(builder, values[4]) as loop:
                code = loaded(builder.gep(first, [loop.index]), 1)
                upper = builder.icmp_signed("<", code, ir.Constant(_BYTES, [0] * TILE))
                found = []
                for plane in planes:
                    halves = [builder.call(permute, [plane[i], code, plane[i + 1]]) for i in range(0, words // TILE, 2)]
                    found.append(halves[0] if words == 128 else builder.select(upper, halves[1], halves[0]))
                low, high = _braid(builder, *found[:2], 1), _braid(builder, *found[2:], 1)
                pairs = [v for a, b in zip(low, high, strict=True) for v in _braid(builder, a, b, 2)]
                for j, numbers in enumerate(pairs):
                    at = builder.gep(target, [builder.add(builder.mul(loop.index, _LONG(4)), _LONG(j))])
                    total = builder.fadd(loaded(at, 4), builder.bitcast(numbers, FLOATS.llvm))
                    builder.store(total, at).align = 4
            return context.get_dummy_value()

        i = types.intp
        return types.void(tables, i, codes, i, i, sums, i), codegen

    return twin if config.DISABLE_JIT else look_up


def _plane_storer():
    """Return store_planes(array, i, step, a, b, c, d): byte p of these numbers at array[i + p * step], as bytes."""

    def twin(array, i, step, a, b, c, d):
        planes = np.concatenate([a, b, c, d]).view(np.uint8).reshape(-1, 4).T
        for p in range(4):
            array[i + p * step : i + p * step + WIDTH] = np.ascontiguousarray(planes[p]).view(np.float32)

    @intrinsic
    def store_planes(context, array, i, step, a, b, c, d):
        def codegen(context, builder, signature, values):
            data = context.make_array(signature.args[0])(context, builder, values[0]).data
            some = [builder.bitcast(v, _BYTES) for v in values[3:]]
            every = [lane for byte in range(4) for lane in range(byte, 2 * TILE, 4)]
            cuts = every[:TILE], every[TILE:]  # bytes 0 and 1 of two registers, bytes 2 and 3
            halves = [[_shuffle(builder, x, y, lanes) for x, y in (some[:2], some[2:])] for lanes in cuts]
            for p in range(4):
                base = p % 2 * 32
                lanes = [*range(base, base + 32), *range(TILE + base, TILE + base + 32)]
                plane = _shuffle(builder, *halves[p // 2], lanes)
                at = builder.gep(data, [builder.add(values[1], builder.mul(values[2], _LONG(p)))])
                builder.store(plane, builder.bitcast(at, _BYTES.as_pointer())).align = 4
            return context.get_dummy_value()

        i = types.intp
        return types.void(array, i, i, FLOATS, FLOATS, FLOATS, FLOATS), codegen

    return twin if config.DISABLE_JIT else store_planes


_look_up_128, _look_up_256, _store_planes = _looker(128), _looker(256), _plane_storer()


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _fill_planes(start, first, second, data, const, index, book, d, words, scratch):
    # OUT scratch (2 * words,) f4: the tables, as planes, of the blocks whose numbers are data[start + index[first + j]]
    # and data[start + index[second + j]]; a codeword is loaded once for both
    zero = splat(np.float32(0))
    for k in range(0, words, 4 * WIDTH):
        a0, a1, a2, a3, b0, b1, b2, b3 = zero, zero, zero, zero, zero, zero, zero, zero
        for j in range(d):
            v, w = splat(data[start + index[first + j]]), splat(data[start + index[second + j]])
            at = book + j * words + k
            c0, c1 = load(const, at), load(const, at + WIDTH)
            c2, c3 = load(const, at + 2 * WIDTH), load(const, at + 3 * WIDTH)
            a0, a1, a2, a3 = fma(v, c0, a0), fma(v, c1, a1), fma(v, c2, a2), fma(v, c3, a3)
            b0, b1, b2, b3 = fma(w, c0, b0), fma(w, c1, b1), fma(w, c2, b2), fma(w, c3, b3)
        # 4 * WIDTH = 64 numbers are 64 bytes of each plane, which are the room of WIDTH floats.
        _store_planes(scratch, k // 4, words // 4, a0, a1, a2, a3)
        _store_planes(scratch, words + k // 4, words // 4, b0, b1, b2, b3)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def look_up_planes(task, g, data, const, codes, index, scratch):
    # Fields 0-8 of a layer step, of one position. 24 codes: [group][block][tile], ordered by `order_codes`, 25
    # codebook, transposed: number j of word k at j * words + k, 26 d, 27 words: 128 or 256, 28 blocks of a group,
    # 29 blocks a part, 30 parts, 31 tiles a task, 32 tasks along the outputs of a group;
    # OUT data from 33: sums [part][group][tile]
    x, xg, i0, outputs, groups = g[0], g[2], g[3], g[5], g[6]
    first_code, book, d, words, blocks, some, parts = g[24], g[25], g[26], g[27], g[28], g[29], g[30]
    tiles = (outputs + TILE - 1) // TILE
    piece = task // parts
    part = task - piece * parts
    group = piece // g[32]
    tile = (piece - group * g[32]) * g[31]
    count = min(g[31], tiles - tile)
    sums = g[33] + ((part * groups + group) * tiles + tile) * TILE
    for i in range(sums, sums + count * TILE, WIDTH):
        store(data, i, splat(np.float32(0)))
    # A part sums its own blocks: their tables are made where they are read, and by one thread only.
    end = min((part + 1) * some, blocks)
    for block in range(part * some, end, 2):
        first = i0 + block * d
        second = first + d if block + 1 < end else first
        _fill_planes(x + group * xg, first, second, data, const, index, book, d, words, scratch)
        for i in range(min(2, end - block)):
            c = first_code + ((group * blocks + block + i) * tiles + tile) * TILE
            if words == 128:
                _look_up_128(scratch, i * words, codes, c, count, data, sums)
            else:
                _look_up_256(scratch, i * words, codes, c, count, data, sums)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def sum_parts(task, g, data, const, codes, index, scratch):
    # A layer step (fields 0-22) of one position. 24 parts, 25 tiles a task, 26 tasks along the outputs of a group,
    # 27 data: sums [part][group][tile]
    outputs, groups, parts, some = g[5], g[6], g[24], g[25]
    tiles = (outputs + TILE - 1) // TILE
    group = task // g[26]
    tile = (task - group * g[26]) * some
    count = min(some, tiles - tile) * TILE
    at = g[27] + (group * tiles + tile) * TILE
    for i in range(0, count, WIDTH):
        total = load(data, at + i)
        for part in range(1, parts):
            total = add(total, load(data, at + i + part * groups * tiles * TILE))
        store(scratch, i, total)
    n = min(count, outputs - tile * TILE)
    finish_outputs(scratch, group * outputs + tile * TILE, n, g, data, const)
