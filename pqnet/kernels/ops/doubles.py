"""Functions of float32 vectors computed in float64 and rounded once: within one unit of the last place everywhere.

Each is an LLVM function of its own, for its many constants would take the registers of the loop around it. Signs of
zero, infinities and NaN are as in NumPy; sin and cos are exact for all numbers, however large.
"""

from fractions import Fraction
from math import factorial, log, log10, sqrt

import numpy as np
from llvmlite import ir

from pqnet.kernels.llvm import LONG, WORD, call, compiled_or, constant
from pqnet.kernels.simd import FLOATS, WIDTH

DOUBLES, LONGS = ir.VectorType(ir.DoubleType(), WIDTH), ir.VectorType(LONG, WIDTH)
WHOLE = 1.5 * 2.0**52  # a number of less than 2**50 that is added to this becomes whole, in the lowest bits of the sum
PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
NEAR, LARGEST = 24, 127  # exponents of angles up to which float64 has them with all multiples of pi / 2, and of float32
EVEN = 2.0**24  # float32 numbers from here on are whole and even
# Coefficients from the lowest power on. Of r: exp(r) = 1 + r EXP(r) for |r| <= log(2) / 2; of the square of r, for
# |r| <= pi / 4: sin(r) = r SIN(r r) and cos(r); of the square of s, log((1 + s) / (1 - s)) = s LOG(s s).
EXP = [1 / factorial(n + 1) for n in range(9)]
SIN = [(-1) ** n / factorial(2 * n + 1) for n in range(6)]
COS = [(-1) ** n / factorial(2 * n) for n in range(7)]
LOG = [2 / (2 * n + 1) for n in range(7)]


def _halves(number):
    """Return two float64 numbers whose sum is a fraction."""
    return float(number), float(number - Fraction(float(number)))


class _Emitter:
    """Emits float64 arithmetic of vectors; Python numbers are constants."""

    def __init__(self, builder):
        self.builder = builder

    def number(self, x):
        return constant(DOUBLES, float(x)) if isinstance(x, float | int) else x

    def bits(self, x):
        return self.builder.bitcast(x, LONGS)

    def of_bits(self, x):
        return self.builder.bitcast(x, DOUBLES)

    def add(self, a, b):
        return self.builder.fadd(self.number(a), self.number(b))

    def subtract(self, a, b):
        return self.builder.fsub(self.number(a), self.number(b))

    def multiply(self, a, b):
        return self.builder.fmul(self.number(a), self.number(b))

    def divide(self, a, b):
        return self.builder.fdiv(self.number(a), self.number(b))

    def fma(self, a, b, c):
        values = (self.number(x) for x in (a, b, c))
        return call(self.builder, f"llvm.fma.v{WIDTH}f64", DOUBLES, *values)

    def compare(self, operator, a, b):
        return self.builder.fcmp_ordered(operator, self.number(a), self.number(b))

    def select(self, condition, a, b):
        return self.builder.select(condition, self.number(a), self.number(b))

    def polynomial(self, coefficients, x):
        *others, value = coefficients
        for coefficient in reversed(others):
            value = self.fma(value, x, coefficient)
        return value

    def absolute(self, x):
        return self.of_bits(self.builder.and_(self.bits(x), constant(LONGS, (1 << 63) - 1)))

    def with_sign(self, x, negative):
        """Negate x where the lowest bit of an integer is set."""
        return self.of_bits(self.builder.xor(self.bits(x), self.builder.shl(negative, constant(LONGS, 63))))

    def whole(self, x):
        """Return x rounded, and its sum with WHOLE, whose lowest bits are those of the integer."""
        total = self.add(x, WHOLE)
        return self.subtract(total, WHOLE), self.bits(total)

    def power_of_two(self, bits):
        """Return 2**n for n in the lowest bits."""
        shifted = self.builder.shl(bits, constant(LONGS, 52))
        return self.of_bits(self.builder.add(shifted, constant(LONGS, 1023 << 52)))

    def exp_parts(self, x):
        """Return p and 2**n with exp(x) = (1 + p) 2**n, p being exp(x) - 1 near 0; x beyond 200 counts as 200."""
        x = self.select(self.compare("<", x, -200), -200, x)
        x = self.select(self.compare(">", x, 200), 200, x)
        n, bits = self.whole(self.multiply(x, 1 / log(2)))
        high, low = _halves(Fraction("0.69314718055994530941723212145817656807550013436025"))
        r = self.fma(n, -low, self.fma(n, -high, x))
        return self.multiply(r, self.polynomial(EXP, r)), self.power_of_two(bits)

    def log_parts(self, x):
        """Return k and log(m) with log(x) = k log(2) + log(m), for positive normal numbers."""
        one, root = (int(np.float64(v).view(np.int64)) for v in (1.0, sqrt(0.5)))
        bits, fifty_two = self.bits(x), constant(LONGS, 52)
        biased = self.builder.lshr(self.builder.add(bits, constant(LONGS, one - root)), fifty_two)
        k = self.of_bits(self.builder.or_(biased, constant(LONGS, 1075 << 52)))  # 2**52 + the exponent
        shifted = self.builder.shl(self.builder.sub(biased, constant(LONGS, 1023)), fifty_two)
        m = self.of_bits(self.builder.sub(bits, shifted))
        s = self.divide(self.subtract(m, 1), self.add(m, 1))
        return self.subtract(k, 2.0**52 + 1023), self.multiply(s, self.polynomial(LOG, self.multiply(s, s)))

    def log_limits(self, x, y):
        """Return the logarithm y of x where x is a positive number, its limits elsewhere."""
        y = self.select(self.compare("==", x, np.inf), np.inf, y)
        y = self.select(self.compare("<", x, 0), np.nan, self.select(self.compare("==", x, 0), -np.inf, y))
        return self.select(self.builder.fcmp_unordered("uno", x, x), x, y)


def _expm1(e, x):
    p, power = e.exp_parts(x)
    return e.select(e.compare("==", x, 0), x, e.fma(p, power, e.subtract(power, 1)))


def _log1p(e, x):
    whole = e.add(x, 1)
    k, y = e.log_parts(whole)
    lost = e.divide(e.subtract(x, e.subtract(whole, 1)), whole)  # of x in the sum
    y = e.log_limits(whole, e.add(e.fma(k, log(2), y), lost))
    return e.select(e.compare("==", x, 0), x, y)


def _log2(e, x):
    k, y = e.log_parts(x)
    return e.log_limits(x, e.fma(y, 1 / log(2), k))


def _log10(e, x):
    k, y = e.log_parts(x)
    return e.log_limits(x, e.fma(k, log10(2), e.multiply(y, 1 / log(10))))


def _wound(e, x):
    """Return numbers of less than 2**24 times pi whose sum is x, but for multiples of 2 pi."""
    # x = m 2**n; a table has 2**n less multiples of 2 pi. Few angles are so large: lane by lane.
    table = [_halves(Fraction(2) ** n % (2 * PI)) for n in range(LARGEST - NEAR + 1)]
    lanes = ir.ArrayType(ir.DoubleType(), len(table))
    places = []
    for part, numbers in zip(("high", "low"), zip(*table, strict=True), strict=True):
        name = f"pqnet_wound_{part}"
        if name not in e.builder.module.globals:
            new = ir.GlobalVariable(e.builder.module, lanes, name)
            new.global_constant, new.linkage = True, "internal"
            new.initializer = ir.Constant(lanes, [ir.Constant(ir.DoubleType(), number) for number in numbers])
        places.append(e.builder.module.globals[name])
    b, zero = e.builder, LONG(0)
    high, low, by = (constant(DOUBLES, 0.0) for _ in range(3))
    exponents = b.and_(b.lshr(e.bits(x), constant(LONGS, 52)), constant(LONGS, 2047))
    for lane in range(WIDTH):
        n = b.sub(b.extract_element(exponents, WORD(lane)), LONG(1023 + NEAR))
        n = b.select(b.icmp_signed("<", n, zero), zero, n)
        n = b.select(b.icmp_signed(">", n, LONG(len(table) - 1)), LONG(len(table) - 1), n)  # of infinity and NaN
        power = b.bitcast(b.shl(b.sub(LONG(1023), n), LONG(52)), ir.DoubleType())
        high, low = (
            b.insert_element(value, b.load(b.gep(place, [zero, n])), WORD(lane))
            for value, place in zip((high, low), places, strict=True)
        )
        by = b.insert_element(by, power, WORD(lane))
    m = e.multiply(x, by)
    product = e.multiply(m, high)
    return product, e.fma(m, low, e.fma(m, high, e.multiply(product, -1)))


def _sine(e, x, quarter):
    """Return sin(x + quarter pi / 2)."""
    b = e.builder
    near, far, joined = b.block, b.append_basic_block("far"), b.append_basic_block("joined")
    large = e.compare(">=", e.absolute(x), 2.0**NEAR)
    any_large = b.icmp_unsigned("!=", b.bitcast(large, ir.IntType(WIDTH)), ir.IntType(WIDTH)(0))
    b.cbranch(any_large, far, joined)
    b.position_at_end(far)
    wound = _wound(e, x)
    b.branch(joined)
    b.position_at_end(joined)
    first, second = b.phi(DOUBLES), b.phi(DOUBLES)
    for value, here, there in zip((first, second), (x, constant(DOUBLES, 0.0)), wound, strict=True):
        value.add_incoming(here, near)
        value.add_incoming(there, far)
    q, bits = e.whole(e.multiply(first, float(2 / PI)))
    high, low = _halves(PI / 2)
    r = e.add(e.fma(q, -high, first), e.fma(q, -low, second))
    bits, square = b.add(bits, constant(LONGS, quarter)), e.multiply(r, r)
    sine, cosine = e.multiply(r, e.polynomial(SIN, square)), e.polynomial(COS, square)
    odd = b.icmp_unsigned("!=", b.and_(bits, constant(LONGS, 1)), constant(LONGS, 0))
    y = e.with_sign(e.select(odd, cosine, sine), b.lshr(bits, constant(LONGS, 1)))
    y = e.select(e.compare("==", e.absolute(x), np.inf), np.nan, y)
    return y if quarter else e.select(e.compare("==", x, 0), x, y)


def _sin(e, x):
    return _sine(e, x, 0)


def _cos(e, x):
    return _sine(e, x, 1)


def _power(e, x, y):
    size, distance = e.absolute(x), e.absolute(y)
    k, m = e.log_parts(size)
    p, power = e.exp_parts(e.multiply(y, e.log_limits(size, e.fma(k, log(2), m))))
    result = e.select(e.compare("==", size, 1), 1, e.fma(p, power, power))
    whole, bits = e.whole(y)
    b, large = e.builder, e.compare(">=", distance, EVEN)
    bits = b.select(large, constant(LONGS, 0), bits)
    result = e.select(e.compare("<", x, 0), e.with_sign(result, bits), result)
    is_whole = b.or_(large, e.compare("==", whole, y))
    no_root = b.and_(e.compare("<", x, 0), e.compare(">", x, -np.inf))
    result = e.select(b.and_(no_root, b.not_(is_whole)), np.nan, result)
    # Zero has a sign, too, which comparison does not see.
    odd = b.and_(bits, b.sext(is_whole, LONGS))
    negative_zero = b.and_(b.lshr(e.bits(x), constant(LONGS, 63)), odd)
    result = e.select(e.compare("==", x, 0), e.with_sign(result, negative_zero), result)
    nan = b.or_(b.fcmp_unordered("uno", x, x), b.fcmp_unordered("uno", y, y))
    result = e.select(nan, np.nan, result)
    return e.select(b.or_(e.compare("==", y, 0), e.compare("==", x, 1)), 1, result)


def _rounded(name, function, emit, count=1):
    """Return a function of ``count`` float32 vectors, computed in float64; in NumPy if nothing is compiled."""

    def reference(*vectors):
        return function(*(v.astype(np.float64) for v in vectors)).astype(np.float32)

    def emitted(builder, values):
        module, label = builder.module, f"pqnet_{name}_{WIDTH}"
        if label not in module.globals:
            made = ir.Function(module, ir.FunctionType(FLOATS.llvm, [FLOATS.llvm] * count), label)
            made.linkage = "internal"
            made.attributes.add("noinline")
            inner = ir.IRBuilder(made.append_basic_block("entry"))
            result = emit(_Emitter(inner), *(inner.fpext(x, DOUBLES) for x in made.args))
            inner.ret(inner.fptrunc(result, FLOATS.llvm))
        return builder.call(module.globals[label], values)

    def of_one(context, x):
        return FLOATS(FLOATS), lambda context, builder, signature, values: emitted(builder, values)

    def of_two(context, x, y):
        return FLOATS(FLOATS, FLOATS), lambda context, builder, signature, values: emitted(builder, values)

    return compiled_or(reference, of_one if count == 1 else of_two)


expm1, log1p = _rounded("expm1", np.expm1, _expm1), _rounded("log1p", np.log1p, _log1p)
log_2, log_10 = _rounded("log2", np.log2, _log2), _rounded("log10", np.log10, _log10)
sin, cos = _rounded("sin", np.sin, _sin), _rounded("cos", np.cos, _cos)
power = _rounded("power", np.power, _power, 2)
