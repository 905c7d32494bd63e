"""The inner loops of k-means: a tile of blocks against codewords, and what lists of codewords are made with.

The blocks of a tile fill a few vectors for each coordinate, and several codewords are compared at a time, so that the
running sums and what they need just fit the register file: a load serves several multiply-adds, and those are the
limit. Numba cannot keep that many named vectors in a readable loop, hence LLVM code written out here.
"""

from functools import partial

import numpy as np
from llvmlite import ir
from numba import types

from pqnet.kernels.cpu import ISA, has
from pqnet.kernels.llvm import (
    INDEX,
    LONG,
    WORD,
    call,
    compiled_or,
    constant,
    element,
    fma,
    load,
    offset,
    shuffle,
    splat,
    store,
)
from pqnet.kernels.simd import FLOATS, INTS, WIDTH

VECTORS, GROUP = 2, 8 if ISA == "avx512" else 4  # of a tile, and codewords at a time, where they come from a list
ALL_VECTORS, ALL_GROUP = 4 if ISA == "avx512" else 2, 4  # and where all are looked at
TILE, ALL_TILE = VECTORS * WIDTH, ALL_VECTORS * WIDTH


def fused(b, x, y, total):
    """Emit total + x * y, rounded once."""
    return fma(b, x, y, total)


def splat_at(b, pointer, kind):
    """Emit a vector whose lanes are all one number in memory."""
    return splat(b, load(b, pointer), kind)


def multiply_add(b, start, tile, factors, initial, d, kind=FLOATS.llvm, combine=fused):
    """Emit initial[w] + sum_j factors(j)[w] * x[start + j * tile + lane]; factors gives pointers. Return the sums."""
    vectors, before = tile // WIDTH, b.block
    body, after = b.append_basic_block("coordinate"), b.append_basic_block("compare")
    b.branch(body)
    b.position_at_end(body)
    j = b.phi(LONG)
    sums = [[b.phi(kind) for _ in range(vectors)] for _ in initial]
    row = offset(b, start, b.mul(j, LONG(tile)))
    x = [load(b, offset(b, row, v * WIDTH), kind) for v in range(vectors)]
    results = []
    for pointer, total in zip(factors(j), sums, strict=True):
        factor = splat_at(b, pointer, kind)
        results.append([combine(b, factor, x[v], total[v]) for v in range(vectors)])
    following = b.add(j, LONG(1))
    j.add_incoming(LONG(0), before)
    j.add_incoming(following, body)
    for first, total, result in zip(initial, sums, results, strict=True):
        for v in range(vectors):
            total[v].add_incoming(first, before)
            total[v].add_incoming(result[v], body)
    b.cbranch(b.icmp_signed("<", following, d), body, after)
    b.position_at_end(after)
    return results


def _least(b, vectors, groups, compare):
    """Emit the loop over groups of codewords: compare(q) gives their numbers and sums; return the least and its number.

    In the order that codewords come in and only if less: ties keep the first.
    """
    lanes = FLOATS.llvm
    entry, loop = b.block, b.append_basic_block("group")
    b.branch(loop)
    b.position_at_end(loop)
    q = b.phi(LONG)
    best, code = [b.phi(lanes) for _ in range(vectors)], [b.phi(INTS.llvm) for _ in range(vectors)]
    new_best, new_code = list(best), list(code)
    for pointer, sums in compare(q):
        number = splat_at(b, pointer, INTS.llvm)
        for v in range(vectors):
            less = b.fcmp_ordered("<", sums[v], new_best[v])
            new_best[v] = b.select(less, sums[v], new_best[v])
            new_code[v] = b.select(less, number, new_code[v])
    following = b.add(q, LONG(1))
    q.add_incoming(LONG(0), entry)
    q.add_incoming(following, b.block)
    for v in range(vectors):
        best[v].add_incoming(constant(lanes, 3.4e38), entry)
        best[v].add_incoming(new_best[v], b.block)
        code[v].add_incoming(constant(INTS.llvm, 0), entry)
        code[v].add_incoming(new_code[v], b.block)
    end = b.append_basic_block("end")
    b.cbranch(b.icmp_signed("<", following, groups), loop, end)
    b.position_at_end(end)
    return new_best, new_code


def _search_all_reference(x, words, d, offset, offset_at, ids, groups, best_out, code_out):
    tile = x[: d * ALL_TILE].reshape(d, ALL_TILE).astype(np.float64)
    rows = words[: groups * ALL_GROUP * d].reshape(groups, d, ALL_GROUP).transpose(0, 2, 1).reshape(-1, d)
    sums = offset[offset_at : offset_at + len(rows), None] + rows.astype(np.float64) @ tile
    best_out[:ALL_TILE] = sums.min(0)
    code_out[:ALL_TILE] = ids[sums.astype(np.float32).argmin(0)]


def _search_all(context, x, words, d, offsets, offset_at, ids, groups, best_out, code_out):
    def codegen(context, b, signature, values):
        at = partial(element, context, b, signature, values)
        x, words, d, offsets, offset_at, ids, groups, best_out, code_out = range(9)

        def compare(q):
            first = b.mul(q, LONG(ALL_GROUP))
            start = at(words, b.mul(first, values[d]))
            offset_of, id_of = at(offsets, b.add(values[offset_at], first)), at(ids, first)

            def factors(j):
                row = offset(b, start, b.mul(j, LONG(ALL_GROUP)))
                return [offset(b, row, w) for w in range(ALL_GROUP)]

            initial = [splat_at(b, offset(b, offset_of, w), FLOATS.llvm) for w in range(ALL_GROUP)]
            sums = multiply_add(b, at(x, LONG(0)), ALL_TILE, factors, initial, values[d])
            return [(offset(b, id_of, w), sums[w]) for w in range(ALL_GROUP)]

        best, codes = _least(b, ALL_VECTORS, values[groups], compare)
        for v in range(ALL_VECTORS):
            store(b, best[v], at(best_out, LONG(v * WIDTH)))
            store(b, codes[v], at(code_out, LONG(v * WIDTH)))
        return context.get_dummy_value()

    return types.void(x, words, INDEX, offsets, INDEX, ids, INDEX, best_out, code_out), codegen


def _search_reference(x, at, words, d, offset, offset_at, ids, groups, kept, kept_step, best_out, code_out):
    tile = x[at : at + d * TILE].reshape(d, TILE).astype(np.float64)
    best, code = np.full(TILE, np.float32(3.4e38)), np.zeros(TILE, np.int32)
    for p in range(groups * GROUP):
        word = words[ids[p] * d : (ids[p] + 1) * d].astype(np.float64)
        sums = (offset[offset_at + ids[p]] + word @ tile).astype(np.float32)
        code[:], best[:] = np.where(sums < best, ids[p], code), np.minimum(sums, best)
        kept[p * kept_step : p * kept_step + TILE] = sums
    best_out[:TILE], code_out[:TILE] = best, code


def _search(context, x, at, words, d, offsets, offset_at, ids, groups, kept, kept_step, best_out, code_out):
    def codegen(context, b, signature, values):
        pointer = partial(element, context, b, signature, values)
        x, at, words, d, offsets, offset_at, ids, groups, kept, kept_step, best_out, code_out = range(12)

        def compare(q):
            first = b.mul(q, LONG(GROUP))
            listed = [offset(b, pointer(ids, first), w) for w in range(GROUP)]
            numbers = [b.sext(load(b, one), LONG) for one in listed]
            initial = [splat_at(b, pointer(offsets, b.add(values[offset_at], n)), FLOATS.llvm) for n in numbers]
            rows = [pointer(words, b.mul(n, values[d])) for n in numbers]
            start = pointer(x, values[at])
            sums = multiply_add(b, start, TILE, lambda j: [offset(b, row, j) for row in rows], initial, values[d])
            for w in range(GROUP):
                place = pointer(kept, b.mul(b.add(first, LONG(w)), values[kept_step]))
                for v in range(VECTORS):
                    store(b, sums[w][v], offset(b, place, v * WIDTH))
            return list(zip(listed, sums, strict=True))

        best, codes = _least(b, VECTORS, values[groups], compare)
        for v in range(VECTORS):
            store(b, best[v], pointer(best_out, LONG(v * WIDTH)))
            store(b, codes[v], pointer(code_out, LONG(v * WIDTH)))
        return context.get_dummy_value()

    n = INDEX
    return types.void(x, n, words, n, offsets, n, ids, n, kept, n, best_out, code_out), codegen


def _least_of_halves(b, first, second):
    return b.select(b.fcmp_ordered("<", first, second), first, second)


def _least_lanes_reference(a, b, c, d, out):
    out[:4] = [x.min() for x in (a, b, c, d)]


def _least_lanes(context, a, b, c, d, out):
    def codegen(context, b, signature, values):
        def fold(first, second, run):  # lanes come in runs that belong together: the halves of each are compared
            halves, lanes = [], range(2 * first.type.count if second is not None else first.type.count)
            for part in (0, run // 2):
                chosen = [lane for lane in lanes if part <= lane % run < part + run // 2]
                halves.append(shuffle(b, first, first if second is None else second, chosen))
            return _least_of_halves(b, *halves)

        one, two = fold(values[0], values[1], WIDTH), fold(values[2], values[3], WIDTH)
        all_four, run = fold(one, two, WIDTH // 2), WIDTH // 4
        while run > 1:
            all_four, run = fold(all_four, None, run), run // 2
        store(b, all_four, element(context, b, signature, values, 4, LONG(0)))
        return context.get_dummy_value()

    return types.void(FLOATS, FLOATS, FLOATS, FLOATS, out), codegen


def _least_lane_reference(a):
    return a.min()


def _least_lane(context, a):
    def codegen(context, b, signature, values):
        value, lanes = values[0], WIDTH
        while lanes > 1:
            lanes //= 2
            halves = [shuffle(b, value, value, range(start, start + lanes)) for start in (0, lanes)]
            value = _least_of_halves(b, *halves)
        return b.extract_element(value, WORD(0))

    return types.float32(FLOATS), codegen


def _append_reference(ids, at, first, values, limit):
    found = first + np.flatnonzero(values <= limit)
    ids[at : at + len(found)] = found
    return at + len(found)


def _append(context, ids, at, first, lanes, limit):
    def codegen(context, b, signature, values):
        ints = INTS.llvm
        mask = b.fcmp_ordered("<=", values[3], values[4])
        numbers = b.add(splat(b, b.trunc(values[2], WORD), ints), constant(ints, range(WIDTH)))
        pointer = element(context, b, signature, values, 0, values[1])
        if has("avx512f"):  # an instruction that also stores takes some hundred cycles on AMD's
            name = f"llvm.x86.avx512.mask.compress.v{WIDTH}i32"
            store(b, call(b, name, ints, numbers, numbers, mask), pointer)
        else:
            call(b, f"llvm.masked.compressstore.v{WIDTH}i32", ir.VoidType(), numbers, pointer, mask)
        bits = b.zext(b.bitcast(mask, ir.IntType(WIDTH)), LONG)
        return b.add(values[1], call(b, "llvm.ctpop.i64", LONG, bits))

    return INDEX(ids, INDEX, INDEX, FLOATS, FLOATS), codegen


def _transpose_reference(source, at, step, columns, out, to, out_step):
    for j in range(columns):
        out[to + j * out_step : to + j * out_step + WIDTH] = source[at + j :: step][:WIDTH]


def _zipped(b, first, second, size, high):  # runs of ``size`` lanes in turns, from each four lanes half of them
    def source(lane):
        place = lane // 4 * 4 + 2 * high + lane % 4 // (2 * size) * size + lane % size
        return place + WIDTH * (lane % 4 // size % 2)

    return shuffle(b, first, second, [source(lane) for lane in range(WIDTH)])


def _fours_of(b, first, second, odd):  # of both, the even or odd ones of the runs of four lanes
    half = WIDTH // 8
    runs = [2 * (i % half) + odd + i // half * WIDTH // 4 for i in range(2 * half)]
    return shuffle(b, first, second, [4 * run + lane for run in runs for lane in range(4)])


def _transposed_fours(b, vectors):  # runs of four lanes as the elements of a square matrix: that one transposed
    if len(vectors) == 1:
        return vectors
    even, odd = (
        _transposed_fours(b, [_fours_of(b, *vectors[i : i + 2], k) for i in range(0, len(vectors), 2)]) for k in (0, 1)
    )
    return [vector for pair in zip(even, odd, strict=True) for vector in pair]


def _transpose(context, source, at, step, columns, out, to, out_step):
    def codegen(context, b, signature, values):
        pointer = partial(element, context, b, signature, values)
        source, at, step, columns, out, to, out_step = range(7)
        starts = [pointer(source, b.add(values[at], b.mul(values[step], LONG(i)))) for i in range(WIDTH)]
        rows = [load(b, start, FLOATS.llvm) for start in starts]
        fours = []
        for i in range(0, WIDTH, 4):
            pairs = [_zipped(b, rows[i + k], rows[i + k + 1], 1, high) for k in (0, 2) for high in (0, 1)]
            fours.append([_zipped(b, pairs[high], pairs[2 + high], 2, end) for high in (0, 1) for end in (0, 1)])
        by_lane = [_transposed_fours(b, [four[k] for four in fours]) for k in range(4)]
        for j in range(WIDTH):
            with b.if_then(b.icmp_signed("<", LONG(j), values[columns])):
                place = pointer(out, b.add(values[to], b.mul(values[out_step], LONG(j))))
                store(b, by_lane[j % 4][j // 4], place)
        return context.get_dummy_value()

    n = INDEX
    return types.void(source, n, n, n, out, n, n), codegen


# h = offset[offset_at + k] + sum_j c[j] * x[at + j * tile + lane] for codewords c: the least of every lane and its k.
#
# search_all(x, words, d, offset, offset_at, ids, groups, best_out, code_out): ALL_GROUP * groups codewords in order,
# ALL_GROUP of them interleaved in words, ids[k] = k; a tile of ALL_TILE.
#
# search(x, at, words, d, offset, offset_at, ids, groups, kept, kept_step, best_out, code_out): the GROUP * groups
# codewords of the list ids, words row by row; a tile of TILE. All h of the p-th listed go to kept[p * kept_step:]
# (kept_step 0: one tile of kept is written again and again, for who does not need them).
search_all = compiled_or(_search_all_reference, _search_all)
search = compiled_or(_search_reference, _search)
least_lane = compiled_or(_least_lane_reference, _least_lane)
# (a, b, c, d, out): the least lane of each to out[0:4]
least_lanes = compiled_or(_least_lanes_reference, _least_lanes)
# (ids, at, first, values, limit): ids of lanes <= limit, counted from first; return the end. The memory after it, as
# far as WIDTH lanes reach, may change.
append_up_to = compiled_or(_append_reference, _append)
# (source, at, step, columns, out, to, out_step): out[to + j * out_step + lane] = source[at + lane * step + j] for
# j < columns and WIDTH lanes; at most WIDTH columns, as many are read
transpose = compiled_or(_transpose_reference, _transpose)
