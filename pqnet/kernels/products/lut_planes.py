"""Products with packed weights for one position by tables in registers: sixty-four look-ups by a few byte permutations.

T[m, k] = block m of the position . codeword k; an output is the sum of T[m, code m]. A table of up to 256 float32 is
kept as four planes of bytes, which fill sixteen registers: a plane looks up sixty-four codes by two permutations of
128 bytes and a choice by the codes' highest bit. The four bytes of a number are then braided together again. Nothing
is rounded on the way, so sums are those of `kernels.products.lut_rows`. Needs AVX-512 VBMI: see `simd.BYTE_TABLES`.

Two steps: `look_up_planes` sums parts of the blocks, `sum_parts` adds the parts and finishes the outputs.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from pqnet.kernels.abi import CODES, CONST, DATA, SIZE, Arguments, step
from pqnet.kernels.llvm import BYTE, INDEX, LONG, call, compiled_or, constant, element, offset, shuffle
from pqnet.kernels.llvm import load as emit_load
from pqnet.kernels.llvm import store as emit_store
from pqnet.kernels.products.epilogue import EPILOGUE, WINDOWS
from pqnet.kernels.products.lut_rows import finish_outputs
from pqnet.kernels.simd import FLOATS, WIDTH, add, fma, load, splat, store

TILE = 64  # codes of one register
_BYTES = ir.VectorType(BYTE, TILE)


def order_codes(codes):
    """Return codes (.., TILE) of consecutive outputs in the order in which `look_up` leaves sums in order.

    Braiding works within the four quarters of a register: vector j of sums has bytes 4 j .. 4 j + 3 of each quarter.
    """
    quarters = codes.reshape(*codes.shape[:-1], 4, 4, 4)  # vector, quarter, byte
    return np.swapaxes(quarters, -3, -2).reshape(codes.shape)


def _braid(builder, a, b, size):
    """Return a0 b0 a1 b1 .. of the lower half of each quarter of two registers, and of the upper; lanes of ``size``."""
    n = TILE // size
    kind = ir.VectorType(ir.IntType(8 * size), n)
    a, b = builder.bitcast(a, kind), builder.bitcast(b, kind)
    halves = []
    for start in (0, n // 8):
        firsts = [quarter * (n // 4) + start + i for quarter in range(4) for i in range(n // 8)]
        halves.append(shuffle(builder, a, b, [lane for i in firsts for lane in (i, n + i)]))
    return halves


def _load_planes(builder, start, words):
    """Return the registers of each plane of a table."""
    parts = [emit_load(builder, offset(builder, start, i * WIDTH), _BYTES) for i in range(words // WIDTH)]
    return [parts[i : i + words // TILE] for i in range(0, len(parts), words // TILE)]


def _numbers_of(builder, planes, code):
    """Return the numbers of a table that TILE codes name, in the order that `order_codes` undoes."""
    found, upper = [], builder.icmp_signed("<", code, constant(_BYTES, 0))
    for plane in planes:
        pairs = [plane[i : i + 2] for i in range(0, len(plane), 2)]
        halves = [call(builder, "llvm.x86.avx512.vpermi2var.qi.512", _BYTES, low, code, high) for low, high in pairs]
        found.append(halves[0] if len(halves) == 1 else builder.select(upper, halves[1], halves[0]))
    low, high = _braid(builder, *found[:2], 1), _braid(builder, *found[2:], 1)
    return [v for a, b in zip(low, high, strict=True) for v in _braid(builder, a, b, 2)]


def _look_up(words):
    def reference(tables, t, codes, c, n, sums, s):
        planes = tables[t : t + words].view(np.uint8).reshape(4, words)
        table = np.ascontiguousarray(planes.T).view(np.float32).reshape(-1)
        tiles = codes[c : c + n * TILE].reshape(n, TILE)
        sums[s : s + n * TILE] += table[order_codes(tiles).reshape(-1)]

    def look_up(context, tables, t, codes, c, n, sums, s):
        def codegen(context, builder, signature, values):
            start, first, target = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 2, 5))
            planes = _load_planes(builder, start, words)
            with cgutils.for_range(builder, values[4]) as loop:
                tile = builder.mul(loop.index, LONG(TILE))
                code = emit_load(builder, offset(builder, first, tile), _BYTES, align=1)
                for j, number in enumerate(_numbers_of(builder, planes, code)):
                    at = offset(builder, target, builder.add(tile, LONG(j * WIDTH)))
                    total = builder.fadd(emit_load(builder, at, FLOATS.llvm), builder.bitcast(number, FLOATS.llvm))
                    emit_store(builder, total, at)
            return context.get_dummy_value()

        i = INDEX
        return types.void(tables, i, codes, i, i, sums, i), codegen

    return compiled_or(reference, look_up)


def _table_numbers_reference(planes, t, codes, c, n, target, s):
    table = np.ascontiguousarray(planes[t : t + 256].view(np.uint8).reshape(4, 256).T).view(np.float32).reshape(-1)
    target[s : s + n] = table[codes[c : c + n]]


def _emit_table_numbers(context, planes, t, codes, c, n, target, s):
    def codegen(context, builder, signature, values):
        start, first, target = (element(context, builder, signature, values, i, values[i + 1]) for i in (0, 2, 5))
        planes = _load_planes(builder, start, 256)
        order = order_codes(np.arange(TILE)).tolist()
        with cgutils.for_range(builder, builder.sdiv(builder.add(values[4], LONG(TILE - 1)), LONG(TILE))) as loop:
            tile = builder.mul(loop.index, LONG(TILE))
            code = emit_load(builder, offset(builder, first, tile), _BYTES, align=1)
            numbers = _numbers_of(builder, planes, shuffle(builder, code, code, order))
            for j, number in enumerate(numbers):
                emit_store(builder, number, offset(builder, target, builder.add(tile, LONG(j * WIDTH))))
        return context.get_dummy_value()

    i = INDEX
    return types.void(planes, i, codes, i, i, target, i), codegen


def _store_planes_reference(array, i, step, a, b, c, d):
    planes = np.concatenate([a, b, c, d]).view(np.uint8).reshape(-1, 4).T
    for p in range(4):
        array[i + p * step : i + p * step + WIDTH] = np.ascontiguousarray(planes[p]).view(np.float32)


def _emit_store_planes(context, array, i, step, a, b, c, d):
    def codegen(context, builder, signature, values):
        target = element(context, builder, signature, values, 0, values[1])
        some = [builder.bitcast(v, _BYTES) for v in values[3:]]
        every = [lane for byte in range(4) for lane in range(byte, 2 * TILE, 4)]
        cuts = every[:TILE], every[TILE:]  # bytes 0 and 1 of two registers, bytes 2 and 3
        halves = [[shuffle(builder, x, y, lanes) for x, y in (some[:2], some[2:])] for lanes in cuts]
        for p in range(4):
            base = p % 2 * 32
            lanes = [*range(base, base + 32), *range(TILE + base, TILE + base + 32)]
            plane = shuffle(builder, *halves[p // 2], lanes)
            emit_store(builder, plane, offset(builder, target, builder.mul(values[2], LONG(p))))
        return context.get_dummy_value()

    return types.void(array, INDEX, INDEX, FLOATS, FLOATS, FLOATS, FLOATS), codegen


# (tables, t, codes, c, n, sums, s): add the table at tables[t:] to n tiles of sums from s. The table has 128 or 256
# numbers, in planes; the codes from c are in the order of `order_codes`.
_look_up_128, _look_up_256 = _look_up(128), _look_up(256)
# (planes, t, codes, c, n, target, s): the n numbers of a table of 256 that codes in their own order name; up to
# TILE - 1 more codes are read, and numbers written, behind them
table_numbers = compiled_or(_table_numbers_reference, _emit_table_numbers)
# (array, i, step, a, b, c, d): byte p of these numbers at array[i + p * step:], as bytes
_store_planes = compiled_or(_store_planes_reference, _emit_store_planes)


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


# Outputs are cut in tiles of TILE.
LOOK_UP_PLANES = Arguments(
    layer=WINDOWS,  # of one position; offsets in the order of the blocks
    codes=CODES,  # [group][block][tile], each tile ordered by `order_codes`
    codebook=CONST,  # number j of word k at j * words + k
    d=SIZE,
    words=SIZE,  # 128 or 256
    blocks=SIZE,  # of a group
    part_blocks=SIZE,  # blocks a part
    parts=SIZE,
    tiles=SIZE,  # a task
    o_tasks=SIZE,  # tasks along the outputs of a group
    sums=DATA,  # OUT [part][group][tile]
)


@step(LOOK_UP_PLANES)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def look_up_planes(task, g, data, const, codes, index, scratch):
    layer, book, d, words, blocks, some, parts = g.layer, g.codebook, g.d, g.words, g.blocks, g.part_blocks, g.parts
    tiles = (layer.outputs + TILE - 1) // TILE
    piece = task // parts
    part = task - piece * parts
    group = piece // g.o_tasks
    tile = (piece - group * g.o_tasks) * g.tiles
    count = min(g.tiles, tiles - tile)
    sums = g.sums + ((part * layer.groups + group) * tiles + tile) * TILE
    for i in range(sums, sums + count * TILE, WIDTH):
        store(data, i, splat(np.float32(0)))
    # A part sums its own blocks: their tables are made where they are read, and by one thread only.
    end = min((part + 1) * some, blocks)
    for block in range(part * some, end, 2):
        first = layer.offsets + block * d
        second = first + d if block + 1 < end else first
        _fill_planes(layer.x + group * layer.group_step, first, second, data, const, index, book, d, words, scratch)
        for i in range(min(2, end - block)):
            c = g.codes + ((group * blocks + block + i) * tiles + tile) * TILE
            if words == 128:
                _look_up_128(scratch, i * words, codes, c, count, data, sums)
            else:
                _look_up_256(scratch, i * words, codes, c, count, data, sums)


SUM_PARTS = Arguments(
    end=EPILOGUE,  # of one position
    outputs=SIZE,  # of a group
    groups=SIZE,
    parts=SIZE,
    tiles=SIZE,  # a task
    o_tasks=SIZE,  # tasks along the outputs of a group
    sums=DATA,  # of `look_up_planes`
)


@step(SUM_PARTS)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def sum_parts(task, g, data, const, codes, index, scratch):
    outputs, groups = g.outputs, g.groups
    tiles = (outputs + TILE - 1) // TILE
    group = task // g.o_tasks
    tile = (task - group * g.o_tasks) * g.tiles
    count = min(g.tiles, tiles - tile) * TILE
    at = g.sums + (group * tiles + tile) * TILE
    for i in range(0, count, WIDTH):
        total = load(data, at + i)
        for part in range(1, g.parts):
            total = add(total, load(data, at + i + part * groups * tiles * TILE))
        store(scratch, i, total)
    n = min(count, outputs - tile * TILE)
    finish_outputs(scratch, group * outputs + tile * TILE, n, g.end, data, const)
