"""Every operation of csrc/stw_fix.h, and softmax, against the exact mathematics of
docs/numerics.md, over its whole stated range.

The static inline functions are compiled into array loops. The build has STW_CHECKED, with an assert
that counts instead of aborting: inside the stated bounds no check may fire.
"""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT
from stepwell.integer import fixed

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
RESULT_MAX = 2**31 - 2**16
CSRC = ROOT / "csrc"

ASSERT_H = "extern int failed_checks;\n#undef assert\n#define assert(c) ((c) ? (void)0 : (void)failed_checks++)\n"
LOOPS = """
#include "stw_fix.h"
#include "stw_layers.h"

int failed_checks = 0;

#define MAP1(name, expression) \\
    void name(const int32_t *a, int32_t *y, size_t n) \\
    { for (size_t k = 0; k < n; k++) { y[k] = expression; } }
#define MAP2(name, expression) \\
    void name(const int32_t *a, const int32_t *b, int32_t *y, size_t n) \\
    { for (size_t k = 0; k < n; k++) { y[k] = expression; } }
#define MAP3(name, expression) \\
    void name(const int32_t *a, const int32_t *b, const int32_t *c, int32_t *y, size_t n) \\
    { for (size_t k = 0; k < n; k++) { y[k] = expression; } }

MAP1(sat16, stw_sat16(a[k]))
MAP1(sigmoid, stw_sigmoid((int16_t)a[k]))
MAP1(tanh_, stw_tanh((int16_t)a[k]))
MAP2(rsh, stw_rsh(a[k], (int)b[k]))
MAP2(join, stw_join(a[k], (int)b[k]))
MAP2(gate_mul, stw_gate_mul(a[k], b[k]))
MAP2(sat_add, stw_sat_add(a[k], b[k]))
MAP2(min_, stw_min(a[k], b[k]))
MAP2(max_, stw_max(a[k], b[k]))
MAP2(magnitude, stw_magnitude(a[k], b[k]))
MAP3(rq, stw_rq(a[k], b[k], (int)c[k]))
"""

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler: apt-get install gcc"
)


class Library:
    """The compiled loops: ``library("rq", a, m, s)`` -> int64 results; arguments are broadcast."""

    def __init__(self, path):
        self._dll = ctypes.CDLL(str(path))
        self._failed = ctypes.c_int.in_dll(self._dll, "failed_checks")

    def __call__(self, name, *arguments):
        arrays = [np.ascontiguousarray(a, np.int32) for a in np.broadcast_arrays(*arguments)]
        y = np.empty(arrays[0].shape, np.int32)
        self._call(name, *(a.ctypes.data for a in arrays), y.ctypes.data, n=y.size)
        return y.astype(np.int64)

    def softmax(self, logits):
        y = np.array(logits, np.int32)
        self._call("stw_softmax", y.ctypes.data, n=y.size)
        return y.astype(np.int64)

    def _call(self, name, *pointers, n):
        self._failed.value = 0
        getattr(self._dll, name)(*(ctypes.c_void_p(p) for p in pointers), ctypes.c_size_t(n))
        assert self._failed.value == 0, (
            f"{name}: {self._failed.value} STW_CHECKs fired inside the stated bounds"
        )


@pytest.fixture(scope="module", params=["-O0", "-O3"])
def c(request, tmp_path_factory) -> Library:
    folder = tmp_path_factory.mktemp("fix")
    (folder / "assert.h").write_text(ASSERT_H)
    (folder / "loops.c").write_text(LOOPS)
    sources = [folder / "loops.c", CSRC / "stw_softmax.c", CSRC / "stw_table.c"]
    flags = [
        "-std=c99",
        request.param,
        "-DSTW_CHECKED",
        "-shared",
        "-fPIC",
        f"-I{folder}",
        f"-I{CSRC}",
    ]
    subprocess.run(["cc", *flags, "-o", folder / "fix.so", *sources], check=True)
    return Library(folder / "fix.so")


def rounded(numerator: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """floor(numerator / 2^n + 1/2) in int64, n >= 1."""
    unit = np.left_shift(np.int64(1), n)
    return (2 * numerator + unit) // (2 * unit)


def int32_values(rng: np.random.Generator, n: int = 2000) -> np.ndarray:
    """Rails, powers of two and their neighbours, and random numbers of every size."""
    powers = 2 ** np.arange(32, dtype=np.int64)
    edges = np.concatenate([sign * powers + d for sign in (1, -1) for d in (-2, -1, 0, 1, 2)])
    halves = np.array([0x8000, 0xFFFF, 0x7FFF, 0x18000, 0x17FFF, 0x12345]) * np.array([[1], [-1]])
    rails = np.array([INT32_MIN, INT32_MIN + 1, -RESULT_MAX, RESULT_MAX, INT32_MAX - 1, INT32_MAX])
    random = rng.integers(INT32_MIN, INT32_MAX + 1, n) >> rng.integers(0, 31, n)
    values = np.unique(np.concatenate([edges, halves.ravel(), rails, random]))
    return values[(values >= INT32_MIN) & (values <= INT32_MAX)]


MULTIPLIERS = np.array(
    [1, 2, 3, 5, 255, 256, 4096, 16383, 16384, 16385, 24576, 32765, 32766, 32767]
)


def half_ways(m: int, s: int, rng: np.random.Generator) -> np.ndarray:
    """a with a * m = 2^(s-1) modulo 2^s: the exact half-way points, where they exist in int32."""
    twos = (m & -m).bit_length() - 1
    if twos >= s:
        return np.empty(0, np.int64)
    period = 2 ** (s - twos)
    first = period // 2 * pow(m >> twos, -1, period) % period  # 0 .. 2^46: Python integers
    lowest, highest = -((first - INT32_MIN) // period), (INT32_MAX - first) // period
    if lowest > highest:
        return np.empty(0, np.int64)
    near = np.clip([lowest, highest, -2, -1, 0, 1], lowest, highest)
    k = np.concatenate([near, rng.integers(lowest, highest + 1, 40)])
    a = first + np.unique(k) * period
    assert ((a * m - 2 ** (s - 1)) % 2**s == 0).all()
    return a


@pytest.mark.parametrize("s", range(1, 47))
def test_rq(c, s):
    rng = np.random.default_rng(s)
    n_half_ways = 0
    for m in map(int, np.concatenate([MULTIPLIERS, rng.integers(1, 32768, 6)])):
        half = half_ways(m, s, rng)
        n_half_ways += len(half)
        # where the result leaves its bounds
        limit = min((RESULT_MAX << s) // m, 2**40) + np.arange(-3, 4)
        scaled = rng.integers(-(2**20), 2**20, 300) * min(
            2**11, max(1, (RESULT_MAX << s) // m >> 20)
        )
        a = np.concatenate(
            [int32_values(rng, 200), limit, -limit, scaled, half - 1, half, half + 1]
        )
        a = a[(a >= INT32_MIN) & (a <= INT32_MAX)]
        expected = rounded(a * m, s)
        inside = np.abs(expected) <= RESULT_MAX
        assert np.array_equal(c("rq", a[inside], m, s), expected[inside]), (m, s)
    assert n_half_ways > 0


def test_rq_at_its_bounds_and_half_ways_by_hand(c):
    cases = [
        (RESULT_MAX, 2, 1, RESULT_MAX),
        (-RESULT_MAX, 2, 1, -RESULT_MAX),
        (INT32_MAX, 32767, 15, RESULT_MAX - 1),  # RESULT_MAX - 32767/32768
        (INT32_MIN, 32767, 15, -RESULT_MAX),
        (INT32_MIN, 32767, 46, -1),  # -0.99997
        (INT32_MIN, 16384, 46, 0),  # -1/2 rounds up
        (INT32_MIN, 16385, 46, -1),
        (1, 1, 1, 1),
        (-1, 1, 1, 0),
        (-3, 1, 1, -1),
        (3, 1, 1, 2),
        (32768, 1, 16, 1),
        (32767, 1, 16, 0),
        (-32768, 1, 16, 0),
        (-32769, 1, 16, -1),
        (65536, 1, 17, 1),
        (65535, 1, 17, 0),
        (-65536, 1, 17, 0),
        (-65537, 1, 17, -1),
    ]
    a, m, s, expected = np.array(cases).T
    assert np.array_equal(c("rq", a, m, s), expected)


@pytest.mark.parametrize("n", range(32))
def test_rsh(c, n):
    x = int32_values(np.random.default_rng(n))
    half = (2 * np.arange(-50, 50) + 1) * 2 ** max(n - 1, 0)
    x = np.concatenate([x, half[(half >= INT32_MIN) & (half <= INT32_MAX)]])
    x = x[(x != INT32_MAX) | (n != 1)]  # outside its bounds: no caller shifts INT32_MAX by 1
    assert np.array_equal(c("rsh", x, n), x if n == 0 else rounded(x, n))


@pytest.mark.parametrize("kx", range(-15, 16))
def test_join(c, kx):
    ax = int32_values(np.random.default_rng(kx + 15))
    ax = ax[np.abs(ax) < 2**31 - 2**14]  # (1) of the overflow proof
    if kx >= 0:
        ends = np.array([INT32_MIN >> kx, INT32_MAX >> kx])  # the joined sum fits int32
        ax = np.concatenate([ax[(ax >= ends[0]) & (ax <= ends[1])], ends])
    assert np.array_equal(c("join", ax, kx), ax * 2**kx if kx >= 0 else rounded(ax, -kx))


def test_gate_mul(c):
    rng = np.random.default_rng(0)
    edges = [0, 1, 2, 3, 16383, 16384, 16385, 32766, 32767]
    g = np.concatenate([edges, rng.integers(0, 32768, 300)])
    cell = int32_values(rng)
    half = np.concatenate([half_ways(int(gate), 15, rng) for gate in g[1:40]])
    cell = np.unique(np.concatenate([cell, half]))[:, None]
    assert {INT32_MIN, INT32_MAX} <= set(cell.ravel().tolist())
    assert np.array_equal(c("gate_mul", cell, g), rounded(g * cell, 15))


def test_gate_mul_on_the_rails_by_hand(c):
    cases = [
        (INT32_MAX, 32767, RESULT_MAX - 1),  # RESULT_MAX - 32767/32768
        (INT32_MIN, 32767, -RESULT_MAX),
        (INT32_MAX, 0, 0),
        (INT32_MIN, 0, 0),
        (INT32_MAX, 1, 65536),  # 65535.99997
        (INT32_MIN, 1, -65536),
        (16384, 1, 1),
        (16383, 1, 0),
        (-16384, 1, 0),
        (-16385, 1, -1),
    ]
    cell, g, expected = np.array(cases).T
    assert np.array_equal(c("gate_mul", cell, g), expected)


def test_sat16(c):
    cases = {
        -32769: -32768,
        -32768: -32768,
        -32767: -32767,
        -1: -1,
        0: 0,
        1: 1,
        32766: 32766,
        32767: 32767,
        32768: 32767,
        65535: 32767,
        65536: 32767,
        -65536: -32768,
        RESULT_MAX: 32767,
        -RESULT_MAX: -32768,
    }
    assert c("sat16", list(cases)).tolist() == list(cases.values())
    x = np.concatenate([np.arange(-70000, 70000), int32_values(np.random.default_rng(0))])
    x = x[np.abs(x) <= RESULT_MAX]
    assert np.array_equal(c("sat16", x), np.clip(x, -32768, 32767))


def test_sat_add(c):
    x = int32_values(np.random.default_rng(0), 300)
    total = x[:, None] + x
    assert (total > INT32_MAX).any() and (total < INT32_MIN).any()
    assert np.array_equal(c("sat_add", x[:, None], x), np.clip(total, INT32_MIN, INT32_MAX))


def test_sat_add_around_saturation(c):
    rng = np.random.default_rng(1)
    for rail, a in (
        (INT32_MAX, rng.integers(0, 2**31, 2000)),
        (INT32_MIN, rng.integers(-(2**31), 0, 2000)),
    ):
        for beyond in range(-3, 4):
            b = rail + beyond - a
            b = np.clip(b, INT32_MIN, INT32_MAX)
            assert np.array_equal(c("sat_add", a, b), np.clip(a + b, INT32_MIN, INT32_MAX)), (
                rail,
                beyond,
            )
    by_hand = [
        (INT32_MAX, 1, INT32_MAX),
        (INT32_MAX, INT32_MAX, INT32_MAX),
        (INT32_MAX - 1, 1, INT32_MAX),
        (INT32_MAX - 2, 1, INT32_MAX - 1),
        (INT32_MIN, -1, INT32_MIN),
        (INT32_MIN, INT32_MIN, INT32_MIN),
        (INT32_MIN + 1, -1, INT32_MIN),
        (INT32_MIN + 2, -1, INT32_MIN + 1),
        (INT32_MIN, INT32_MAX, -1),
        (2**30, 2**30, INT32_MAX),
        (-(2**30), -(2**30), INT32_MIN),
    ]
    a, b, expected = np.array(by_hand).T
    assert np.array_equal(c("sat_add", a, b), expected)
    assert np.array_equal(c("sat_add", b, a), expected)


def test_min_and_max(c):
    x = int32_values(np.random.default_rng(0), 300)
    a, b = (v.ravel() for v in np.meshgrid(x, x))
    fits = (a - b >= INT32_MIN) & (a - b <= INT32_MAX)
    a, b = a[fits], b[fits]
    assert np.array_equal(c("min_", a, b), np.minimum(a, b))
    assert np.array_equal(c("max_", a, b), np.maximum(a, b))


def test_magnitude(c):
    """Over all that an accumulator may hold: |z| <= 2^31 - 2^16."""
    z = int32_values(np.random.default_rng(4))
    z = z[np.abs(z) <= 2**31 - 2**16]
    for limit in (22527, 11263):
        assert np.array_equal(c("magnitude", z, limit), np.minimum(np.abs(z), limit))


def test_sigmoid_and_tanh_of_every_code(c):
    z = np.arange(-32768, 32768)
    assert np.array_equal(c("sigmoid", z), fixed.sig(z))
    assert np.array_equal(c("tanh_", z), fixed.tanh(z))


def logits(rng: np.random.Generator, n: int, spread: int) -> np.ndarray:
    """Random logits within ``spread`` of a random top that keeps them in the proof's bounds."""
    top = int(rng.integers(-RESULT_MAX + spread, RESULT_MAX + 1))
    return top - rng.integers(0, spread + 1, n)


@pytest.mark.parametrize("n", [1, 2, 10, 512])
def test_softmax(c, n):
    rng = np.random.default_rng(n)
    rows = [np.full(n, value) for value in (0, 1, -1, RESULT_MAX, -RESULT_MAX)]
    rows += [
        logits(rng, n, spread)
        for spread in (1, 100, 1 << 16, 10 << 16, 32 << 16, 2**31, 2 * RESULT_MAX)
        for _ in range(40)
    ]
    rows += [rng.choice([-RESULT_MAX, RESULT_MAX], n) for _ in range(5)]
    for z in rows:
        assert np.array_equal(c.softmax(z), fixed.softmax(z)), z


@pytest.mark.parametrize("n", [2, 10, 512])
@pytest.mark.parametrize("whole", range(20, 31))
def test_softmax_of_logits_far_apart(c, n, whole):
    for fraction in (0, 1, 512, 1023, 1024, 1025, 65535):
        for top in (0, RESULT_MAX, -RESULT_MAX + (31 << 16)):
            for position in (0, n // 2, n - 1):
                z = np.full(n, top - (whole << 16) - fraction)
                z[position] = top
                assert np.array_equal(c.softmax(z), fixed.softmax(z)), (fraction, top, position)


def test_softmax_by_hand(c):
    assert c.softmax([-5]).tolist() == [32768]
    assert c.softmax([7, 7]).tolist() == [16384, 16384]
    assert c.softmax([0, 65536]).tolist() == [
        10923,
        21845,
    ]  # 1/3 and 2/3 of 2^15: 10922.67, 21845.33
    assert c.softmax([123] * 512).tolist() == [64] * 512  # the largest sum there is: exactly 2^31
    assert c.softmax([0, -RESULT_MAX]).tolist() == [32768, 0]
