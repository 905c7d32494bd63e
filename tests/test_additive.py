"""Sums of codecs and sparse corrections: optima, monotone refits, storage, execution."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pqnet
from pqnet import PQ, Additive, ConfigError, Fixed, IntN, PQNetError, Scalar, Sparse
from pqnet.codecs import PACKED, PackedAdditive, PackedSparse, codec_from_attrs
from pqnet.codecs.layout import block_columns, to_blocks
from pqnet.fit.additive import metric_of_blocks

SUMS = [
    Additive([PQ(8, 4), PQ(8, 4)]),
    Additive([PQ(8, 9, codebook_dtype="int8"), Sparse(0.05)]),
    Additive([Sparse(count=3), Fixed("binary", "closed", "channel"), IntN(2, "tensor")], refits=1),
    Additive([Scalar(4), PQ(6, 2, "channel"), Sparse(count=2, value_dtype="float32")], refits=0),
]


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


# -- sparse -------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4))
def test_sparse_keeps_the_best_subset(seed, count):
    rng = np.random.default_rng(seed)
    w, h = rng.standard_normal((2, 3)).astype(np.float32), rng.exponential(size=3).astype(np.float32)
    packed = Sparse(count=count, value_dtype="float32").fit(w, metric=h[:, None, None])
    loss = (h * np.square(w)).reshape(-1)
    best = min(np.delete(loss, pick).sum() for pick in itertools.combinations(range(6), count))
    assert (h * np.square(w - packed.decode())).sum() == pytest.approx(best, abs=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([1, 7, 300, 70000]),
    share=st.sampled_from([0.0, 0.001, 0.03, 0.3, 1.0]),
    crowded=st.booleans(),
)
def test_gaps_round_trip(seed, n, share, crowded):
    rng = np.random.default_rng(seed)
    count = max(int(n * share), 1)
    positions = np.sort(rng.choice(min(n, 2 * count) if crowded else n, count, replace=False))
    values = rng.standard_normal(count)
    packed = PackedSparse(Sparse(count=count), (1, n), positions, values)
    assert np.array_equal(packed.codes, positions) and np.array_equal(packed.values, np.float16(values))
    want = np.zeros(n, np.float32)
    want[positions] = np.float16(values)
    assert np.array_equal(packed.decode()[0], want)
    assert PackedSparse.from_arrays(packed.codec, (1, n), packed.arrays()) == packed
    assert packed.code_nbytes <= 2 + n // 8 + 1  # a bitmap is one of the forms


def test_gaps_are_near_their_entropy():
    positions = np.flatnonzero(np.random.default_rng(0).random(100_000) < 0.01)
    packed = PackedSparse(Sparse(count=len(positions)), (100, 1000), positions, np.ones(len(positions)))
    entropy = -100_000 * (0.01 * np.log2(0.01) + 0.99 * np.log2(0.99)) / 8
    assert packed.code_nbytes < 1.12 * entropy


@pytest.mark.parametrize("shape", [(9, 12), (6, 4, 3, 3)])
def test_sparse_rows(shape):
    packed = Sparse(0.2).fit(draw(shape))
    ids = np.array([[5, 5, 0], [1, 2, 5]])
    assert np.array_equal(packed.decode_rows(ids), packed.decode()[ids])
    assert packed.decode_rows(ids[:0]).shape == (0, 3, *shape[1:])
    assert packed.codec.count == round(0.2 * np.prod(shape)) == len(packed.codebook)
    assert np.array_equal(packed.values, packed.decode().reshape(-1)[packed.codes])
    assert packed == Sparse(0.2).fit(draw(shape), threads=2) and "PackedSparse" in repr(packed)


# -- sums ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", SUMS)
@pytest.mark.parametrize("shape", [(12, 36), (12, 4, 3, 3)])
def test_sums_decode_store_and_compare(codec, shape):
    weight = draw(shape)
    packed = codec.fit(weight)
    assert packed.decode() == pytest.approx(np.sum([p.decode() for p in packed.parts], 0), abs=1e-5)
    ids = np.array([[5, 5, 0], [1, 2, 11]])
    assert np.array_equal(packed.decode_rows(ids), packed.decode()[ids])
    assert packed.nbytes == sum(a.nbytes for a in packed.arrays().values()) == sum(p.nbytes for p in packed.parts)
    assert PACKED["additive"].from_arrays(packed.codec, shape, packed.arrays()) == packed
    assert codec_from_attrs(packed.codec.to_attrs()) == packed.codec
    assert codec_from_attrs(codec.to_attrs()) == codec and len(packed.codes) == len(packed.codebook) == len(codec.parts)
    assert codec.fit(weight, threads=1) == codec.fit(weight, threads=2) and packed.codewords() is None
    assert packed != SUMS[0].fit(draw(shape, 1)) and "PackedAdditive(" in repr(packed)


@pytest.mark.parametrize("codec", SUMS[:3])
@pytest.mark.parametrize("kind", ["none", "pooled", "block", "groups"])
def test_refits_only_lower_the_error(codec, kind):
    weight, rng = draw((24, 4, 3, 3)), np.random.default_rng(1)
    d, layout = codec.blocks
    m = 36 // d
    shape = {"none": None, "pooled": (), "block": (m,), "groups": (2, m)}[kind]
    metric = None
    if shape is not None:
        factor = rng.standard_normal((*shape, d, d)) * rng.exponential(size=(*shape, 1, d))
        metric = (factor.swapaxes(-1, -2) @ factor + 0.1 * np.eye(d)).astype(np.float32)

    def error(packed):
        e = to_blocks((weight - packed.decode()).astype(np.float64), d, layout)
        if metric is None:
            return np.square(e).sum()
        groups = 2 if kind == "groups" else 1
        full = np.broadcast_to(metric, (groups, m, d, d))
        return sum(x @ full[o * groups // 24, i] @ x for o, row in enumerate(e) for i, x in enumerate(row))

    errors = [error(Additive(codec.parts, r).fit(weight, metric)) for r in (0, 1, 2, 5)]
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(errors)) and errors[-1] < errors[0]
    packed = Additive(codec.parts, 5).fit(weight, metric)
    assert error(Additive(codec.parts, 2).fit(weight, metric, warm=packed)) <= errors[0] * 1.05


def test_frequent_rows_weigh_more():
    weight, rows = draw((60, 8)), np.where(np.arange(60) < 6, 1000.0, 1.0)
    codec = Additive([PQ(8, 4), Sparse(count=8)])
    plain, frequent = (np.square(weight - codec.fit(weight, row_weights=r).decode()).sum(1) for r in (None, rows))
    assert frequent[:6].sum() < 0.5 * plain[:6].sum()


@pytest.mark.parametrize("have", [(9, "spatial"), (4, "channel"), (12, "spatial"), (2, "channel"), (36, "spatial")])
@pytest.mark.parametrize("want", [(1, "spatial"), (3, "spatial"), (2, "channel"), (4, "channel"), (9, "spatial")])
def test_metrics_of_other_blocks(have, want):
    """Cut from one whole matrix: the diagonal blocks if blocks nest, else the diagonal."""
    shape, rng = (6, 4, 3, 3), np.random.default_rng(0)
    factor = rng.standard_normal((36, 36))
    whole = (factor @ factor.T).astype(np.float32)

    def cut(matrix, blocks):
        columns = block_columns(shape, blocks[1]).reshape(-1, blocks[0])
        return matrix[columns[:, :, None], columns[:, None, :]]

    nested = have[0] == 36 or (have[1] == want[1] and have[0] % want[0] == 0)
    expected = cut(whole if nested else np.diag(np.diag(whole)), want)
    found = metric_of_blocks(cut(whole, have), shape, have, want)
    assert np.allclose(found, expected)
    both = metric_of_blocks(np.stack([cut(whole, have)] * 2), shape, have, want)
    assert np.allclose(both, np.stack([expected] * 2))
    pooled = metric_of_blocks(cut(whole, have).mean(0), shape, have, want)
    assert pooled.shape == (want[0], want[0]) and np.trace(pooled) / want[0] == pytest.approx(np.trace(whole) / 36)
    assert metric_of_blocks(None, shape, have, want) is None


@pytest.mark.parametrize("codec", [*SUMS, Sparse(0.3)])
def test_layers_run(codec):
    packed, x = codec.fit(draw((12, 36))), draw((3, 36), 1)
    assert pqnet.linear(x, packed) == pytest.approx(x @ packed.decode().T, abs=1e-3)
    assert np.array_equal(pqnet.embedding([[3, 0]], packed), packed.decode()[[[3, 0]]])
    filters = codec.fit(draw((12, 4, 3, 3)))
    patch = draw((2, 4, 3, 3), 2)
    want = np.einsum("bckl,ockl->bo", patch, filters.decode())
    assert pqnet.conv2d(patch, filters)[:, :, 0, 0] == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Sparse(), "Sparse: expected either fraction or count, got NoneType None and NoneType None"),
        (lambda: Sparse(0.1, 3), "Sparse: expected either fraction or count, got float 0.1 and int 3"),
        (lambda: Sparse(0.0), "Sparse.fraction: expected a number above 0 and up to 1, got float 0.0"),
        (lambda: Sparse(True), "Sparse.fraction: expected a number above 0 and up to 1, got bool True"),
        (lambda: Sparse(count=0), "Sparse.count: expected an integer >= 1, got 0"),
        (lambda: Sparse(0.5, value_dtype="int8"), "Sparse.value_dtype: expected one of 'float16', 'float32'"),
        (lambda: Sparse(count=9).fit(np.ones((2, 4))), "count: expected 1 to 8 entries for a weight of shape .* got 9"),
        (lambda: Sparse(0.5).fit(np.full((2, 4), 1e6)), "weight: expected values within float16's .*value_dtype="),
        (lambda: Sparse(0.5).fit(np.ones((2, 4)), warm=3), "warm: expected a weight packed by Sparse, got int 3"),
        (lambda: PackedSparse(None, (2, 4), [0], [1.0]), "codec: expected a Sparse, got NoneType None"),
        (lambda: PackedSparse(Sparse(count=2), (2, 4), [1, 0], [1.0, 2.0]), "positions: expected ascending places"),
        (lambda: PackedSparse(Sparse(count=2), (2, 4), [0, 8], [1.0, 2.0]), r"positions: expected entries in \[0, 8\)"),
        (lambda: Additive([PQ()]), "Additive.parts: expected 2 to 16 codecs, got list"),
        (lambda: Additive(PQ()), "Additive.parts: expected 2 to 16 codecs, got PQ"),
        (lambda: Additive([PQ(), SUMS[0]]), "Additive.parts: expected codecs that are not Additive, got Additive"),
        (lambda: Additive([PQ(), {"codec": "zip"}]), "Additive.parts: codec: expected one of"),
        (lambda: Additive([PQ(), Sparse(0.1)], refits=-1), r"Additive.refits: expected an integer in \[0, 1000\], got"),
        (lambda: SUMS[0].fit(np.ones((4, 6))), "d: expected a divisor of 6"),
        (lambda: SUMS[0].fit(np.ones((4, 8)), np.ones((2, 2))), r"metric: expected shape \(4, 4\) or \(\.\.\., 2, 4"),
        (lambda: SUMS[0].fit(np.ones((4, 8)), warm=3), "warm: expected a PackedAdditive of 2 parts, got int 3"),
        (lambda: PackedAdditive(SUMS[0], []), "parts: expected one packed weight for each part of the codec"),
    ],
)
def test_errors_name_the_argument_and_the_way_out(make, match):
    with pytest.raises((ConfigError, PQNetError), match=match):
        make()


def test_sums_hold_weights_of_one_shape():
    parts = [PQ(2, 4).fit(draw((8, 8))), PQ(2, 4).fit(draw((8, 4)))]
    with pytest.raises(PQNetError, match=r"parts: expected weights of one shape, got \[\(8, 8\), \(8, 4\)\]"):
        PackedAdditive(SUMS[0], parts)
