"""Images mixed of the rows and columns of others: resizing, pooling to a grid, putting phases together.

The columns of the rows that are needed are mixed first, then these rows.
"""

from llvmlite import ir
from numba import njit

from pqnet.kernels.abi import DATA, INDEX, MAYBE_CONST, SCRATCH, SIZE, Arguments, step
from pqnet.kernels.llvm import INDEX as POSITION
from pqnet.kernels.llvm import LONG, WORD, compiled_or, element, undefined
from pqnet.kernels.llvm import load as emit_load
from pqnet.kernels.simd import FLOATS, WIDTH, fma, load, maximum, multiply, splat, store, store_head

SUM, LARGEST = 0, 1


def _load_indexed_reference(array, start, index, at):
    return array[start + index[at : at + WIDTH]]


def _load_indexed(context, array, start, index, at):
    def codegen(context, builder, signature, values):
        first = element(context, builder, signature, values, 0, values[1])
        offsets = emit_load(
            builder, element(context, builder, signature, values, 2, values[3]), ir.VectorType(LONG, WIDTH), align=8
        )
        value = undefined(FLOATS.llvm)
        for lane in range(WIDTH):
            pointer = builder.gep(first, [builder.extract_element(offsets, WORD(lane))])
            value = builder.insert_element(value, builder.load(pointer), WORD(lane))
        return value

    return FLOATS(array, POSITION, index, POSITION), codegen


# (array, start, index, at): the WIDTH elements array[start + index[at + lane]]
load_indexed = compiled_or(_load_indexed_reference, _load_indexed)

# Row i of a result is the sum (or largest) of ``row_taps`` rows of the source times their weights: rows number
# index[row_numbers + i * row_taps + tap] of those that are needed, which lie at index[row_places + number]. The numbers
# grow with i. Columns likewise: element j of a row sees x[index[column_places + tap * padded + j]], where ``padded`` is
# the number of columns rounded up to whole vectors. The results are dense: [channel][image][rows][columns].
RESIZE = Arguments(
    x=DATA,
    out=DATA,
    channel_step=SIZE,
    image_step=SIZE,
    batch=SIZE,
    planes=SIZE,
    rows=SIZE,
    columns=SIZE,
    padded=SIZE,
    mode=SIZE,  # SUM, LARGEST
    row_taps=SIZE,
    row_numbers=INDEX,
    row_places=INDEX,
    row_weights=MAYBE_CONST,  # of a sum of several taps
    column_taps=SIZE,
    column_places=INDEX,
    column_weights=MAYBE_CONST,
    band=SIZE,  # rows of the result a task
    bands=SIZE,
    per_task=SIZE,  # bands
    mixed=SCRATCH,  # the rows that a band needs
)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _mix_columns(g, x, data, const, index, target, to, n):
    # OUT target: the n columns of the row at data[x:], nothing behind them
    taps, padded, places, weights = g.column_taps, g.padded, g.column_places, g.column_weights
    for j in range(0, n, WIDTH):
        v = load_indexed(data, x, index, places + j)
        if g.mode == LARGEST:
            for t in range(1, taps):
                v = maximum(v, load_indexed(data, x, index, places + t * padded + j))
        elif taps > 1:
            v = multiply(v, load(const, weights + j))
            for t in range(1, taps):
                at = t * padded + j
                v = fma(load_indexed(data, x, index, places + at), load(const, weights + at), v)
        if j + WIDTH <= n:
            store(target, to + j, v)
        else:
            store_head(target, to + j, v, n - j)


@step(RESIZE)
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def resize(task, g, data, const, codes, index, scratch):
    rows, columns, padded, taps, numbers, places = g.rows, g.columns, g.padded, g.row_taps, g.row_numbers, g.row_places
    mixed, largest = g.mixed, g.mode == LARGEST
    for unit in range(task * g.per_task, min((task + 1) * g.per_task, g.planes * g.bands)):
        plane = unit // g.bands
        first = (unit - plane * g.bands) * g.band
        last = min(first + g.band, rows)
        x = g.x + plane // g.batch * g.channel_step + plane % g.batch * g.image_step
        out = g.out + plane * rows * columns
        if taps == 1:
            for i in range(first, last):
                number, to = index[numbers + i], out + i * columns
                if i > first and number == index[numbers + i - 1]:
                    for j in range(0, columns, WIDTH):
                        if j + WIDTH <= columns:
                            store(data, to + j, load(data, to + j - columns))
                        else:
                            store_head(data, to + j, load(data, to + j - columns), columns - j)
                else:
                    _mix_columns(g, x + index[places + number], data, const, index, data, to, columns)
            continue
        low, high = index[numbers + first * taps], index[numbers + last * taps - 1]
        for number in range(low, high + 1):
            to = mixed + (number - low) * padded
            _mix_columns(g, x + index[places + number], data, const, index, scratch, to, columns)
        for i in range(first, last):
            at, w = numbers + i * taps, g.row_weights + i * taps
            for j in range(0, columns, WIDTH):
                start = mixed + j - low * padded
                v = load(scratch, start + index[at] * padded)
                if largest:
                    for t in range(1, taps):
                        v = maximum(v, load(scratch, start + index[at + t] * padded))
                else:
                    v = multiply(v, splat(const[w]))
                    for t in range(1, taps):
                        v = fma(load(scratch, start + index[at + t] * padded), splat(const[w + t]), v)
                if j + WIDTH <= columns:
                    store(data, out + i * columns + j, v)
                else:
                    store_head(data, out + i * columns + j, v, columns - j)
