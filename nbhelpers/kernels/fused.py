"""The metrics of many attention rows in compiled loops over blocks that stay in the cache of one core.

The definitions are those of :mod:`~nbhelpers.kernels.rows`, in float32. Importing this module compiles it by
numba, or reads what an earlier process compiled; where neither is possible the import raises. The loops hold
no lock of the interpreter, so Python threads run them side by side. They stay vectorised because indices are
*unsigned*, as a signed one might count from the end; maxima are of integers in the order of the floats, as a
maximum of floats stays scalar; and int32 is cast back after every step, as numba widens it to int64, half the
lanes. Denormals are slow: callers have them flushed.
"""

import math

import numba
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

f32, i32 = np.float32, np.int32
ONE, TWO, THREE = np.uintp(1), np.uintp(2), np.uintp(3)
LN2, LOG2E = f32(math.log(2)), f32(1 / math.log(2))
TINY = f32(np.finfo(np.float32).tiny)
LEAST_POWER = f32(-127)  # 2 to it is 0 here
ROOT_HALF = i32(0x3F3504F3)  # the bits of sqrt(1/2): mantissas are counted from there to sqrt(2)
LANES, SPARE = 16, 64  # numbers in the widest vectors; samples around a signal, for margins and whole vectors

# Sums may be taken in any order; NaN and infinity stay what they are.
FREE = {"reassoc", "contract", "arcp", "nsz"}
inline = numba.njit(inline="always", fastmath=FREE, error_model="numpy")


def kernel(signature):
    """Compile for these types when the module is imported, and keep the result on disk."""
    return numba.njit(signature, nogil=True, cache=True, fastmath=FREE, error_model="numpy")


def _polynomial(function, low, high, degree):
    """Return the coefficients of an interpolation at Chebyshev nodes, lowest order first."""
    fit = Chebyshev.interpolate(function, degree, (low, high)).convert(kind=Polynomial)
    return tuple(map(f32, fit.coef))


L0, L1, L2, L3, L4, L5, L6, L7, L8 = _polynomial(
    lambda t: np.log1p(t) / (t * math.log(2)), math.sqrt(0.5) - 1, math.sqrt(2) - 1, 8
)
E0, E1, E2, E3, E4, E5, E6 = _polynomial(np.exp2, -0.5, 0.5, 6)


@inline
def log2(x):
    """log2 of a positive float32 that is not denormal, within 3e-7."""
    bits = i32(f32(x).view(i32) - ROOT_HALF)
    exponent = f32(i32(bits >> i32(23)))
    t = i32(i32(bits & i32(0x007FFFFF)) + ROOT_HALF).view(f32) - f32(1)
    p = (((((((L8 * t + L7) * t + L6) * t + L5) * t + L4) * t + L3) * t + L2) * t + L1) * t + L0
    return p * t + exponent


@inline
def exp2(x):
    """2^x for x from LEAST_POWER to 0, within 1e-7 of it."""
    k = i32(x - f32(0.5))  # towards zero: the nearest whole number of a negative x
    t = x - f32(k)
    p = (((((E6 * t + E5) * t + E4) * t + E3) * t + E2) * t + E1) * t + E0
    return p * i32(i32(k + i32(127)) << i32(23)).view(f32)


@inline
def ordered(x):
    """The bits of a float32 as an integer whose order is that of the floats; its own inverse."""
    bits = f32(x).view(i32)
    return i32(bits ^ i32(i32(bits >> i32(31)) & i32(0x7FFFFFFF)))


@inline
def largest(a, n):
    """The maximum of the first n values."""
    top = i32(-(2**31))
    for k in range(n):
        top = max(top, ordered(a[k]))
    return i32(ordered(i32(top).view(f32))).view(f32)


@inline
def x_log2_x(x):
    return x * log2(max(x, TINY))  # 0 log 0 = 0


@inline
def clear(a, start, stop):
    for k in range(start, stop):
        a[np.uintp(k)] = f32(0)


@kernel("f4(f4[::1], f4[::1], i8, f4[::1], f4[::1])")
def filter_once(a, b, count, lo, hi):
    """One level: `count` approximations of samples a into b; returns Σ w² log2 w² of the details."""
    l0, l1, l2, l3 = lo[0], lo[1], lo[2], lo[3]
    h0, h1, h2, h3 = hi[0], hi[1], hi[2], hi[3]
    total = f32(0)
    for i in range(count):
        k = np.uintp(i) * TWO
        x0, x1, x2, x3 = a[k], a[k + ONE], a[k + TWO], a[k + THREE]
        b[i] = l0 * x0 + l1 * x1 + l2 * x2 + l3 * x3
        w = h0 * x0 + h1 * x1 + h2 * x2 + h3 * x3
        total += x_log2_x(w * w)
    return total


@kernel("void(f4[::1], f4[::1], i8, i8, i8, f4[::1], f4[::1], f8[:])")
def add_wavelet_entropies(x, y, n, full, level, lo, hi, sums):
    """Add −Σ w² log w² of each level of a symmetric 4-tap transform to `sums`, from coarse to fine.

    x, lost, holds the first n of `full` samples from index 2 on, the others are zero; y is as long.
    """
    for j in range(level):
        a, b = (x, y) if j % 2 == 0 else (y, x)
        at_end = n + 4 > full  # the filters reach samples behind the signal
        count = ((full if at_end else n) + 3) // 2
        run = count if at_end else (count + LANES - 1) // LANES * LANES  # what is more is zero and adds none
        clear(a, 2 + n, 2 * run + 6)
        a[0], a[1] = a[3], a[2]
        if at_end:
            for k in range(2 * count - full):
                a[2 + full + k] = a[1 + full - k]
        sums[level - j] -= LN2 * filter_once(a, b[2:], run, lo, hi)
        n, full = count, (full + 3) // 2
    last = x if level % 2 == 0 else y
    total = f32(0)
    for i in range(n):
        total += x_log2_x(last[2 + i] * last[2 + i])
    sums[0] -= LN2 * total


@kernel("void(f4[:, ::1], i8, i8, f4[::1], f4[::1], f4[::1], f4[:, ::1], f4[::1], f8[:, ::1])")
def add_rows(scores, first, per_head, taper, lo, hi, tapered, entropy, sums):
    """Turn causal scores (row, key) into probabilities, in place, and measure what needs no spectrum.

    Row r is query `first` + r % `per_head` of head r // `per_head`. `tapered` (row, length) receives the row
    times the taper (length,), with a largest sample of 1, so that what a window leaves beside a sink keeps
    its digits; zeros where nothing is left. `entropy` (row,) is in nats; it and the wavelet entropies,
    approximation first, are added to `sums` (head, 2 + level).
    """
    n_rows, n_keys = scores.shape
    length, level = tapered.shape[1], sums.shape[1] - 2
    x, y = np.empty(n_keys + SPARE, np.float32), np.empty(n_keys + SPARE, np.float32)
    for r in range(n_rows):
        n = first + r % per_head + 1
        s, t, own = scores[r], tapered[r], sums[r // per_head]
        p = x[2:]
        top = largest(s, n)
        ties = rest = moment = f32(0)  # 1 for each largest score; the others' share; Σ e log2 e
        for i in range(n):
            d = max((s[i] - top) * LOG2E, LEAST_POWER)
            e = exp2(d)
            p[i] = e
            ties += f32(1) if d == f32(0) else f32(0)
            rest += f32(0) if d == f32(0) else e
            moment += e * d
        # Apart from what is left, or a row with nearly all mass on one key would have no digit of it.
        entropy[r] = math.log(ties) + math.log1p(rest / ties) - LN2 * moment / (ties + rest)
        own[0] += entropy[r]
        scale = f32(1) / (ties + rest)
        for i in range(n):
            q = p[i] * scale
            s[i] = q
            t[i] = p[i] * taper[i]
            p[i] = q
        clear(s, n, n_keys)
        clear(t, n, length)
        most = largest(t, n)
        stretch = f32(1) / most if most >= TINY else f32(0)
        for i in range(n):
            t[i] *= stretch
        add_wavelet_entropies(x, y, n, length, level, lo, hi, own[1:])


@kernel("void(f4[:, ::1], i8[::1], i8, f4[::1], f8[:, ::1])")
def add_spectra(transforms, cuts, per_head, entropy, sums):
    """Measure the spectra of rows, from their transforms (row, 2 · freq), real and imaginary parts in turn.

    `cuts` are the first bins of the bands and the number of bins. Added to `sums` (head, 2 + band + 6) where
    a row has power: spectral entropy in nats, selectivity, share of each band; then the number of such rows,
    and with x their `entropy` and y the spectral one, x, y, x², y², x·y.
    """
    n_freq, n_bands = transforms.shape[1] // 2, len(cuts) - 1
    power, band = np.empty(n_freq, np.float32), np.empty(n_bands)
    for r in range(len(transforms)):
        t, own = transforms[r], sums[r // per_head]
        p_log_p = f32(0)
        for k in range(n_freq):
            at = np.uintp(k) * TWO
            q = t[at] * t[at] + t[at + ONE] * t[at + ONE]
            power[k] = q
            p_log_p += x_log2_x(q)
        total = 0.0  # in float64, or a sharp spectrum would lose the digits of total − peak
        for b in range(n_bands):
            band[b] = 0.0
            for k in range(cuts[b], cuts[b + 1]):
                band[b] += np.float64(power[k])
            total += band[b]
        if total > 0:
            peak, x = np.float64(largest(power, n_freq)), np.float64(entropy[r])
            y = math.log(total) - np.float64(p_log_p) * math.log(2) / total
            for b in range(n_bands):
                own[2 + b] += band[b] / total
            own[0] += y
            own[1] += peak / (total - peak)
            for b, moment in enumerate((1.0, x, y, x * x, y * y, x * y)):
                own[2 + n_bands + b] += moment
