"""Layouts, bit packing, the PQ codec and its fit."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pqnet
from pqnet import PQ, ConfigError, PackedPQ, PQNetError
from pqnet.codecs import PACKED, codec_from_attrs
from pqnet.codecs.layout import block_columns, from_blocks, to_blocks
from pqnet.codecs.packing import code_bits, pack_codes, packed_nbytes, unpack_codes
from pqnet.codecs.pq import clamp_k


@given(st.integers(1, 70000), st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_packing_round_trip(k, n, seed):
    codes = np.random.default_rng(seed).integers(0, k, n)
    packed = pack_codes(codes, k)
    assert packed.dtype == np.uint8 and packed.nbytes == packed_nbytes(n, k)
    assert np.array_equal(unpack_codes(packed, n, k), codes)


@pytest.mark.parametrize("k", [2, 3, 5, 100, 256, 300, 2048, 65536])
def test_bit_order_is_a_little_endian_number(k):
    """The stream, read as one little-endian integer, holds code i at bit i * b."""
    codes = np.random.default_rng(k).integers(0, k, 13)
    number = int.from_bytes(pack_codes(codes, k).tobytes(), "little")
    bits = code_bits(k)
    assert [(number >> (i * bits)) % (1 << bits) for i in range(13)] == codes.tolist()


def test_code_bits():
    assert [code_bits(k) for k in (1, 2, 3, 4, 5, 256, 257, 2048)] == [0, 1, 2, 2, 3, 8, 9, 11]


def test_spatial_blocks_are_the_papers():
    """kill-the-bits: block b of filter o is W.view(O, -1)[o, b * d : (b + 1) * d]."""
    weight = np.arange(4 * 6 * 9, dtype=np.float32).reshape(4, 6, 3, 3)
    blocks = to_blocks(weight, 18, "spatial")
    for o in range(4):
        for b in range(3):
            assert np.array_equal(blocks[o, b], weight.reshape(4, -1)[o, b * 18 : (b + 1) * 18])


def test_channel_blocks_are_channels_at_one_tap():
    weight = np.arange(4 * 6 * 9, dtype=np.float32).reshape(4, 6, 3, 3)
    blocks = to_blocks(weight, 3, "channel")
    assert np.array_equal(blocks[2, (1 * 3 + 2) * 2 + 1], weight[2, 3:6, 1, 2])


@pytest.mark.parametrize("layout", ["spatial", "channel"])
@pytest.mark.parametrize(("shape", "d"), [((5, 8, 3, 2), 4), ((3, 12), 6), ((2, 1, 3, 3), 1), ((7, 4, 1, 1), 2)])
def test_layouts_invert_and_name_their_columns(shape, d, layout):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    blocks = to_blocks(weight, d, layout)
    assert np.array_equal(from_blocks(blocks, shape, layout), weight)
    flat = weight.reshape(shape[0], -1)[:, block_columns(shape, layout)]
    assert np.array_equal(blocks.reshape(shape[0], -1), flat)


@pytest.mark.parametrize(
    ("k", "n", "floor", "strict"),
    # ResNet-50 layer1.0.conv1 with large blocks: 64 in kill-the-bits' file, 128 in PQF's; a large layer; tiny ones
    [
        (256, 512, 128, 64),
        (256, 1024, 256, 128),
        (256, 262144, 256, 256),
        (256, 1000, 128, 128),
        (9, 4, 1, 1),
        (9, 1, 1, 1),
    ],
)
def test_clamp(k, n, floor, strict):
    assert (clamp_k(k, n, "floor"), clamp_k(k, n, "strict"), clamp_k(k, n, None)) == (floor, strict, k)


@pytest.mark.parametrize("layout", ["spatial", "channel"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("k", [1, 5, 16, 300])
def test_decode_is_the_codeword_of_every_block(layout, dtype, k):
    rng = np.random.default_rng(0)
    codebook = rng.standard_normal((k, 4)).astype(dtype)
    codes = rng.integers(0, k, (20, 18))
    packed = PackedPQ(PQ(k, 4, layout, dtype), (20, 8, 3, 3), codes, codebook)
    blocks = to_blocks(packed.decode(), 4, layout)
    for o in range(20):
        for m in range(18):
            assert np.array_equal(blocks[o, m], codebook[codes[o, m]].astype(np.float32))
    assert np.array_equal(packed.codes, codes)
    assert packed.nbytes == packed_nbytes(360, k) + codebook.nbytes
    rows = np.array([[3, 3], [9, 0]])
    assert np.array_equal(packed.decode_rows(rows), packed.decode()[rows])
    assert PackedPQ.from_arrays(packed.codec, packed.shape, packed.arrays()) == packed


def test_fit_uses_the_codebook_as_stored():
    """After rounding to float16 every block has the nearest of the rounded codewords."""
    weight = np.random.default_rng(1).standard_normal((40, 10, 3, 3)).astype(np.float32)
    packed = PQ(64, 9).fit(weight)
    distances = naive.distances(to_blocks(weight, 9, "spatial").reshape(-1, 9), packed.codebook)
    chosen = distances[np.arange(400), packed.codes.reshape(-1)]
    assert np.all(chosen <= distances.min(1) * (1 + 1e-5))


@pytest.mark.parametrize("layout", ["spatial", "channel"])
def test_fit_measures_each_position_with_its_own_matrix(layout):
    """Two convolution groups, two block positions: only the coordinates that their matrices see are kept."""
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((64, 4)).astype(np.float32)
    metric = np.zeros((2, 2, 2, 2))
    metric[0, 0, 0, 0] = metric[0, 1, 1, 1] = metric[1, 0, 1, 1] = metric[1, 1, 0, 0] = 1.0
    error = weight - PQ(96, 2, layout, "float32").fit(weight, metric).decode()
    seen = np.concatenate([error[:32, [0, 3]], error[32:, [1, 2]]])
    unseen = np.concatenate([error[:32, [1, 2]], error[32:, [0, 3]]])
    assert np.square(seen).mean() < 0.01 * np.square(unseen).mean()


def test_row_weights_favour_frequent_rows():
    weight = np.random.default_rng(3).standard_normal((400, 8)).astype(np.float32)
    frequency = np.where(np.arange(400) < 40, 1000.0, 1.0)
    error = np.square(weight - PQ(32, 4).fit(weight, row_weights=frequency).decode()).mean(1)
    assert error[:40].mean() < 0.5 * error[40:].mean()


def test_warm_start_continues():
    weight = np.random.default_rng(4).standard_normal((200, 16)).astype(np.float32)
    codec = PQ(64, 4, codebook_dtype="float32")
    first = codec.fit(weight, n_iter=3)
    warm = codec.fit(weight, warm=first, n_iter=3)
    assert np.square(weight - warm.decode()).sum() < np.square(weight - first.decode()).sum()
    with pytest.raises(PQNetError, match="warm: expected a PackedPQ with a codebook of shape"):
        codec.fit(weight, warm=PQ(8, 4).fit(weight))


def test_fit_gives_the_same_bytes_for_any_thread_count():
    weight = np.random.default_rng(5).standard_normal((512, 64)).astype(np.float32)
    one, two = (PQ(200, 4).fit(weight, threads=t) for t in (1, 2))
    assert one == two


NARROW = [
    PQ(16, 4),
    pqnet.Scalar(9),
    pqnet.Fixed("ternary", per="channel"),
    pqnet.IntN(6),
    pqnet.IntN(3, "group", symmetric=False, group=8),
    pqnet.Sparse(fraction=0.5),
    pqnet.Additive([PQ(8, 2), pqnet.IntN(3)]),
]


@pytest.mark.parametrize("codec", NARROW, ids=str)
def test_weights_of_any_size_keep_their_digits_in_float16(codec):
    """Where float16 has no or few bits for them, all numbers are stored with a power of two."""
    weight = np.random.default_rng(6).standard_normal((24, 16)).astype(np.float32)
    plain = codec.fit(weight)
    assert plain.nbytes == codec.nbytes(weight.shape).total or codec.name in ("sparse", "additive")
    error = np.square(weight - plain.decode()).sum()
    for power in (-60, -24, -20):
        unit = np.float32(2.0) ** power
        packed = codec.fit(unit * weight)
        assert np.square(weight - packed.decode() / unit).sum() == pytest.approx(error, rel=0.01, abs=1e-6)
        assert PACKED[codec.name].from_arrays(packed.codec, packed.shape, packed.arrays()) == packed
        assert 0 < packed.nbytes - plain.nbytes <= 4
    x = np.ones((2, 16), np.float32)
    assert pqnet.linear(x, packed) == pytest.approx(x @ packed.decode().T, rel=1e-5, abs=float(unit) * 1e-4)


def test_scales_of_channels_of_very_different_size_keep_their_digits():
    weight = np.random.default_rng(7).standard_normal((3, 64)).astype(np.float32) * np.float32([[1e-7], [1.0], [30.0]])
    for codec in (pqnet.IntN(8), pqnet.Fixed("pow2", per="channel")):
        errors = np.square(weight - codec.fit(weight).decode()).mean(1) / np.square(weight).mean(1)
        alone = [np.square(row - codec.fit(row[None]).decode()[0]).mean() / np.square(row).mean() for row in weight]
        assert errors == pytest.approx(alone, rel=0.05)


def test_exponents_of_files_are_checked():
    packed = PQ(4, 2).fit(np.full((8, 8), 1e-9) * np.arange(8))
    arrays = packed.arrays()
    for bad in (np.int16([0]), np.int16([-300]), np.int16([2]), np.int16([1, 2]), np.float32([3])):
        with pytest.raises(pqnet.FormatError, match="exponent: expected one int16 number from -180 to 1"):
            PackedPQ.from_arrays(packed.codec, packed.shape, arrays | {"exponent": bad})
    wide = PQ(4, 2, codebook_dtype="float32").fit(np.ones((8, 8)))
    with pytest.raises(pqnet.FormatError, match="expected arrays codes and codebook"):
        PackedPQ.from_arrays(wide.codec, wide.shape, wide.arrays() | {"exponent": arrays["exponent"]})


def test_codebook_beyond_float16_says_the_way_out():
    with pytest.raises(PQNetError, match="within float16's 65504, got 2e\\+05; use codebook_dtype='float32'"):
        PQ(2, 2).fit(np.full((4, 4), 2e5))
    assert PQ(1, 2, codebook_dtype="float32").fit(np.full((4, 4), 2e5)).decode().max() == 2e5


def test_attrs_round_trip():
    for codec in (PQ(), PQ(7, 3, "channel", "float32", "strict")):
        assert codec_from_attrs(codec.to_attrs()) == codec


def test_unfit_blocks_name_the_divisors():
    with pytest.raises(ConfigError, match=r"d: expected a divisor of 36 .* got 5; divisors up to 64 are \[1, 2, 3, 4"):
        PQ(4, 5).fit(np.zeros((2, 4, 3, 3)))
    with pytest.raises(ConfigError, match="k: expected at most 8, the number of blocks .* got 9"):
        pqnet.PQ(9, 9).fit(np.zeros((2, 4, 3, 3)))
