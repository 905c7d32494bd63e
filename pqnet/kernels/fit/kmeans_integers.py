"""Nearest codewords by 16-bit integers, exactly those of `kmeans.nearest_in_tiles`.

Where the processor multiplies pairs of 16-bit integers and adds them up in one instruction, a block meets a codeword
with half of the multiply-adds. Half distances become integers that carry the number of the codeword in their lowest
bits: the least is then one minimum, and another two keep the second least. Where the two differ by more than what
rounding, here and in float32, may have changed, the codeword is the one that float32 finds; the other blocks (some in a
hundred) are collected and looked at in float32.
"""

from functools import partial

import numpy as np
from numba import njit, types

from pqnet.kernels.fit.chunks import next_chunk
from pqnet.kernels.fit.kmeans import gather_tile, transform_tile
from pqnet.kernels.fit.kmeans_search import (
    ALL_GROUP,
    ALL_TILE,
    ALL_VECTORS,
    append_up_to,
    multiply_add,
    search_all,
    splat_at,
)
from pqnet.kernels.fit.settle import list_doubtful, measure_tile, settle_tile
from pqnet.kernels.llvm import INDEX, LONG, WORD, call, compiled_or, constant, element, offset
from pqnet.kernels.llvm import splat as emit_splat
from pqnet.kernels.llvm import store as emit_store
from pqnet.kernels.simd import (
    FLOATS,
    INTS,
    WIDTH,
    fma,
    load,
    multiply,
    round_even,
    select_less,
    splat,
    sqrt,
    store,
    store_int,
)

PAIR_GROUP = 2  # codewords at a time: more would wait to be compared until all are multiplied, fewer load more


def _multiply_add_pairs(b, x, y, total):
    # The dot products of pairs of 16-bit integers, added to 32-bit lanes
    return call(b, "llvm.x86.avx512.vpdpwssd.512", INTS.llvm, total, x, y)


def _pack_pair_reference(a, b):
    return (a.astype(np.int32) & 0xFFFF) | (b.astype(np.int32) << 16)


def _pack_pair(context, a, b):
    def codegen(context, builder, signature, values):
        low, high = (builder.fptosi(value, INTS.llvm) for value in values)
        low = builder.and_(low, constant(INTS.llvm, 0xFFFF))
        return builder.or_(low, builder.shl(high, constant(INTS.llvm, 16)))

    return INTS(FLOATS, FLOATS), codegen


def _two_least(b, groups, compare):
    # The loop over groups of codewords: compare(q) gives the keys of each, by vectors
    smaller, larger = (partial(call, b, f"llvm.{name}.v{WIDTH}i32", INTS.llvm) for name in ("smin", "smax"))
    entry, loop, end = b.block, b.append_basic_block("group"), b.append_basic_block("end")
    b.branch(loop)
    b.position_at_end(loop)
    q = b.phi(LONG)
    kept = [[b.phi(INTS.llvm) for _ in range(ALL_VECTORS)] for _ in range(2)]
    least, second = (list(vectors) for vectors in kept)
    for keys in compare(q):
        for v in range(ALL_VECTORS):
            second[v] = smaller(second[v], larger(least[v], keys[v]))
            least[v] = smaller(least[v], keys[v])
    following = b.add(q, LONG(1))
    q.add_incoming(LONG(0), entry)
    q.add_incoming(following, b.block)
    for before, after in zip(kept[0] + kept[1], least + second, strict=True):
        before.add_incoming(constant(INTS.llvm, 2**31 - 1), entry)
        before.add_incoming(after, b.block)
    b.cbranch(b.icmp_signed("<", following, groups), loop, end)
    b.position_at_end(end)
    return least, second


def _search_pairs_reference(x, words, pairs, offset, ids, groups, number, code_out, gap_out):
    tile = x[: pairs * ALL_TILE].view(np.int16).reshape(pairs, ALL_TILE, 2).astype(np.int64)
    rows = words[: groups * PAIR_GROUP * pairs].view(np.int16).reshape(groups, pairs, PAIR_GROUP, 2)
    sums = np.einsum("pli,gpwi->gwl", tile, rows.astype(np.int64)).reshape(-1, ALL_TILE)
    sums += offset[: len(sums), None]
    keys = np.sort((sums.astype(np.int32) & ~number) | ids[: len(sums), None], axis=0)
    code_out[:ALL_TILE] = keys[0] & number
    gap_out[:ALL_TILE] = keys[1].astype(np.float32) - keys[0].astype(np.float32)


def _search_pairs(context, x, words, pairs, offsets, ids, groups, number, code_out, gap_out):
    def codegen(context, b, signature, values):
        at = partial(element, context, b, signature, values)
        x, words, pairs, offsets, ids, groups, number, code_out, gap_out = range(9)
        ints = INTS.llvm
        lowest = emit_splat(b, b.trunc(values[number], WORD), ints)

        def compare(q):
            first = b.mul(q, LONG(PAIR_GROUP))
            start = at(words, b.mul(first, values[pairs]))

            def factors(p):
                row = offset(b, start, b.mul(p, LONG(PAIR_GROUP)))
                return [offset(b, row, w) for w in range(PAIR_GROUP)]

            initial = [splat_at(b, offset(b, at(offsets, first), w), ints) for w in range(PAIR_GROUP)]
            sums = multiply_add(b, at(x, LONG(0)), ALL_TILE, factors, initial, values[pairs], ints, _multiply_add_pairs)
            numbers = [splat_at(b, offset(b, at(ids, first), w), ints) for w in range(PAIR_GROUP)]
            rest = b.not_(lowest)
            return [[b.or_(b.and_(total, rest), k) for total in sums[w]] for w, k in enumerate(numbers)]

        least, second = _two_least(b, values[groups], compare)
        for v in range(ALL_VECTORS):
            emit_store(b, b.and_(least[v], lowest), at(code_out, LONG(v * WIDTH)))
            gap = b.fsub(b.sitofp(second[v], FLOATS.llvm), b.sitofp(least[v], FLOATS.llvm))
            emit_store(b, gap, at(gap_out, LONG(v * WIDTH)))
        return context.get_dummy_value()

    return types.void(x, words, INDEX, offsets, ids, INDEX, INDEX, code_out, gap_out), codegen


# (x, words, pairs, offset, ids, groups, number, code_out, gap_out): offset[k] + the products of a tile's pairs of
# 16-bit integers with those of PAIR_GROUP * groups codewords, the bits of ``number`` replaced by ids[k] = k. The number
# of the least in every lane, and by how much the second least is larger.
search_pairs = compiled_or(_search_pairs_reference, _search_pairs)
# Whole numbers a and b of 16 bits in the lower and upper halves of a lane
pack_pair = compiled_or(_pack_pair_reference, _pack_pair)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _round_tile(y, d, scale, out_x, out_norm):
    # OUT x (pairs * ALL_TILE) i4: coordinates 2 p and 2 p + 1 times scale, rounded, in the halves of a lane, 0 where
    # there is none; norm (ALL_TILE,) f4: sum y^2. What does not fit becomes some number: its norm tells.
    zero, factor = splat(np.float32(0.0)), splat(scale)
    top, bottom = splat(np.float32(32767.0)), splat(np.float32(-32767.0))
    for p in range(0, ALL_TILE, WIDTH):
        norm = zero
        for j in range(0, d, 2):
            a, b = load(y, j * ALL_TILE + p), zero
            if j + 1 < d:
                b = load(y, (j + 1) * ALL_TILE + p)
            norm = fma(a, a, fma(b, b, norm))
            a, b = multiply(a, factor), multiply(b, factor)
            a, b = select_less(a, top, a, top), select_less(b, top, b, top)
            a, b = select_less(bottom, a, a, bottom), select_less(bottom, b, b, bottom)
            store_int(out_x, j // 2 * ALL_TILE + p, pack_pair(round_even(a), round_even(b)))
        store(out_norm, p, norm)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def nearest_by_integers(
    counter, blocks, book, whole, ids, groups, chunk, scratch, tmp_pairs, tmp_rows, out_codes, out_range
):
    # IN as nearest_in_tiles, all blocks in their order and of one metric or none, whole: IntegerBook;
    # TMP pairs (chunks, P * ALL_TILE) i4, rows (chunks, (chunk + 1) * ALL_TILE) i4; OUT as nearest_in_tiles
    flat, metric = blocks.flat, blocks.metric
    d, n = metric.shape[2], out_codes.size
    matrices, offsets, none = metric.reshape(-1), book.offset.reshape(-1), tmp_rows[0, :0]
    tiles = (n + ALL_TILE - 1) // ALL_TILE
    chunks = (tiles + chunk - 1) // chunk
    c = next_chunk(counter)
    while c < chunks:
        codes, x, y, again = scratch.codes[c], scratch.x[c, 0], scratch.x[c, 0], tmp_rows[c]
        best, below, size, norm = scratch.lanes[c, 0], scratch.lanes[c, 1], scratch.lanes[c, 2], scratch.lanes[c, 3]
        starts, candidates, difference = scratch.starts[c], scratch.listed[c], scratch.difference[c]
        if metric.size:
            y = scratch.x[c, 1]
        zero = splat(np.float32(0.0))
        low, high, bad = zero, zero, zero
        listed = 0
        for t in range(c * chunk, min((c + 1) * chunk, tiles)):
            first = t * ALL_TILE
            gather_tile(flat, d, none, t, ALL_TILE, starts, x)
            for p in range(0, d * ALL_TILE, WIDTH):
                a = load(x, p)
                low, high, bad = select_less(a, low, a, low), select_less(high, a, a, high), fma(a, zero, bad)
            if metric.size:
                transform_tile(matrices, 0, d, x, ALL_TILE, y)
            if 4 * listed > first - c * chunk * ALL_TILE + 2 * ALL_TILE:  # too many are not told apart
                search_all(y, book.interleaved, d, offsets, 0, ids, groups, best, codes)
                measure_tile(x, y, d, ALL_TILE, size, norm, 0)
                doubtful = list_doubtful(size, norm, 0, ALL_TILE, book.doubt, 0, best, below, candidates)
                if doubtful:
                    settle_tile(
                        *(doubtful, blocks, book, offsets, none, first, 0, y, 0, ALL_TILE),
                        *(best, below, candidates, difference, codes),
                    )
            else:
                _round_tile(y, d, whole.scale, tmp_pairs[c], norm)
                search_pairs(
                    *(tmp_pairs[c], whole.pairs, (d + 1) // 2, whole.offset, ids, ALL_GROUP // PAIR_GROUP * groups),
                    *(whole.number, codes, best),
                )
                for p in range(0, ALL_TILE, WIDTH):  # best: by how much the second least is larger than the least
                    square = load(norm, p)
                    known = fma(splat(-whole.slope), sqrt(square), load(best, p))
                    known = select_less(square, splat(whole.largest), known, zero)  # not so if NaN either
                    listed = append_up_to(again, listed, first + p, known, splat(whole.margin))
            for lane in range(min(ALL_TILE, n - first)):
                out_codes[first + lane] = codes[lane]
        while listed > 0 and again[listed - 1] >= n:
            listed -= 1
        again[listed : listed + ALL_TILE] = -1
        for t in range((listed + ALL_TILE - 1) // ALL_TILE):
            gather_tile(flat, d, again, t, ALL_TILE, starts, x)
            if metric.size:
                transform_tile(matrices, 0, d, x, ALL_TILE, y)
            search_all(y, book.interleaved, d, offsets, 0, ids, groups, best, codes)
            measure_tile(x, y, d, ALL_TILE, size, norm, 0)
            doubtful = list_doubtful(size, norm, 0, ALL_TILE, book.doubt, 0, best, below, candidates)
            if doubtful:
                settle_tile(
                    *(doubtful, blocks, book, offsets, again, t * ALL_TILE, 0, y, 0, ALL_TILE),
                    *(best, below, candidates, difference, codes),
                )
            for lane in range(min(ALL_TILE, listed - t * ALL_TILE)):
                out_codes[again[t * ALL_TILE + lane]] = codes[lane]
        store(out_range[c], 0, low)
        store(out_range[c], WIDTH, high)
        store(out_range[c], 2 * WIDTH, bad)
        c = next_chunk(counter)
