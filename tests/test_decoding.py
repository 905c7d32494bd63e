"""What every codec says of its weights: bytes, parts, rows, equality; and that streams are read with little memory."""

import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pqnet
from pqnet import PQ, Additive, Fixed, FormatError, IntN, PackedPQ, PQNetError, Scalar, Sparse
from pqnet.codecs import (
    CODECS,
    FITTERS,
    PACKED,
    Codec,
    Decoding,
    Fit,
    Lookup,
    Packed,
    PackedAdditive,
    PackedScalar,
    PackedSparse,
    StoredSize,
)
from pqnet.codecs.gaps import Gaps, most_nbytes
from pqnet.codecs.layout import block_columns
from pqnet.codecs.packing import check_stream, pack_codes, unpack_at, unpack_codes
from pqnet.fit.error import measured
from pqnet.graph import GraphBuilder, ValueInfo

SHAPES = [(7, 12), (6, 4, 3, 3), (1, 24), (5, 8, 1, 1), (9, 1, 2, 6)]
SIMPLE = [
    PQ(5, 1),
    PQ(2, 4, "channel"),
    PQ(9, 4, "channel", "float32"),
    PQ(3, 2, codebook_dtype="int8"),
    PQ(1, 3),
    PQ(300, 1, clamp="floor"),
    Scalar(5),
    Scalar(17, codebook_dtype="float32"),
    Fixed("binary", "none"),
    Fixed("ternary", "learned", "channel"),
    Fixed([-1.0, 0.5, 2.0, 3.0, 9.0], "learned", "group", 3, scale_dtype="float32"),
    IntN(3, "tensor"),
    IntN(8),
    IntN(4, "channel", symmetric=False),
    IntN(5, "group", symmetric=False, group=4),
    Sparse(0.02),
    Sparse(0.9, value_dtype="float32"),
]
SUMS = [
    Additive([PQ(4, 2), PQ(6, 4, "channel"), Sparse(0.1)]),
    Additive([Sparse(0.2), IntN(4, "group", group=4), Sparse(0.05), Scalar(3)]),
    Additive([Sparse(0.2), Sparse(0.2)]),
]


def suits(codec: Codec, shape: tuple[int, ...]) -> bool:
    """Tell whether a codec applies to a shape."""
    try:
        codec.check(shape)
    except pqnet.ConfigError:
        return False
    return True


def made(codec: Codec, shape: tuple[int, ...], rng: np.random.Generator) -> Packed:
    """Return a weight of random codes and numbers."""
    codec = codec.check(shape)
    if isinstance(codec, Additive):
        return PackedAdditive(codec, [made(part, shape, rng) for part in codec.parts])
    inputs = prod(shape[1:])
    if isinstance(codec, PQ):
        codes = rng.integers(0, codec.k, (shape[0], inputs // codec.d))
        return PackedPQ(codec, shape, codes, rng.standard_normal((codec.k, codec.d)))
    if isinstance(codec, Sparse):
        places = np.sort(rng.choice(prod(shape), codec.count, replace=False))
        return PackedSparse(codec, shape, places, rng.standard_normal(codec.count))
    grid = codec.scale_grid(shape)
    return PackedScalar(
        codec,
        shape,
        rng.integers(0, codec.k, (shape[0], inputs)),
        rng.standard_normal((codec.k, 1)) if codec.levels is None else None,
        rng.standard_normal(grid) if codec.scaled else None,
        rng.integers(0, codec.k, grid) if codec.has_zeros else None,
    )


@pytest.mark.parametrize(("codec", "shape"), [(c, s) for c in SIMPLE + SUMS for s in SHAPES if suits(c, s)], ids=str)
def test_weights_are_what_their_description_says(codec: Codec, shape: tuple[int, ...]) -> None:
    """Bit by bit, whole and by rows, from a file too; equal to no other."""
    rng = np.random.default_rng(0)
    packed = made(codec, shape, rng)
    want = naive.decode(packed.decoding())
    assert packed.decode().tobytes() == want.tobytes() and want.dtype == np.float32
    rows = rng.integers(0, shape[0], (2, 3))
    assert packed.decode_rows(rows).tobytes() == want[rows].tobytes()
    assert packed.decode_rows(rows[:0]).shape == (0, 3, *shape[1:])
    again = PACKED[packed.codec.name].from_arrays(packed.codec, shape, packed.arrays())
    assert again == packed and repr(again) == repr(packed) and again.decode().tobytes() == want.tobytes()
    for lists in (entries.lists(shape) for entries in packed.decoding().entries):
        assert lists.starts.dtype == np.int64 and lists.columns.dtype == np.int32 and lists.values.dtype == np.float32
        assert lists.starts[0] == 0 and lists.starts[-1] == len(lists.columns) == len(lists.values)
    if isinstance(packed, PackedSparse):
        dense = np.zeros((shape[0], prod(shape[1:])), np.float32)
        for o in range(shape[0]):
            own = slice(lists.starts[o], lists.starts[o + 1])
            dense[o, lists.columns[own]] = lists.values[own]
        assert np.array_equal(dense.reshape(shape), want)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SIMPLE + SUMS), st.sampled_from(SHAPES), st.integers(0, 2**32 - 1))
def test_bytes_are_known_before_a_weight_is_packed(codec: Codec, shape: tuple[int, ...], seed: int) -> None:
    if not suits(codec, shape):
        for call in (codec.nbytes, codec.largest):
            with pytest.raises(pqnet.ConfigError):
                call(shape)
        return
    size = codec.nbytes(shape)
    packed, largest = made(codec, shape, np.random.default_rng(seed)), codec.largest(shape)
    assert (largest.code_nbytes, largest.codebook_nbytes, largest.nbytes) == (size.codes, size.codebooks, size.total)
    assert largest.codec == packed.codec and largest.shape == shape
    assert largest.arrays().keys() == packed.arrays().keys() and packed.codebook_nbytes == size.codebooks
    if packed.decoding().entries:
        assert packed.code_nbytes <= size.codes
    else:
        assert packed.code_nbytes == size.codes and packed.nbytes == size.total
    assert packed.nbytes == sum(array.nbytes for array in packed.arrays().values())


def test_every_codec_has_all_its_parts() -> None:
    assert set(CODECS) == set(PACKED) == set(FITTERS)


def test_weights_are_equal_if_all_that_is_stored_is() -> None:
    rng = np.random.default_rng(0)
    packed = {codec: made(codec, (12, 12), np.random.default_rng(1)) for codec in SIMPLE[:4] + SIMPLE[6:] + SUMS}
    for codec, one in packed.items():
        assert [other for other in packed if packed[other] == one] == [codec]
        assert one == made(codec, (12, 12), np.random.default_rng(1)) and one != made(codec, (6, 24), rng)
        arrays = one.arrays()
        for name, array in arrays.items():
            if name.endswith(("codebook", "scales", "values")):
                changed = array.copy()
                changed.reshape(-1)[0] += 1
                assert one != type(one).from_arrays(one.codec, one.shape, {**arrays, name: changed})
        assert one != codec and one != 3
        with pytest.raises(TypeError, match="unhashable"):
            hash(one)


def test_a_weight_is_shown_in_a_line() -> None:
    packed = made(PQ(8, 4), (16, 8), np.random.default_rng(0))
    assert repr(packed) == "PackedPQ(pq k=8 d=4 spatial, shape=(16, 8), 76 bytes, 6.7x smaller)"
    both = PackedAdditive(
        Additive([PQ(8, 4), Fixed([0.0, 1.0, 5.0], "none")]), [packed, Fixed([0.0, 1.0, 5.0], "none").largest((16, 8))]
    )
    assert repr(both).startswith("PackedAdditive(pq k=8 d=4 spatial + fixed 3 values tensor, shape=(16, 8), ")


# -- the search ---------------------------------------------------------------------------------------------------


METRICS: dict[Codec, list[tuple[int, ...]]] = {  # that a codec takes for a weight of shape (12, 4, 3, 3)
    PQ(6, 4, "channel", "float32"): [(4, 4), (9, 4, 4), (3, 9, 4, 4), (1, 1, 36, 36), (2, 1, 36, 36)],
    PQ(6, 9): [(9, 9), (2, 4, 9, 9), (1, 1, 36, 36)],
    Scalar(4): [(1, 1), (36, 1, 1), (3, 36, 1, 1)],
    Fixed("ternary", "closed"): [(36, 1, 1)],
    IntN(3, observer="output"): [(1, 1), (2, 36, 1, 1), (36, 36), (2, 1, 36, 36)],
    Sparse(0.1): [(36, 1, 1)],
    Additive([PQ(4, 4), Sparse(0.1)]): [(4, 4), (2, 9, 4, 4), (1, 1, 36, 36)],
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("codec", "shape"), [(c, s) for c, shapes in METRICS.items() for s in (None, *shapes)], ids=str
)
def test_the_error_of_a_fit_is_that_of_its_definition(codec: Codec, shape: Any, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((12, 4, 3, 3)).astype(np.float32)
    rows = rng.random(12).astype(np.float32) + 0.1 if weighted else None
    metric = None
    if shape is not None:
        half = rng.standard_normal((*shape[:-1], 2 * shape[-1] + 2)).astype(np.float32)
        metric = half @ half.swapaxes(-1, -2)
    fit = codec.search(weight, metric, row_weights=rows, threads=1)
    assert fit.packed == codec.fit(weight, metric, row_weights=rows)
    layout = codec.metric_blocks(weight.shape, whole=shape is not None and shape[-1] == 36)[1]
    change = (weight - fit.packed.decode()).reshape(12, -1)[:, block_columns(weight.shape, layout)].astype(np.float64)
    want = 0.0
    for o, e in enumerate(change):
        if metric is None:
            h = np.eye(36)
        else:
            blocks = metric[o * len(metric) // 12] if metric.ndim == 4 else metric
            d, h = shape[-1], np.zeros((36, 36))
            for m in range(36 // d):
                h[m * d : (m + 1) * d, m * d : (m + 1) * d] = blocks if blocks.ndim == 2 else blocks[m]
        want += (1.0 if rows is None else float(rows[o])) * float(e @ h @ e)
    assert fit.error == pytest.approx(want, rel=2e-4)


def test_a_codec_without_a_search_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FITTERS, "pq")
    with pytest.raises(PQNetError, match="codec 'pq': expected its search among .*'scalar'.*import pqnet.fit"):
        PQ(2, 4).fit(np.ones((2, 4)))


# -- streams ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 70000), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_parts_of_a_stream(k: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, k, n)
    stream, start = pack_codes(codes, k), int(rng.integers(0, n))
    assert np.array_equal(unpack_codes(stream, n - start, k, start), codes[start:])
    pick = rng.integers(0, n, (2, 3))
    assert np.array_equal(unpack_at(stream, pick, k), codes[pick])


@pytest.mark.parametrize("k", [2, 6, 500, 1000])
def test_streams_longer_than_a_piece(k: int) -> None:
    codes = np.random.default_rng(0).integers(0, k, 200_003)
    stream = pack_codes(codes, k)
    assert np.array_equal(unpack_codes(stream, 199_992, k, 11), codes[11:])
    assert np.array_equal(check_stream(stream, len(codes), k), stream)
    if k in (6, 500, 1000):
        codes[150_000] = k
        with pytest.raises(PQNetError, match=rf"codes: expected entries in \[0, {k}\), got one of {k}"):
            check_stream(pack_codes(codes, k), len(codes), k)


@given(st.sets(st.integers(0, 5000), min_size=1, max_size=200), st.lists(st.integers(0, 5001), max_size=8))
def test_places_between_two(chosen: set[int], bounds: list[int]) -> None:
    places = np.array(sorted(chosen))
    gaps = Gaps.pack(places)
    assert np.array_equal(gaps.places(), places) and gaps.last == places[-1]
    assert len(gaps.stream) <= most_nbytes(len(places), 5001)
    starts, ends = np.array(bounds[::2], int), np.array(bounds[1::2] + [5001] * (len(bounds) % 2), int)
    which, entries, found = gaps.between(starts, ends)
    want = [
        (i, number, place)
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
        for number, place in enumerate(places.tolist())
        if start <= place < end
    ]
    assert list(zip(which.tolist(), entries.tolist(), found.tolist(), strict=True)) == want


@pytest.mark.parametrize("share", [0.7, 0.1, 0.004])
def test_places_of_streams_longer_than_a_piece(share: float) -> None:
    shape = 500, 600
    places = np.flatnonzero(np.random.default_rng(0).random(prod(shape)) < share)
    packed = PackedSparse(Sparse(count=len(places)), shape, places, np.ones(len(places)))
    assert np.array_equal(packed.codes, places)
    rows = np.array([499, 0, 250, 250])
    assert np.array_equal(packed.decode_rows(rows), packed.decode()[rows])
    assert np.array_equal(packed.decode().reshape(-1).nonzero()[0], places)
    damaged = packed.arrays()["gaps"].copy()
    damaged[1000:] = 255
    with pytest.raises(FormatError, match="gaps: expected those of"):
        PackedSparse.from_arrays(packed.codec, shape, {**packed.arrays(), "gaps": damaged})


def test_columns_that_32_bits_do_not_hold() -> None:
    entries = PackedSparse(Sparse(count=4096), (1, 1 << 32), np.arange(4096), np.ones(4096)).decoding().entries[0]
    with pytest.raises(PQNetError, match="weight: expected at most 2147483647 inputs of an output, got 4294967296"):
        entries.lists((1, 1 << 32))


def peak(call: Callable[[], object]) -> int:
    """Return the most bytes that a call holds at a time."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LARGE = {  # a megabyte of codes or less; rows of all sizes
    "binary": (Fixed("binary", "none"), (1024, 8192)),
    "one row": (Fixed("binary", "none"), (1, 1 << 21)),
    "ternary": (Fixed("ternary", "learned", "channel"), (4096, 512)),
    "pq": (PQ(512, 4), (4096, 512)),
    "channel": (PQ(300, 4, "channel"), (512, 128, 3, 3)),
    "sum": (Additive([PQ(512, 4), IntN(4)]), (4096, 512)),
    "sparse": (Sparse(0.05), (1024, 2048)),
    "dense sparse": (Sparse(0.6), (1024, 1024)),
}


@pytest.mark.parametrize("name", LARGE)
def test_little_memory_beside_the_result(name: str) -> None:
    codec, shape = LARGE[name]
    packed = made(codec, shape, np.random.default_rng(0))
    arrays, spare = packed.arrays(), 4 << 20
    assert peak(lambda: PACKED[packed.codec.name].from_arrays(packed.codec, shape, arrays)) < packed.nbytes + spare
    assert peak(packed.decode) < 4 * prod(shape) + spare
    rows = np.arange(12) % shape[0]
    assert peak(lambda: packed.decode_rows(rows)) < 4 * len(rows) * prod(shape[1:]) + (2 << 20)


# -- one more codec -----------------------------------------------------------------------------------------------


def test_a_new_codec_needs_its_own_files_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fitted, summed, sized, stored, loaded and run: of one that keeps numbers in half precision."""
    monkeypatch.setitem(CODECS, "half", Codec)  # so that what the classes below put there is taken out again
    monkeypatch.setitem(PACKED, "half", Packed)

    @dataclass(frozen=True)
    class Half(Codec):
        name: ClassVar[str] = "half"
        blocks = 1, "spatial"

        def to_attrs(self) -> dict[str, Any]:
            return {"codec": "half"}

        def check(self, shape: tuple[int, ...]) -> "Half":
            return self

        def nbytes(self, shape: tuple[int, ...]) -> StoredSize:
            return StoredSize(0, 2 * prod(shape))

        def largest(self, shape: tuple[int, ...]) -> Packed:
            return PackedHalf(self, shape, np.zeros(shape))

    class PackedHalf(Packed):
        codes = None

        def __init__(self, codec: Codec, shape: tuple[int, ...], values: np.ndarray) -> None:
            self.codec, self.shape, self.codebook = codec, shape, values.astype(np.float16)

        def decoding(self) -> Decoding:
            """Rows are the codewords, each used once."""
            codes = pack_codes(np.arange(self.shape[0]), self.shape[0])
            return Decoding(self.shape, (Lookup(codes, self.codebook.reshape(self.shape[0], -1)),))

        def arrays(self) -> dict[str, np.ndarray]:
            return {"values": self.codebook}

        @classmethod
        def from_arrays(cls, codec: Codec, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> "PackedHalf":
            return cls(codec, shape, arrays["values"])

    def fit_half(codec: Half, weight: Any, metric: Any = None, warm: Any = None, seed: int = 0, **_: Any) -> Fit:
        packed = PackedHalf(codec, weight.shape, weight)
        return measured(packed, weight, metric, None, 0)

    monkeypatch.setitem(FITTERS, "half", fit_half)
    rng = np.random.default_rng(0)
    b = GraphBuilder({"ids": ValueInfo(("batch",), "int64")}, {"batch": 2})
    y = b.add("embedding", "ids", name="table", params={"weight": rng.standard_normal((16, 8)).astype(np.float32)})
    y = b.add("linear", y, name="head", params={"weight": rng.standard_normal((4, 8)).astype(np.float32)})
    model = pqnet.Model(b.build({"output": y}))
    recipe = {"table": Half(), "head": Additive([PQ(4, 2), Half()])}
    small = pqnet.quantize(model, pqnet.Recipe(recipe), np.arange(16), progress=False)
    small.save(tmp_path / "small.h5")
    again = pqnet.load(tmp_path / "small.h5")
    assert again(np.arange(16)) == pytest.approx(model(np.arange(16)), abs=0.01)
    for name, codec in recipe.items():
        packed = again.graph.params[f"{name}.weight"]
        assert packed == small.graph.params[f"{name}.weight"] and codec.nbytes(packed.shape).total == packed.nbytes
        assert np.array_equal(packed.decode_rows([2, 0]), packed.decode()[[2, 0]])
        assert packed.codec.largest(packed.shape).nbytes == packed.nbytes
