"""The inner loops of k-means: a tile of blocks against codewords, and what lists of codewords are made with.

The blocks of a tile fill a few vectors for each coordinate, and several codewords are compared at a time, so that the
running sums and what they need just fit the register file: a load serves several multiply-adds, and those are the
limit. Numba cannot keep that many named vectors in a readable loop, hence LLVM code written out here.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from pqnet.kernels.cpu import ISA, has
from pqnet.kernels.simd import FLOATS, INTS, WIDTH

VECTORS, GROUP = 2, 8 if ISA == "avx512" else 4  # of a tile, and codewords at a time, where they come from a list
ALL_VECTORS, ALL_GROUP = 4 if ISA == "avx512" else 2, 4  # and where all are looked at
TILE, ALL_TILE = VECTORS * WIDTH, ALL_VECTORS * WIDTH

_WORD, _LONG = ir.IntType(32), ir.IntType(64)
_FIRST = ir.Constant(ir.VectorType(_WORD, WIDTH), [0] * WIDTH)


class Arrays:
    """Loads and stores at (array, index) inside an intrinsic."""

    def __init__(self, context, builder, signature, values):
        self.context, self.builder, self.signature, self.values = context, builder, signature, values

    def pointer(self, argument, *index):
        array = self.context.make_array(self.signature.args[argument])(
            self.context, self.builder, self.values[argument]
        )
        at = array.data
        for step in index:
            at = self.builder.gep(at, [step])
        return at

    def spread(self, number, vector):
        """Return all lanes equal to one number."""
        empty = ir.Constant(vector.llvm, ir.Undefined)
        first = self.builder.insert_element(empty, number, _WORD(0))
        return self.builder.shuffle_vector(first, empty, _FIRST)

    def splat(self, pointer, vector):
        """Return all lanes equal to one number in memory."""
        return self.spread(self.builder.load(pointer), vector)

    def load(self, pointer, offset, vector=FLOATS):
        at = self.builder.gep(pointer, [_LONG(offset)])
        value = self.builder.load(self.builder.bitcast(at, vector.llvm.as_pointer()))
        value.align = 4
        return value

    def store(self, value, pointer, offset):
        at = self.builder.gep(pointer, [_LONG(offset)])
        self.builder.store(value, self.builder.bitcast(at, value.type.as_pointer())).align = 4


def _fused(builder, total, a, b):
    kind = ir.FunctionType(FLOATS.llvm, [FLOATS.llvm] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32")
    return builder.call(function, [a, b, total])


def multiply_add(arrays, start, tile, factors, initial, d, vector=FLOATS, one=_fused):
    """Emit initial[w] + sum_j factors(j)[w] * x[start + j * tile + lane]; factors gives pointers. Return the sums."""
    b, vectors, before = arrays.builder, tile // WIDTH, arrays.builder.block
    body, after = b.append_basic_block("coordinate"), b.append_basic_block("compare")
    b.branch(body)
    b.position_at_end(body)
    j = b.phi(_LONG)
    sums = [[b.phi(vector.llvm) for _ in range(vectors)] for _ in initial]
    row = b.gep(start, [b.mul(j, _LONG(tile))])
    x = [arrays.load(row, v * WIDTH, vector) for v in range(vectors)]
    results = []
    for pointer, total in zip(factors(j), sums, strict=True):
        factor = arrays.splat(pointer, vector)
        results.append([one(b, total[v], factor, x[v]) for v in range(vectors)])
    following = b.add(j, _LONG(1))
    j.add_incoming(_LONG(0), before)
    j.add_incoming(following, body)
    for first, total, result in zip(initial, sums, results, strict=True):
        for v in range(vectors):
            total[v].add_incoming(first, before)
            total[v].add_incoming(result[v], body)
    b.cbranch(b.icmp_signed("<", following, d), body, after)
    b.position_at_end(after)
    return results


def _least(arrays, vectors, groups, compare):
    """Emit the loop over groups of codewords: compare(q) gives their numbers and sums; return the least and its number.

    In the order that codewords come in and only if less: ties keep the first.
    """
    b, lanes = arrays.builder, FLOATS.llvm
    entry, loop = b.block, b.append_basic_block("group")
    b.branch(loop)
    b.position_at_end(loop)
    q = b.phi(_LONG)
    best, code = [b.phi(lanes) for _ in range(vectors)], [b.phi(INTS.llvm) for _ in range(vectors)]
    new_best, new_code = list(best), list(code)
    for pointer, sums in compare(q):
        number = arrays.splat(pointer, INTS)
        for v in range(vectors):
            less = b.fcmp_ordered("<", sums[v], new_best[v])
            new_best[v] = b.select(less, sums[v], new_best[v])
            new_code[v] = b.select(less, number, new_code[v])
    following = b.add(q, _LONG(1))
    q.add_incoming(_LONG(0), entry)
    q.add_incoming(following, b.block)
    for v in range(vectors):
        best[v].add_incoming(ir.Constant(lanes, [3.4e38] * WIDTH), entry)
        best[v].add_incoming(new_best[v], b.block)
        code[v].add_incoming(ir.Constant(INTS.llvm, [0] * WIDTH), entry)
        code[v].add_incoming(new_code[v], b.block)
    end = b.append_basic_block("end")
    b.cbranch(b.icmp_signed("<", following, groups), loop, end)
    b.position_at_end(end)
    return new_best, new_code


def _search_all():
    def twin(x, words, d, offset, offset_at, ids, groups, code_out):
        tile = x[: d * ALL_TILE].reshape(d, ALL_TILE).astype(np.float64)
        rows = words[: groups * ALL_GROUP * d].reshape(groups, d, ALL_GROUP).transpose(0, 2, 1).reshape(-1, d)
        sums = offset[offset_at : offset_at + len(rows), None] + rows.astype(np.float64) @ tile
        code_out[:ALL_TILE] = ids[sums.astype(np.float32).argmin(0)]

    def code(context, b, signature, values):
        arrays = Arrays(context, b, signature, values)
        x, words, d, offset, offset_at, ids, groups, code_out = range(8)

        def compare(q):
            first = b.mul(q, _LONG(ALL_GROUP))
            places = [arrays.pointer(offset, values[offset_at], first, _LONG(w)) for w in range(ALL_GROUP)]
            start = arrays.pointer(words, b.mul(first, values[d]))

            def factors(j):
                row = b.gep(start, [b.mul(j, _LONG(ALL_GROUP))])
                return [b.gep(row, [_LONG(w)]) for w in range(ALL_GROUP)]

            initial = [arrays.splat(place, FLOATS) for place in places]
            sums = multiply_add(arrays, arrays.pointer(x), ALL_TILE, factors, initial, values[d])
            return [(arrays.pointer(ids, first, _LONG(w)), sums[w]) for w in range(ALL_GROUP)]

        _, codes = _least(arrays, ALL_VECTORS, values[groups], compare)
        for v in range(ALL_VECTORS):
            arrays.store(codes[v], arrays.pointer(code_out), v * WIDTH)
        return context.get_dummy_value()

    @intrinsic
    def search_all(context, x, words, d, offset, offset_at, ids, groups, code_out):
        n = types.intp
        return types.void(x, words, n, offset, n, ids, n, code_out), code

    return twin if config.DISABLE_JIT else search_all


def _search():
    def twin(x, at, words, d, offset, offset_at, ids, groups, kept, kept_step, best_out, code_out):
        tile = x[at : at + d * TILE].reshape(d, TILE).astype(np.float64)
        best, code = np.full(TILE, np.float32(3.4e38)), np.zeros(TILE, np.int32)
        for p in range(groups * GROUP):
            word = words[ids[p] * d : (ids[p] + 1) * d].astype(np.float64)
            sums = (offset[offset_at + ids[p]] + word @ tile).astype(np.float32)
            code[:], best[:] = np.where(sums < best, ids[p], code), np.minimum(sums, best)
            kept[p * kept_step : p * kept_step + TILE] = sums
        best_out[:TILE], code_out[:TILE] = best, code

    def code(context, b, signature, values):
        arrays = Arrays(context, b, signature, values)
        x, at, words, d, offset, offset_at, ids, groups, kept, kept_step, best_out, code_out = range(12)

        def compare(q):
            first = b.mul(q, _LONG(GROUP))
            listed = [arrays.pointer(ids, first, _LONG(w)) for w in range(GROUP)]
            numbers = [b.sext(b.load(pointer), _LONG) for pointer in listed]
            initial = [arrays.splat(arrays.pointer(offset, values[offset_at], n), FLOATS) for n in numbers]
            rows = [arrays.pointer(words, b.mul(n, values[d])) for n in numbers]
            start = arrays.pointer(x, values[at])
            sums = multiply_add(arrays, start, TILE, lambda j: [b.gep(row, [j]) for row in rows], initial, values[d])
            for w in range(GROUP):
                place = arrays.pointer(kept, b.mul(b.add(first, _LONG(w)), values[kept_step]))
                for v in range(VECTORS):
                    arrays.store(sums[w][v], place, v * WIDTH)
            return list(zip(listed, sums, strict=True))

        best, codes = _least(arrays, VECTORS, values[groups], compare)
        for v in range(VECTORS):
            arrays.store(best[v], arrays.pointer(best_out), v * WIDTH)
            arrays.store(codes[v], arrays.pointer(code_out), v * WIDTH)
        return context.get_dummy_value()

    @intrinsic
    def search(context, x, at, words, d, offset, offset_at, ids, groups, kept, kept_step, best_out, code_out):
        n = types.intp
        return types.void(x, n, words, n, offset, n, ids, n, kept, n, best_out, code_out), code

    return twin if config.DISABLE_JIT else search


def _least_lanes():
    def twin(a, b, c, d, out):
        out[:4] = [x.min() for x in (a, b, c, d)]

    def code(context, b, signature, values):
        def fold(first, second, run):  # lanes come in runs that belong together: the halves of each are compared
            halves, lanes = [], list(range(2 * first.type.count if second is not None else first.type.count))
            for part in (0, run // 2):
                chosen = [lane for lane in lanes if part <= lane % run < part + run // 2]
                mask = ir.Constant(ir.VectorType(_WORD, len(chosen)), chosen)
                halves.append(b.shuffle_vector(first, first if second is None else second, mask))
            return b.select(b.fcmp_ordered("<", *halves), *halves)

        one, two = fold(values[0], values[1], WIDTH), fold(values[2], values[3], WIDTH)
        all_four, run = fold(one, two, WIDTH // 2), WIDTH // 4
        while run > 1:
            all_four, run = fold(all_four, None, run), run // 2
        arrays = Arrays(context, b, signature, values)
        arrays.store(all_four, arrays.pointer(4), 0)
        return context.get_dummy_value()

    @intrinsic
    def least_lanes(context, a, b, c, d, out):
        return types.void(FLOATS, FLOATS, FLOATS, FLOATS, out), code

    return twin if config.DISABLE_JIT else least_lanes


def _least_lane():
    def twin(a):
        return a.min()

    @intrinsic
    def least_lane(context, a):
        def codegen(context, builder, signature, values):
            value, lanes = values[0], WIDTH
            while lanes > 1:
                lanes //= 2
                halves = [
                    builder.shuffle_vector(
                        value, value, ir.Constant(ir.VectorType(_WORD, lanes), list(range(start, start + lanes)))
                    )
                    for start in (0, lanes)
                ]
                value = builder.select(builder.fcmp_ordered("<", *halves), *halves)
            return builder.extract_element(value, _WORD(0))

        return types.float32(FLOATS), codegen

    return twin if config.DISABLE_JIT else least_lane


def _append():
    def twin(ids, at, first, values, limit):
        found = first + np.flatnonzero(values <= limit)
        ids[at : at + len(found)] = found
        return at + len(found)

    @intrinsic
    def append_up_to(context, ids, at, first, values, limit):
        def codegen(context, b, signature, arguments):
            arrays = Arrays(context, b, signature, arguments)
            mask = b.fcmp_ordered("<=", arguments[3], arguments[4])
            empty = ir.Constant(INTS.llvm, ir.Undefined)
            base = b.insert_element(empty, b.trunc(arguments[2], _WORD), _WORD(0))
            numbers = b.add(b.shuffle_vector(base, empty, _FIRST), ir.Constant(INTS.llvm, list(range(WIDTH))))
            pointer = arrays.pointer(0, arguments[1])
            if has("avx512f"):  # an instruction that also stores takes some hundred cycles on AMD's
                kind = ir.FunctionType(INTS.llvm, [INTS.llvm, INTS.llvm, mask.type])
                compress = cgutils.get_or_insert_function(b.module, kind, f"llvm.x86.avx512.mask.compress.v{WIDTH}i32")
                arrays.store(b.call(compress, [numbers, numbers, mask]), pointer, 0)
            else:
                kind = ir.FunctionType(ir.VoidType(), [INTS.llvm, pointer.type, mask.type])
                compress = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.compressstore.v{WIDTH}i32")
                b.call(compress, [numbers, pointer, mask])
            bits = b.zext(b.bitcast(mask, ir.IntType(WIDTH)), _LONG)
            count = cgutils.get_or_insert_function(b.module, ir.FunctionType(_LONG, [_LONG]), "llvm.ctpop.i64")
            return b.add(arguments[1], b.call(count, [bits]))

        return types.intp(ids, types.intp, types.intp, FLOATS, FLOATS), codegen

    return twin if config.DISABLE_JIT else append_up_to


def _transposer():
    def twin(source, at, step, columns, out, to, out_step):
        for j in range(columns):
            out[to + j * out_step : to + j * out_step + WIDTH] = source[at + j :: step][:WIDTH]

    def code(context, b, signature, values):
        arrays = Arrays(context, b, signature, values)
        source, at, step, columns, out, to, out_step = range(7)

        def zipped(first, second, size, high):  # runs of ``size`` lanes in turns, from each four lanes half of them
            lanes = range(WIDTH)
            picked = [lane // 4 * 4 + 2 * high + lane % 4 // (2 * size) * size + lane % size for lane in lanes]
            mask = [where + WIDTH * (lane % 4 // size % 2) for lane, where in zip(lanes, picked, strict=True)]
            return b.shuffle_vector(first, second, ir.Constant(ir.VectorType(_WORD, WIDTH), mask))

        def fours_of(first, second, odd):  # of both, the even or odd ones of the runs of four lanes
            half = WIDTH // 8
            runs = [2 * (i % half) + odd + i // half * WIDTH // 4 for i in range(2 * half)]
            mask = ir.Constant(ir.VectorType(_WORD, WIDTH), [4 * run + lane for run in runs for lane in range(4)])
            return b.shuffle_vector(first, second, mask)

        def turned(vectors):  # runs of four lanes as the elements of a square matrix: that one transposed
            if len(vectors) == 1:
                return vectors
            even, odd = ([fours_of(*vectors[i : i + 2], k) for i in range(0, len(vectors), 2)] for k in range(2))
            even, odd = turned_further(even), turned_further(odd)
            return [vector for pair in zip(even, odd, strict=True) for vector in pair]

        def turned_further(vectors):
            return vectors if len(vectors) == 1 else [fours_of(*vectors, k) for k in range(2)]

        rows = [arrays.load(arrays.pointer(source, values[at], b.mul(values[step], _LONG(i))), 0) for i in range(WIDTH)]
        fours = []
        for i in range(0, WIDTH, 4):
            pairs = [zipped(rows[i + k], rows[i + k + 1], 1, high) for k in (0, 2) for high in (0, 1)]
            fours.append([zipped(pairs[high], pairs[2 + high], 2, end) for high in (0, 1) for end in (0, 1)])
        by_lane = [turned([four[k] for four in fours]) for k in range(4)]
        for j in range(WIDTH):
            with b.if_then(b.icmp_signed("<", _LONG(j), values[columns])):
                place = arrays.pointer(out, values[to], b.mul(values[out_step], _LONG(j)))
                arrays.store(by_lane[j % 4][j // 4], place, 0)
        return context.get_dummy_value()

    @intrinsic
    def transpose(context, source, at, step, columns, out, to, out_step):
        n = types.intp
        return types.void(source, n, n, n, out, n, n), code

    return twin if config.DISABLE_JIT else transpose


# h = offset[offset_at + k] + sum_j c[j] * x[at + j * tile + lane] for codewords c: the least of every lane and its k.
#
# search_all(x, words, d, offset, offset_at, ids, groups, code_out): ALL_GROUP * groups codewords in order, ALL_GROUP of
# them interleaved in words, ids[k] = k; a tile of ALL_TILE.
#
# search(x, at, words, d, offset, offset_at, ids, groups, kept, kept_step, best_out, code_out): the GROUP * groups
# codewords of the list ids, words row by row; a tile of TILE. All h of the p-th listed go to kept[p * kept_step:]
# (kept_step 0: one tile of kept is written again and again, for who does not need them).
search_all, search = _search_all(), _search()
least_lane = _least_lane()
least_lanes = _least_lanes()  # (a, b, c, d, out): the least lane of each to out[0:4]
# (ids, at, first, values, limit): ids of lanes <= limit, counted from first; return the end. The memory after it, as
# far as WIDTH lanes reach, may change.
append_up_to = _append()
# (source, at, step, columns, out, to, out_step): out[to + j * out_step + lane] = source[at + lane * step + j] for
# j < columns and WIDTH lanes; at most WIDTH columns, as many are read
transpose = _transposer()
