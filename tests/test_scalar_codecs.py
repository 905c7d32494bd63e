"""Codecs with one code a weight: optima against brute force, published figures, storage, execution."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from realdata import DATA, needs_data

import pqnet
from pqnet import ConfigError, Fixed, IntN, PQNetError, Scalar
from pqnet.codecs import PACKED, PackedScalar, codec_from_attrs
from pqnet.codecs.packing import pack_codes, packed_nbytes, unpack_rows
from pqnet.fit import scales
from pqnet.fit.scales import best_scales
from pqnet.graph import Node
from pqnet.runtime.execute import evaluate_node

CODECS = [
    Scalar(5),
    Scalar(16, "lloyd", "float32"),
    Fixed("binary", "closed"),
    Fixed("ternary", "none"),
    Fixed("ternary", "closed", "channel"),
    Fixed("pow2", "learned", "group", group=3, exponent=2),
    Fixed([-1.5, 0.25, 1.0], "learned", "channel", scale_dtype="float32"),
    IntN(2, "tensor", "minmax"),
    IntN(3, "channel", "histogram", symmetric=False),
    IntN(4, "group", "mse", group=3),
    IntN(5, "tensor", "output", symmetric=False, scale_dtype="float32"),
    IntN(8, "channel", "output"),
]
IDS = [f"{c.name}-{i}" for i, c in enumerate(CODECS)]


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def loss(weight, packed, h=1.0):
    """Weighted squared error in float64."""
    return float((h * np.square(weight.astype(np.float64) - packed.decode())).sum())


def least_error(w, h, levels):
    """Least weighted error over every assignment of levels and every scale, positive or negative."""
    codes = np.array(list(itertools.product(levels, repeat=len(w))))
    first, second = codes @ (h * w), np.square(codes) @ h
    gain = np.divide(first**2, second, out=np.zeros(len(codes)), where=second > 0)
    return float((h * w * w).sum() - gain.max())


# -- optima against brute force -----------------------------------------------------------------------------------


LISTS = {
    "binary": Fixed("binary", "closed", scale_dtype="float32"),
    "binary sweep": Fixed("binary", "learned", scale_dtype="float32"),
    "ternary": Fixed("ternary", "closed", scale_dtype="float32"),
    "ternary sweep": Fixed("ternary", "learned", scale_dtype="float32"),
    "pow2": Fixed("pow2", "learned", exponent=1, scale_dtype="float32"),
    "any": Fixed([-2.0, -0.5, 0.1, 1.0], "learned", scale_dtype="float32"),
    "positive": Fixed([0.5, 1.0, 3.0], "learned", scale_dtype="float32"),
    "int2": IntN(2, "tensor", "output", scale_dtype="float32"),
}


@pytest.mark.parametrize("name", LISTS)
@given(seed=st.integers(0, 2**32 - 1), weighted=st.booleans(), heavy=st.booleans())
def test_scaled_lists_reach_the_least_error_of_all(name, seed, weighted, heavy):
    codec, rng = LISTS[name], np.random.default_rng(seed)
    w = rng.standard_normal(6) ** (3 if heavy else 1)
    w = np.where(rng.random(6) < 0.1, 0, w).astype(np.float32)
    h = rng.exponential(size=6).astype(np.float32) if weighted else np.ones(6, np.float32)
    packed = codec.fit(w[None], metric=h[:, None, None] if weighted else None)
    want = least_error(w.astype(np.float64), h.astype(np.float64), codec.levels)
    assert loss(w, packed, h) <= want + 1e-6 * float((h * w * w).sum())
    assert loss(w, packed, h) >= want - 1e-6 * float((h * w * w).sum())


@given(seed=st.integers(0, 2**32 - 1), weighted=st.booleans())
def test_affine_integers_reach_the_least_error_of_all(seed, weighted):
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal(5) + rng.normal()).astype(np.float32)
    h = rng.exponential(size=5).astype(np.float32) if weighted else np.ones(5, np.float32)
    packed = IntN(2, "tensor", "output", symmetric=False, scale_dtype="float32").fit(w[None], metric=h[:, None, None])
    want = min(least_error(w.astype(float), h.astype(float), np.arange(4.0) - zero) for zero in range(4))
    assert loss(w, packed, h) == pytest.approx(want, abs=1e-6 * float((h * w * w).sum()))


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(2, 4), weighted=st.booleans())
def test_scalar_reaches_the_least_error_of_all(seed, k, weighted):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(6).astype(np.float32)
    h = rng.exponential(size=6).astype(np.float32) if weighted else np.ones(6, np.float32)
    packed = Scalar(k, codebook_dtype="float32").fit(w[None], metric=h[:, None, None])
    best = np.inf
    for codes in itertools.product(range(k), repeat=6):
        member = np.array(codes)[None] == np.arange(k)[:, None]
        mass, first = member @ h, member @ (h * w)
        best = min(best, float((h * w * w).sum() - (first**2 / np.where(mass > 0, mass, 1)).sum()))
    assert loss(w, packed, h) == pytest.approx(best, abs=1e-6 * float((h * w * w).sum()))


@pytest.mark.parametrize("levels", [np.arange(-8.0, 8.0), np.arange(-128.0, 128.0), Fixed("pow2").levels])
def test_the_grid_finds_what_the_sweep_over_all_scales_finds(levels, monkeypatch):
    rows = np.concatenate([draw((6, 500)), draw((6, 500), 1) ** 3, np.zeros((1, 500), np.float32)])
    exact, gains = best_scales(rows, levels)
    monkeypatch.setattr(scales, "MAX_CHANGES", 0)
    found, other = best_scales(rows, levels)
    energy = np.square(rows).sum(1)
    assert np.all(energy - other <= (energy - gains) * 1.01 + 1e-6 * energy) and found[-1] == exact[-1] == 0
    assert np.all(other <= gains + 1e-9 * energy)


def test_groups_and_channels_are_solved_alone():
    weight, h = draw((4, 6)), np.random.default_rng(1).exponential(size=(6, 1, 1)).astype(np.float32)
    for codec, alone in (
        (Fixed("ternary", "closed", "channel"), Fixed("ternary", "closed")),
        (IntN(3, "channel", "output"), IntN(3, "tensor", "output")),
        (IntN(3, "channel", "minmax", symmetric=False), IntN(3, "tensor", "minmax", symmetric=False)),
    ):
        whole = codec.fit(weight, metric=h)
        for row, packed in zip(weight, whole.decode(), strict=True):
            assert np.array_equal(alone.fit(row[None], metric=h).decode()[0], packed)
    grouped = IntN(3, "group", "output", group=2).fit(weight, metric=h)
    for m in range(3):
        part = slice(2 * m, 2 * m + 2)
        one = IntN(3, "channel", "output").fit(weight[:, part], metric=h[part])
        assert np.array_equal(grouped.decode()[:, part], one.decode())


def test_channels_of_any_size_are_solved_alike():
    weight = draw((3, 64)) * np.float32([[1e-12], [1.0], [1e9]])
    for codec in (Fixed("pow2", "learned", "channel", scale_dtype="float32"), IntN(4, scale_dtype="float32")):
        error = np.square(weight.astype(np.float64) - codec.fit(weight).decode()).sum(1)
        alone = [loss(row[None], codec.fit(row[None])) for row in weight]
        assert error == pytest.approx(alone, rel=1e-6)


def test_rows_of_an_embedding_weigh_as_often_as_they_occur():
    weight, rows = draw((40, 8)), np.where(np.arange(40) < 4, 1000.0, 1.0)
    for codec in (Scalar(4), Fixed("ternary", "learned"), Fixed("ternary", "closed"), IntN(3, "tensor", "output")):
        plain, frequent = codec.fit(weight), codec.fit(weight, row_weights=rows)
        error, before = (np.square(weight - p.decode())[:4].sum() for p in (frequent, plain))
        assert error < before


# -- published figures --------------------------------------------------------------------------------------------


def test_unscaled_lists_are_the_papers_projections():
    """Carreira-Perpinan & Idelbayev, thresholds of the fixed codebooks."""
    w = draw((50, 40)) * 1.5
    assert np.array_equal(Fixed("binary", "none").fit(w).decode(), np.where(w >= 0, 1, -1))
    assert np.array_equal(Fixed("ternary", "none").fit(w).decode(), np.where(np.abs(w) < 0.5, 0, np.sign(w)))
    for exponent in range(6):
        f = -np.log2(np.abs(w))
        inner = 2.0 ** -np.floor(f + np.log2(1.5))
        size = np.where(f > exponent, 2.0**-exponent, np.where(f <= 0, 1.0, inner))
        want = np.where(f > exponent + 1, 0, np.sign(w) * size)
        assert np.array_equal(Fixed("pow2", "none", exponent=exponent).fit(w).decode(), want.astype(np.float32))


LENET = {  # layer: energy, two values and their error, binary scale and error, ternary scale, non-zeros and error
    0: (718.278176, (-0.045221, 0.044466), 0.341504, 0.044843, 0.341522, 0.063948, 141691, 0.193303, 0.011297),
    1: (367.096839, (-0.091918, 0.088992), 0.331341, 0.090450, 0.331411, 0.131444, 17573, 0.172920, 0.008990),
    2: (303.225955, (-0.438726, 0.457067), 0.338566, 0.447799, 0.338697, 0.655099, 576, 0.184789, 0.008805),
}


@needs_data
@pytest.mark.parametrize("layer", LENET)
def test_golden_values_of_lenet300(layer):
    with np.load(DATA / "checkpoints" / "lenet300_mnist.npz") as arrays:
        weight = arrays[f"output.compressible_{layer}.weight"]
    energy, two, two_error, binary, binary_error, ternary, nonzeros, ternary_error, lloyd = LENET[layer]
    assert np.square(weight, dtype=np.float64).sum() == pytest.approx(energy, rel=1e-8)
    packed = Scalar(2, codebook_dtype="float32").fit(weight)
    assert packed.codebook[:, 0] == pytest.approx(two, abs=6e-7) and loss(weight, packed) / energy == near(two_error)
    for scale in ("closed", "learned"):
        packed = Fixed("binary", scale, scale_dtype="float32").fit(weight)
        assert packed.scales[0, 0] == near(binary) and loss(weight, packed) / energy == near(binary_error)
        packed = Fixed("ternary", scale, scale_dtype="float32").fit(weight)
        assert packed.scales[0, 0] == near(ternary) and loss(weight, packed) / energy == near(ternary_error)
        assert np.count_nonzero(packed.decode()) == nonzeros
    assert loss(weight, Scalar(16, codebook_dtype="float32").fit(weight)) / energy <= lloyd + 5e-7


def near(value):
    return pytest.approx(value, abs=6e-7)


@pytest.mark.parametrize(("bits", "want"), [(8, 0.0093), (6, 0.0375), (4, 0.1565)])
def test_low_bits_use_the_whole_range(bits, want):
    """N(0, .05) between +- 4.07 deviations: the right error of min-max integers; fairseq's int4 has 3.72."""
    weight = np.clip(draw((128, 192)) * 0.05, -0.2035, 0.2030)
    weight[0, :2] = -0.2035, 0.2030
    packed = IntN(bits, "tensor", "minmax", symmetric=False, scale_dtype="float32").fit(weight)
    assert np.sqrt(loss(weight, packed) / np.square(weight).sum()) == pytest.approx(want, rel=0.015)
    better = IntN(bits, "tensor", "mse", symmetric=False, scale_dtype="float32").fit(weight)
    assert loss(weight, better) < loss(weight, packed)


@pytest.mark.filterwarnings("ignore")
def test_observers_are_pytorchs():
    torch = pytest.importorskip("torch")
    from torch.ao.quantization.observer import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver

    weight = np.random.default_rng(3).standard_t(3, (8, 600)).astype(np.float32) + np.float32(0.3)
    for observer, codec in (
        (MinMaxObserver(), IntN(8, "tensor", "minmax", symmetric=False, scale_dtype="float32")),
        (HistogramObserver(), IntN(8, "tensor", "histogram", symmetric=False, scale_dtype="float32")),
    ):
        observer(torch.from_numpy(weight))
        scale, zero = observer.calculate_qparams()
        packed = codec.fit(weight)
        assert packed.scales[0, 0] == pytest.approx(float(scale), rel=1e-5) and packed.zeros[0, 0] == int(zero)
        want = torch.fake_quantize_per_tensor_affine(torch.from_numpy(weight), float(scale), int(zero), 0, 255)
        assert np.abs(packed.decode() - want.numpy()).max() < 1e-5 or np.mean(packed.decode() == want.numpy()) > 0.99
    channels = PerChannelMinMaxObserver(ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    channels(torch.from_numpy(weight))
    found = IntN(8, "channel", "minmax", scale_dtype="float32").fit(weight).scales[:, 0]
    assert found == pytest.approx(channels.calculate_qparams()[0].numpy(), rel=1e-6)


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_output_observer_sees_the_whole_moment(per, symmetric):
    """Of two convolution groups with correlated inputs."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 6, 3, 3)).astype(np.float32)
    x = rng.standard_normal((2, 400, 54)) @ rng.standard_normal((2, 54, 54)) + 3
    moments = (x.swapaxes(1, 2) @ x / 400)[:, None].astype(np.float32)

    def error(packed):
        e = (weight - packed.decode()).astype(np.float64).reshape(2, 8, 54)
        return float(np.square(np.matmul(x, e.swapaxes(1, 2))).sum())

    assert IntN(4, per, "output").metric_blocks(weight.shape) == (54, "spatial")
    mse, output = (IntN(4, per, o, symmetric, scale_dtype="float32").fit(weight, moments) for o in ("mse", "output"))
    assert error(output) <= (0.9 if per == "channel" else 1.0001) * error(mse)
    rows = np.where(np.arange(16) < 8, 1.0, 1e-6)
    first = IntN(4, per, "output", symmetric).fit(weight, moments, row_weights=rows)
    assert np.isfinite(first.decode()).all()


def test_better_observers_give_less_error():
    weight = np.random.default_rng(3).standard_t(4, (32, 288)).astype(np.float32)
    h = np.random.default_rng(4).exponential(size=288).astype(np.float32) ** 2
    for symmetric in (True, False):
        packed = [
            IntN(4, "channel", o, symmetric).fit(weight, h[:, None, None])
            for o in ("minmax", "histogram", "mse", "output")
        ]
        errors, weighted = [loss(weight, p) for p in packed], [loss(weight, p, h) for p in packed]
        assert errors[2] < errors[1] < errors[0] and weighted[3] == min(weighted) and errors[2] == min(errors)


# -- storage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS, ids=IDS)
@pytest.mark.parametrize("shape", [(7, 12), (6, 4, 3, 3)])
def test_packed_weights_decode_store_and_compare(codec, shape):
    weight = draw(shape, 5)
    packed = codec.fit(weight)
    stored = packed.arrays()
    values = packed.codebook[:, 0].astype(np.float32)[packed.codes]
    rows, columns = codec.scale_grid(shape)
    grid = values.reshape(rows, columns, -1)
    if packed.zeros is not None:
        grid = grid - packed.zeros[:, :, None].astype(np.float32)
    if packed.scales is not None:
        grid = grid * packed.scales[:, :, None].astype(np.float32)
        assert packed.scales.dtype == codec.value_dtype
    assert np.array_equal(packed.decode(), grid.reshape(shape)) and packed.decode().dtype == np.float32
    ids = np.array([[3, 3, 5], [0, 1, 2]])
    assert np.array_equal(packed.decode_rows(ids), packed.decode()[ids])
    assert packed.decode_rows(ids[:0]).shape == (0, 3, *shape[1:])
    assert packed.nbytes == sum(a.nbytes for a in stored.values())
    assert packed.code_nbytes == packed_nbytes(weight.size, codec.k)
    assert PACKED[codec.name].from_arrays(codec, shape, stored) == packed
    assert codec_from_attrs(codec.to_attrs()) == codec and codec_from_attrs(packed.codec.to_attrs()) == packed.codec
    assert packed != CODECS[0].fit(draw(shape, 6)) and repr(packed).startswith("PackedScalar(")
    assert np.square(weight - packed.decode()).mean() < 0.6 * np.square(weight).mean()
    assert codec.fit(weight, warm=packed) == packed or codec.name == "scalar"


@given(st.integers(2, 300), st.integers(1, 20), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_rows_of_a_stream(k, rows, m, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, k, (rows, m))
    pick = rng.integers(0, rows, 5)
    assert np.array_equal(unpack_rows(pack_codes(codes, k), pick, m, k), codes[pick])


def test_lloyd_starts_from_an_earlier_list():
    weight, codec = draw((30, 20)), Scalar(8, "lloyd", "float32")
    first = codec.fit(weight)
    assert codec.fit(weight, warm=first) == first
    with pytest.raises(PQNetError, match="warm: expected 8 values, got 4"):
        codec.fit(weight, warm=Scalar(4).fit(weight))


@pytest.mark.parametrize("codec", CODECS, ids=IDS)
def test_threads_and_seeds_change_nothing(codec):
    weight = draw((8, 12))
    assert codec.fit(weight, threads=1) == codec.fit(weight, threads=2)
    if codec.name != "scalar":
        assert codec.fit(weight, seed=5) == codec.fit(weight)


@pytest.mark.parametrize("codec", CODECS, ids=IDS)
@pytest.mark.parametrize("value", [0.0, 1e-30, 0.25])
def test_constant_weights(codec, value):
    weight = np.full((4, 12), value, np.float32)
    decoded = codec.fit(weight).decode()
    assert np.isfinite(decoded).all()
    if getattr(codec, "scale", "") != "none":
        assert np.abs(decoded - value).max() <= (0.34 if codec.name == "intn" else 1e-3) * value + 1e-7


def test_codes_are_chosen_for_the_stored_scale():
    weight = draw((5, 200)) * 0.01
    for codec in (Fixed("pow2", "learned", "channel"), IntN(6, "channel", "minmax"), Scalar(40)):
        packed = codec.fit(weight)
        values = packed.codebook[:, 0].astype(np.float64)
        scales = np.ones((5, 1)) if packed.scales is None else packed.scales.astype(np.float64)
        distance = np.abs(weight[:, :, None] - values * scales[:, :, None])
        chosen = np.take_along_axis(distance, packed.codes[:, :, None].astype(int), 2)[:, :, 0]
        assert np.all(chosen <= distance.min(2) + 1e-9)


# -- int8 codebooks -----------------------------------------------------------------------------------------------


def test_int8_codebooks_cost_a_byte_a_number():
    weight = draw((96, 8, 3, 3))
    half, small = pqnet.PQ(64, 9).fit(weight), pqnet.PQ(64, 9, codebook_dtype="int8").fit(weight)
    assert half.nbytes - small.nbytes == 64 * 9 - 4 and small.codebook.dtype == np.float32
    step = small.arrays()["scale"]
    assert np.array_equal(small.codebook, np.rint(small.codebook / step) * step)
    assert loss(weight, small) < 1.01 * loss(weight, half)
    assert pqnet.PackedPQ.from_arrays(small.codec, small.shape, small.arrays()) == small
    blocks = weight.reshape(-1, 9)
    distance = np.square(blocks[:, None] - small.codebook[None]).sum(2)
    assert np.all(np.take_along_axis(distance, small.codes.reshape(-1, 1), 1)[:, 0] <= distance.min(1) * (1 + 1e-5))
    assert pqnet.PQ(64, 9, codebook_dtype="int8").fit(weight, warm=small).codebook.shape == (64, 9)
    assert not pqnet.PQ(2, 2, codebook_dtype="int8").fit(np.zeros((4, 4))).decode().any()


# -- execution ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["decode", "winograd", "dots", "lut", "lut_pointwise", "rows", "planes"])
@pytest.mark.parametrize("codec", CODECS, ids=IDS)
def test_layers_run_from_the_codes(codec, algorithm, monkeypatch):
    monkeypatch.setenv("PQNET_ALGORITHM", algorithm)
    rng = np.random.default_rng(7)
    packed = codec.fit(draw((16, 24), 8))
    x, bias = draw((3, 24)), draw(16)
    assert pqnet.linear(x, packed, bias) == pytest.approx(x @ packed.decode().T + bias, abs=2e-4)
    assert np.array_equal(pqnet.embedding([[3, 0], [5, 5]], packed), packed.decode()[[[3, 0], [5, 5]]])
    for groups, kernel, padding in ((1, 3, 1), (2, 3, 0), (1, 1, 0), (12, 3, 1)):
        filters = codec.fit(draw((12, 12 // groups, kernel, kernel), 9))
        images = rng.standard_normal((2, 12, 8, 7)).astype(np.float32)
        got = pqnet.conv2d(images, filters, padding=padding, groups=groups)
        attrs = {"stride": (1, 1), "padding": (padding,) * 4, "dilation": (1, 1), "groups": groups}
        node = Node("conv2d", "conv", ("x",), ("y",), attrs, {"weight": "w"})
        (want,) = evaluate_node(node, [images], {"weight": filters.decode()}, {})
        assert got == pytest.approx(want, abs=3e-4 * float(np.abs(want).max()))


def test_what_runs_from_codes():
    """Tensor and channel scales do, those of groups do not, nor weights with fewer numbers than values."""
    weight = draw((16, 24))
    for codec in CODECS:
        words = codec.fit(weight).codewords()
        assert (words is None) == (codec.group is not None)
        if words is not None:
            decoded = words[0].decode() * (1 if words[1] is None else words[1][:, None])
            assert np.array_equal(decoded, codec.fit(weight).decode())
    assert IntN(8).fit(draw((2, 3))).codewords() is None


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Scalar(1), r"Scalar.k: expected an integer in \[2, 65536\], got 1"),
        (lambda: Scalar(4, "best"), "Scalar.method: expected one of 'exact', 'lloyd', got str 'best'"),
        (lambda: Scalar(4, codebook_dtype="int8"), "Scalar.codebook_dtype: expected one of"),
        (lambda: Scalar(40).fit(np.ones((2, 4))), "k: expected at most 8, the numbers of a weight of shape .* got 40"),
        (lambda: Fixed("quaternary"), "Fixed.values: expected one of 'binary', 'ternary', 'pow2', got str"),
        (lambda: Fixed([1.0, 1.0]), "Fixed.values: expected 2 to 65536 different numbers, got list"),
        (lambda: Fixed([1.0, np.nan]), "Fixed.values: expected finite float32 numbers"),
        (lambda: Fixed(3), "Fixed.values: expected 1 axes"),
        (lambda: Fixed("pow2", "closed"), "Fixed.scale: expected 'none' or 'learned' for str 'pow2', got 'closed'"),
        (lambda: Fixed("binary", "none", "channel"), "Fixed.per: expected 'tensor' with scale='none', got 'channel'"),
        (lambda: Fixed("binary", exponent=2), "Fixed.exponent: expected None unless values='pow2', got int 2"),
        (lambda: Fixed("pow2", exponent=31), r"Fixed.exponent: expected an integer in \[0, 30\], got 31"),
        (lambda: IntN(1), r"IntN.bits: expected an integer in \[2, 8\], got 1"),
        (lambda: IntN(4, "row"), "IntN.per: expected one of 'tensor', 'channel', 'group', got str 'row'"),
        (lambda: IntN(4, "group"), "IntN.group: expected a size with per='group' and None without, got NoneType None"),
        (lambda: IntN(4, group=4), "IntN.group: expected a size with per='group' and None without, got int 4"),
        (lambda: IntN(4, "group", group=0), "IntN.group: expected an integer >= 1, got 0"),
        (lambda: IntN(4, "group", group=3).fit(np.ones((2, 4))), "group: expected a divisor of 4, the inputs of a fil"),
        (lambda: IntN(4, observer="best"), "IntN.observer: expected one of 'minmax', 'histogram', 'mse', 'output'"),
        (lambda: IntN(4, symmetric=1), "IntN.symmetric: expected one of True, False, got int 1"),
        (lambda: IntN(4).fit(np.full((2, 4), 1e9)), "weight: expected scales within float16's 65504, .*scale_dtype="),
        (lambda: Scalar(2).fit(np.full((2, 4), 1e9)), "weight: expected scales within float16's .*codebook_dtype="),
        (lambda: IntN(4).fit(np.ones((2, 4)), np.ones((3, 1, 1))), r"metric: expected shape \(1, 1\), \(4, 1, 1\), "),
        (lambda: IntN(4).fit(np.ones((2, 4)), -np.ones((4, 1, 1))), "metric: expected non-negative second moments"),
        (lambda: IntN(4).fit(np.ones((2, 4)), warm=Scalar(2).fit(np.ones((2, 4)))), "warm: expected a weight packed"),
        (lambda: PackedScalar(None, (2, 4), []), "codec: expected a Scalar, Fixed or IntN, got NoneType"),
        (lambda: PackedScalar(Scalar(2), (2, 4), np.zeros((2, 4), int)), "codebook: expected an array, got NoneType"),
        (lambda: PackedScalar(IntN(4), (2, 4), np.zeros((2, 4), int), np.ones(3)), "codebook: expected None, got"),
    ],
)
def test_errors_name_the_argument_and_the_way_out(make, match):
    with pytest.raises((ConfigError, PQNetError), match=match):
        make()
