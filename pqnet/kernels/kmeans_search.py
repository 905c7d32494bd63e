"""The inner loop of k-means: a tile of TILE blocks against a list of codewords, and what the list is made with.

TILE blocks fill VECTORS vectors for each coordinate; GROUP codewords are compared at a time, so that the running sums
and what they need just fit the register file, a load serves several multiply-adds and those are the limit. Codewords
are taken from a list, because bounds leave out most of them. Numba cannot keep that many named vectors in a readable
loop, hence LLVM code written out here.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from pqnet.kernels.simd import FLOATS, INTS, ISA, WIDTH

VECTORS = 2 if ISA == "avx512" else 2
GROUP = 8
TILE = VECTORS * WIDTH

_WORD, _LONG = ir.IntType(32), ir.IntType(64)
_FIRST = ir.Constant(ir.VectorType(_WORD, WIDTH), [0] * WIDTH)


class _Arrays:
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

    def splat(self, pointer, vector):
        """Return all lanes equal to one number in memory."""
        empty = ir.Constant(vector.llvm, ir.Undefined)
        first = self.builder.insert_element(empty, self.builder.load(pointer), _WORD(0))
        return self.builder.shuffle_vector(first, empty, _FIRST)

    def load(self, pointer, offset):
        at = self.builder.gep(pointer, [_LONG(offset)])
        value = self.builder.load(self.builder.bitcast(at, FLOATS.llvm.as_pointer()))
        value.align = 4
        return value

    def store(self, value, pointer, offset):
        at = self.builder.gep(pointer, [_LONG(offset)])
        self.builder.store(value, self.builder.bitcast(at, value.type.as_pointer())).align = 4


def _sums(arrays, start, rows, initial, d, before):
    """Emit the loop over coordinates: initial[w] + sum_j rows[w][j] * x[start + j * TILE + lane]; return the sums."""
    b = arrays.builder
    fma = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(FLOATS.llvm, [FLOATS.llvm] * 3), f"llvm.fma.v{WIDTH}f32"
    )
    body, after = b.append_basic_block("coordinate"), b.append_basic_block("compare")
    b.branch(body)
    b.position_at_end(body)
    j = b.phi(_LONG)
    sums = [[b.phi(FLOATS.llvm) for _ in range(VECTORS)] for _ in rows]
    row = b.gep(start, [b.mul(j, _LONG(TILE))])
    x = [arrays.load(row, v * WIDTH) for v in range(VECTORS)]
    results = []
    for word, total in zip(rows, sums, strict=True):
        factor = arrays.splat(b.gep(word, [j]), FLOATS)
        results.append([b.call(fma, [factor, x[v], total[v]]) for v in range(VECTORS)])
    following = b.add(j, _LONG(1))
    j.add_incoming(_LONG(0), before)
    j.add_incoming(following, body)
    for first, total, result in zip(initial, sums, results, strict=True):
        for v in range(VECTORS):
            total[v].add_incoming(first, before)
            total[v].add_incoming(result[v], body)
    b.cbranch(b.icmp_signed("<", following, d), body, after)
    b.position_at_end(after)
    return results


def _search_code(context, b, signature, values):
    arrays = _Arrays(context, b, signature, values)
    x, at, words, d, offset, offset_at, ids, groups, kept, kept_step, best_out, best_at, code_out = range(13)
    start = arrays.pointer(x, values[at])
    lanes = FLOATS.llvm
    entry = b.block
    loop = b.append_basic_block("group")
    b.branch(loop)
    b.position_at_end(loop)
    q = b.phi(_LONG)
    best, code = [b.phi(lanes) for _ in range(VECTORS)], [b.phi(INTS.llvm) for _ in range(VECTORS)]
    first = b.mul(q, _LONG(GROUP))
    listed = [arrays.pointer(ids, first, _LONG(w)) for w in range(GROUP)]
    numbers = [b.sext(b.load(pointer), _LONG) for pointer in listed]
    initial = [arrays.splat(arrays.pointer(offset, values[offset_at], number), FLOATS) for number in numbers]
    rows = [arrays.pointer(words, b.mul(number, values[d])) for number in numbers]
    sums = _sums(arrays, start, rows, initial, values[d], b.block)
    after = b.block
    new_best, new_code = list(best), list(code)
    for w in range(GROUP):  # in the order of the list and only if less: ties keep the first
        number = arrays.splat(listed[w], INTS)
        place = arrays.pointer(kept, b.mul(b.add(first, _LONG(w)), values[kept_step]))
        for v in range(VECTORS):
            less = b.fcmp_ordered("<", sums[w][v], new_best[v])
            new_best[v] = b.select(less, sums[w][v], new_best[v])
            new_code[v] = b.select(less, number, new_code[v])
            arrays.store(sums[w][v], place, v * WIDTH)
    following = b.add(q, _LONG(1))
    q.add_incoming(_LONG(0), entry)
    q.add_incoming(following, after)
    for v in range(VECTORS):
        best[v].add_incoming(ir.Constant(lanes, [3.4e38] * WIDTH), entry)
        best[v].add_incoming(new_best[v], after)
        code[v].add_incoming(ir.Constant(INTS.llvm, [0] * WIDTH), entry)
        code[v].add_incoming(new_code[v], after)
    end = b.append_basic_block("end")
    b.cbranch(b.icmp_signed("<", following, values[groups]), loop, end)
    b.position_at_end(end)
    for v in range(VECTORS):
        arrays.store(new_best[v], arrays.pointer(best_out, values[best_at]), v * WIDTH)
        arrays.store(new_code[v], arrays.pointer(code_out), v * WIDTH)
    return context.get_dummy_value()


def _search():
    def twin(x, at, words, d, offset, offset_at, ids, groups, kept, kept_step, best_out, best_at, code_out):
        tile = x[at : at + d * TILE].reshape(d, TILE).astype(np.float64)
        best, code = np.full(TILE, np.float32(3.4e38)), np.zeros(TILE, np.int32)
        for p in range(groups * GROUP):
            word = words[ids[p] * d : (ids[p] + 1) * d].astype(np.float64)
            sums = (offset[offset_at + ids[p]] + word @ tile).astype(np.float32)
            code[:], best[:] = np.where(sums < best, ids[p], code), np.minimum(sums, best)
            kept[p * kept_step : p * kept_step + TILE] = sums
        best_out[best_at : best_at + TILE], code_out[:TILE] = best, code

    @intrinsic
    def search(context, x, at, words, d, offset, offset_at, ids, groups, kept, kept_step, best_out, best_at, code_out):
        n = types.intp
        signature = types.void(x, n, words, n, offset, n, ids, n, kept, n, best_out, n, code_out)
        return signature, _search_code

    return twin if config.DISABLE_JIT else search


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
            arrays = _Arrays(context, b, signature, arguments)
            mask = b.fcmp_ordered("<=", arguments[3], arguments[4])
            empty = ir.Constant(INTS.llvm, ir.Undefined)
            base = b.insert_element(empty, b.trunc(arguments[2], _WORD), _WORD(0))
            numbers = b.add(b.shuffle_vector(base, empty, _FIRST), ir.Constant(INTS.llvm, list(range(WIDTH))))
            pointer = arrays.pointer(0, arguments[1])
            kind = ir.FunctionType(ir.VoidType(), [INTS.llvm, pointer.type, mask.type])
            compress = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.compressstore.v{WIDTH}i32")
            b.call(compress, [numbers, pointer, mask])
            bits = b.zext(b.bitcast(mask, ir.IntType(WIDTH)), _LONG)
            count = cgutils.get_or_insert_function(b.module, ir.FunctionType(_LONG, [_LONG]), "llvm.ctpop.i64")
            return b.add(arguments[1], b.call(count, [bits]))

        return types.intp(ids, types.intp, types.intp, FLOATS, FLOATS), codegen

    return twin if config.DISABLE_JIT else append_up_to


# search(x, at, words, d, offset, offset_at, ids, groups, kept, kept_step, best_out, best_at, code_out):
# h = offset[offset_at + k] + sum_j words[k * d + j] * x[at + j * TILE + lane] for the GROUP * groups codewords k of the
# list ids; the least h and its k of every lane go to best_out[best_at:] and code_out[0:], and all h of the p-th listed
# to kept[p * kept_step:] (kept_step 0: one tile of kept is written again and again, for who does not need them).
search = _search()
least_lane = _least_lane()
append_up_to = _append()  # (ids, at, first, values, limit): ids of lanes <= limit, counted from first; return the end
