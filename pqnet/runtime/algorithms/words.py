"""Products in low precision: inputs as words of 8-bit integers or of bfloat16, weights from codes to such words."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import ClassVar, NamedTuple

import numpy as np

from pqnet.codecs.layout import block_columns
from pqnet.kernels.products.tile import ROWS
from pqnet.kernels.products.tokens import to_token_words
from pqnet.kernels.products.words import COPIED, DENSE, INTERLEAVED, LOOKED_UP, WORD_WEIGHT, to_words, word_gemm
from pqnet.kernels.simd import WIDTH
from pqnet.kernels.words import BFLOAT16, INT8, NUMBERS, cost_of_dots, round_bfloat16
from pqnet.runtime.algorithms.base import Algorithm, Call, Host
from pqnet.runtime.algorithms.gemm import Cut, cut_arguments, cut_gemm
from pqnet.runtime.builder import Builder
from pqnet.runtime.fusion import Epilogue
from pqnet.runtime.integers import Integers, input_scaling, weight_integers
from pqnet.runtime.layer import Layer
from pqnet.runtime.memory import View
from pqnet.runtime.windows import Windows, plane_arguments, windows_of

CONVERT = 3.0  # cycles for a vector of words
TASKS, WORK = 16, 4096  # of conversions at most, words a task at least
HALVES = 1.15  # times the rule's cycles that products of bfloat16 take: ResNet-50 was 7 % slower than in float32
FIND, SCALE = 1.0, 1.5  # cycles for a vector of inputs whose scales are found, and of sums that are scaled
DECODE = 8.0  # cycles that a word of the reduction takes in a panel, in pieces of one
LOOK_UP = 48.0  # and number by number
LONGEST = 16  # elements of codewords that are mixed


class Form(NamedTuple):
    """How the codes of a weight become words of a panel; see `kernels.products.words.WORD_WEIGHT`."""

    form: int
    words: int  # of a codeword, or of a group of them
    order: np.ndarray  # of the words of a window (words of channels, taps) in a row of the panel


def form_of(layer: Layer, kind: int) -> Form | None:
    """Return how the weight of a layer becomes words, None if kernels cannot make them from its codes."""
    numbers, weight = NUMBERS[kind], layer.codes
    if layer.depthwise or (layer.groups > 1 and layer.channels % numbers):
        return None
    if weight is None:
        if not isinstance(layer.weight, np.ndarray):
            return None
        return Form(DENSE, 1, np.arange(-(-layer.channels // numbers) * layer.taps))
    return _form(weight.shape, weight.codec.layout, weight.codec.d, weight.codec.k, numbers)


@lru_cache(maxsize=1024)
def _form(shape: tuple[int, ...], layout: str, d: int, k: int, numbers: int) -> Form | None:
    channels, taps = shape[1], int(np.prod(shape[2:]))
    if d == taps > 1 and layout == "spatial" and d <= LONGEST:
        return Form(INTERLEAVED, taps, np.arange(-(-channels // numbers) * taps))
    if d == 1:
        return Form(LOOKED_UP, taps, np.arange(-(-channels // numbers) * taps))
    if d % numbers or channels % numbers:
        return None
    columns = block_columns((1, *shape[1:]), layout).reshape(-1, numbers)
    channel, tap = np.divmod(columns, taps)
    first = channel[:, :1]
    if not (
        (channel == first + np.arange(numbers)).all() and (tap == tap[:, :1]).all() and not (first % numbers).any()
    ):
        return None
    words = d // numbers
    if words not in (1, 2, 4) and words % 8:
        return None
    return Form(COPIED, words, channel[:, 0] // numbers * taps + tap[:, 0])


class Words(Algorithm):
    """Products of words of one kind."""

    kind: ClassVar[int]
    allowed_by: ClassVar[tuple[str, ...]]  # values of ``compute``

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether this arithmetic is precise enough, and codes give words."""
        return compute in self.allowed_by and form_of(layer, self.kind) is not None

    def cost(self, layer: Layer) -> float:
        """Return the cost of the conversion and of the products."""
        words = self._as_words(layer).channels * layer.groups * layer.batch * layer.size[0] * layer.size[1]
        return CONVERT * words / WIDTH + self._cut(layer).cost * cost_of_dots(self.kind)

    def windows(self, b: Builder, layer: Layer, x: View) -> Windows:
        """Convert the input to words, padded if windows need it."""
        pad = partial(self._planes, self.scaling(layer))
        if layer.pointwise:
            planes = pad(b, layer, x, layer.size, [(0, 0)])
            image, word, _, row, column = (planes.strides[axis] for axis in (1, 0, 2, 3, 4))
            x = planes.with_axes((layer.batch, planes.shape[0], *layer.size), (image, word, row, column))
        return windows_of(b, self._as_words(layer), x, pad=pad)

    def steps(self, b: Builder, call: Call) -> None:
        """Append the product."""
        layer, form = call.layer, form_of(call.layer, self.kind)
        assert form is not None
        cut = self._cut(layer)
        arguments = {
            "layer": call.windows.arguments(b, form.order),
            "end": self.end(b, call).arguments(b),
            "cut": cut_arguments(b, cut),
            "weight": self._weight(b, layer, form) | {"form": form.form, "words": form.words, "kind": self.kind},
            "token_sums": self.token_sums(b, layer),
        }
        b.emit(
            word_gemm,
            layer.node.name,
            cut.tasks,
            arguments,
            reads=call.reads,
            writes=[call.end.out],
            scratch=cut.scratch,
            algorithm=self.name,
            stored=layer.stored_bytes,
        )

    @abstractmethod
    def numbers(self, layer: Layer) -> np.ndarray:
        """Return a weight (rows, ...) or codewords as words hold them: int8, or the upper halves of float32."""

    def scaling(self, layer: Layer) -> tuple[float, float]:
        """Return factor and zero point of the integers of the input."""
        return 1.0, 0.0

    def token_sums(self, b: Builder, layer: Layer) -> int:
        """Return where the sums of the weights of outputs are, if each token has a scale; else -1."""
        return -1

    def end(self, b: Builder, call: Call) -> Epilogue:
        """Return the epilogue, with what it has to do with sums of words."""
        return call.end

    def _as_words(self, layer: Layer) -> Layer:
        """Return the layer with words in the place of channels."""
        return replace(layer, channels=-(-layer.channels // NUMBERS[self.kind]))

    def _cut(self, layer: Layer) -> Cut:
        form = form_of(layer, self.kind)
        assert form is not None
        decode = {DENSE: 0.0, LOOKED_UP: LOOK_UP}.get(form.form, DECODE / min(form.words, 4))
        words = self._as_words(layer)
        return cut_gemm(words.reduction, form.words, decode, layer.outputs, layer.groups, layer.positions)

    def _planes(
        self,
        scaling: tuple[float, float],
        b: Builder,
        layer: Layer,
        x: View,
        size: tuple[int, int],
        phases: Sequence[tuple[int, int]],
    ) -> View:
        """Emit planes as `windows.pad_planes` does, of words."""
        if layer.token_scales and self.kind == INT8:
            return _token_planes(b, layer, x)
        batch, channels = x.shape[:2]
        words = -(-channels // NUMBERS[self.kind])
        out = b.new((words, batch, len(phases), *size), dtype="int32")
        per_task = max(-(-words // TASKS), min(words, -(-WORK // (batch * len(phases) * size[0] * size[1]))))
        arguments = {
            "planes": plane_arguments(b, layer, x, out, phases),
            "channels": channels,
            "per_task": per_task,
            "kind": self.kind,
            "scaling": b.numbers(*scaling),
        }
        label, tasks = f"{layer.node.name} (words)", -(-words // per_task)
        b.emit(to_words, label, tasks, arguments, reads=[x], writes=[out], scratch=WIDTH)
        return out

    def _weight(self, b: Builder, layer: Layer, form: Form) -> dict[str, int]:
        """Return the arguments of the weight, see `kernels.products.words.WORD_WEIGHT`."""
        weight, numbers = layer.codes, NUMBERS[self.kind]
        if weight is None:

            def rows() -> np.ndarray:
                found = self.numbers(layer)
                filters = np.zeros(
                    (len(found) + ROWS, -(-layer.channels // numbers) * numbers, layer.taps), found.dtype
                )
                filters[: len(found), : layer.channels] = found.reshape(len(found), layer.channels, layer.taps)
                words = filters.reshape(len(filters), -1, numbers, layer.taps).swapaxes(2, 3)
                return np.ascontiguousarray(words).view(np.float32)

            at = b.constant((layer.name, self.name, "dense"), rows)
            return dict.fromkeys(WORD_WEIGHT.kinds, 0) | {"codes": -1, "weight": at}

        def book() -> np.ndarray:
            found = self.numbers(layer)
            if form.form == LOOKED_UP:
                unsigned = found.reshape(-1).view(found.dtype.str.replace("i", "u")).astype(np.uint32)
                return np.append(unsigned, np.uint32(0)).view(np.float32)
            if form.form == INTERLEAVED:
                found = np.pad(found, ((0, 1), (0, LONGEST - found.shape[1])))
            return np.ascontiguousarray(found).view(np.float32)

        return {
            "codes": b.code_bytes((layer.name, "rows"), lambda: np.ascontiguousarray(weight.codes).view(np.uint8)),
            "weight": b.constant((layer.name, self.name, "codebook"), book),
            "stride": {INTERLEAVED: LONGEST // numbers, LOOKED_UP: 1}.get(form.form, form.words),
            "blocks": layer.reduction // weight.codec.d,
            "code_bytes": 1 if weight.codec.k <= 256 else 2,
            "spare": weight.codec.k,
            "channels": layer.channels,
            "channel_step": 1 if weight.codec.layout == "channel" else layer.taps,
            "tap_step": layer.channels if weight.codec.layout == "channel" else 1,
        }


class BFloat16(Words):
    """Products of numbers rounded to bfloat16, summed in float32."""

    name, kind = "bfloat16", BFLOAT16
    allowed_by = ("bfloat16", "int8", "auto")  # of int8 for layers whose inputs have no range

    def cost(self, layer: Layer) -> float:
        """Return more than the rule, which lets these products win where they take as long as those of float32."""
        return HALVES * super().cost(layer)

    def numbers(self, layer: Layer) -> np.ndarray:
        """Round to the nearest bfloat16."""
        packed = layer.codes
        return round_bfloat16(np.asarray(layer.weight, np.float32) if packed is None else packed.codebook)


class Int8(Words):
    """Products of 8-bit integers, inputs unsigned and weights signed, summed in 32 bits."""

    name, kind = "int8", INT8
    allowed_by = ("int8", "auto")

    def fits(self, layer: Layer, compute: str, host: Host) -> bool:
        """Tell whether the range of the input is known, too."""
        return layer.input_range is not None and super().fits(layer, compute, host)

    def cost(self, layer: Layer) -> float:
        """Return more where each token has a scale: inputs are read twice, sums are scaled in a pass of their own."""
        cost = super().cost(layer)
        if layer.token_scales:
            cost += layer.positions * (layer.channels * FIND + layer.outputs * SCALE) / WIDTH
        return cost

    def token_sums(self, b: Builder, layer: Layer) -> int:
        """Return where the sums of the weights of outputs are, if each token has a scale; else -1."""
        if not layer.token_scales:
            return -1
        return b.constant((layer.name, self.name, "sums"), lambda: _integers(layer).sums.astype(np.float32))

    def scaling(self, layer: Layer) -> tuple[float, float]:
        """Return factor and zero point of the integers of the input."""
        assert layer.input_range is not None
        return input_scaling(layer.input_range)

    def shift(self, layer: Layer) -> np.ndarray | None:
        """Return the mean error of each output on calibration data, the other way round."""
        return layer.output_shift

    def numbers(self, layer: Layer) -> np.ndarray:
        """Round to the nearest multiple of the scale."""
        return _integers(layer).numbers

    def end(self, b: Builder, call: Call) -> Epilogue:
        """Take the scales of inputs and weights into the factors, and the zero point into the terms."""
        weight, end = _integers(call.layer), call.end
        factor, zero = self.scaling(call.layer)
        own = 1.0 if end.scale is None else end.scale.astype(np.float64)
        if call.layer.token_scales:  # which are taken into the sums themselves
            factor, zero = 1.0, 0.0
        scale = np.broadcast_to(weight.scale / factor * own, weight.sums.shape)
        shift = (0.0 if end.shift is None else end.shift.astype(np.float64)) - scale * zero * weight.sums
        return replace(end, scale=scale.astype(np.float32), shift=shift.astype(np.float32), arithmetic=self.name)


def _token_planes(b: Builder, layer: Layer, x: View) -> View:
    """Emit words of tokens, and scales and zero points behind them; see `kernels.products.tokens.TOKEN_WORDS`."""
    tokens, words = layer.positions, -(-layer.channels // NUMBERS[INT8])
    out = b.new((words + 2, 1, 1, 1, tokens), dtype="int32")
    vectors = -(-tokens // WIDTH)
    per_task = max(-(-vectors // TASKS), min(vectors, WORK // (words * WIDTH)))
    arguments = {
        "x": x,
        "out": out,
        "channel_step": x.strides[1],
        "channels": layer.channels,
        "tokens": tokens,
        "per_task": per_task,
    }
    b.emit(to_token_words, f"{layer.node.name} (words)", -(-vectors // per_task), arguments, reads=[x], writes=[out])
    return out


def _integers(layer: Layer) -> Integers:
    return weight_integers(layer.codes or np.asarray(layer.weight, np.float32))
