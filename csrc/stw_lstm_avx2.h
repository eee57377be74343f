/* stw_lstm_avx2.h - eight units of a plain LSTM layer at once on x86-64 with AVX2; part of stw_lstm.c.  Built with
 * STW_WITH_AVX2 and taken at run time where the CPU has it. */
#include <string.h>

#include "stw_avx2.h"

static int avx2_is_on(void)
{
    return stw_kernel() >= STW_AVX2;
}

/* The first n of 16 weights, n < 16, without a look behind `end`, the end of the array. */
AVX2 __m128i avx2_last_weights(const int8_t *w, size_t n, const int8_t *end)
{
    int8_t some[16] = {0};

    if (end - w >= 16) {
        return _mm_loadu_si128((const __m128i *)(const void *)w); /* x is 0 beyond n */
    }
    memcpy(some, w, n);
    return _mm_loadu_si128((const __m128i *)(const void *)some);
}

AVX2 __m256i avx2_products(__m128i w, __m256i x)
{
    return _mm256_madd_epi16(_mm256_cvtepi8_epi16(w), x);
}

/* The sums of eight rows over their last n columns, n < 16. */
static __attribute__((target("avx2"), noinline)) __m256i avx2_last_sums(const int8_t *w, size_t stride, size_t n,
                                                                        __m256i x_last, const int8_t *end)
{
    int32_t sums[8];

    for (int u = 0; u < 8; u++) {
        __m256i a = avx2_products(avx2_last_weights(w + (size_t)u * stride, n, end), x_last);
        __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));

        b       = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4E));
        b       = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0xB1));
        sums[u] = _mm_cvtsi128_si32(b);
    }
    return _mm256_loadu_si256((const __m256i *)(const void *)sums);
}

/* The sums of eight rows over n columns; they stand `stride` bytes apart.  One copy of it: inlined eight times it would
 * fill the instruction cache. */
static __attribute__((target("avx2"), noinline)) __m256i avx2_sums(const int8_t *w, size_t stride, const int16_t *x,
                                                                   size_t n, __m256i x_last, const int8_t *end)
{
    const int8_t *w4 = w + 4 * stride;
    __m256i       a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0, low, high;
    size_t        j = 0;

#define AVX2_ROW(sum, row)                                                                                             \
    sum = _mm256_add_epi32(sum, avx2_products(_mm_loadu_si128((const __m128i *)(const void *)(row)), v))
    for (; j + 16 <= n; j += 16) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(x + j));

        AVX2_ROW(a0, w + j);
        AVX2_ROW(a1, w + stride + j);
        AVX2_ROW(a2, w + 2 * stride + j);
        AVX2_ROW(a3, w + 3 * stride + j);
        AVX2_ROW(a4, w4 + j);
        AVX2_ROW(a5, w4 + stride + j);
        AVX2_ROW(a6, w4 + 2 * stride + j);
        AVX2_ROW(a7, w4 + 3 * stride + j);
    }
#undef AVX2_ROW
    low  = _mm256_hadd_epi32(_mm256_hadd_epi32(a0, a1), _mm256_hadd_epi32(a2, a3));
    high = _mm256_hadd_epi32(_mm256_hadd_epi32(a4, a5), _mm256_hadd_epi32(a6, a7));
    low  = _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
    return j < n ? _mm256_add_epi32(low, avx2_last_sums(w + j, stride, n - j, x_last, end)) : low;
}

/* The last n % 16 codes, and zeros. */
AVX2 __m256i avx2_last_codes(const int16_t *x, size_t n)
{
    int16_t some[16] = {0};

    memcpy(some, x + (n & ~(size_t)15u), (n & 15u) * sizeof *x);
    return _mm256_loadu_si256((const __m256i *)(const void *)some);
}

/* RSH(x, n) for n >= 1 */
AVX2 __m256i avx2_rsh(__m256i x, __m256i n)
{
    __m256i one = _mm256_set1_epi32(1);

    return _mm256_srai_epi32(_mm256_add_epi32(_mm256_srav_epi32(x, _mm256_sub_epi32(n, one)), one), 1);
}

/* floor((a * b + round) / 2^n) of eight lanes, the products exact; the results fit 32 bits. */
#define AVX2_PRODUCT(a, b, round, n)                                                                                   \
    _mm256_blend_epi32(                                                                                                \
        _mm256_srli_epi64(_mm256_add_epi64(_mm256_mul_epi32(a, b), _mm256_set1_epi64x(round)), n),                     \
        _mm256_slli_epi64(_mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32)),       \
                                           _mm256_set1_epi64x(round)),                                                 \
                          32 - (n)),                                                                                   \
        0xAA)

/* The records of eight units, turned: field[2 * gate] is bias, field[2 * gate + 1] mult, kx and shift. */
AVX2 void avx2_records(const stw_row *row, __m256i field[8])
{
    for (int u = 0; u < 8; u++) {
        field[u] = _mm256_loadu_si256((const __m256i *)(const void *)(row + 4 * u));
    }
    avx2_turn(field);
}

/* Pre-activations of one gate of eight units, Q4.11 before SAT16.  Shifts of 17 or more: RQ(a, mult, shift) =
 * RSH(floor(a * mult / 2^16), shift - 16); *can keeps its sign bits while all are. */
AVX2 __m256i avx2_pre_activations(const __m256i record[2], __m256i ax, __m256i ah, __m256i *can)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i       mult = _mm256_srai_epi32(_mm256_slli_epi32(record[1], 16), 16);
    __m256i       kx   = _mm256_srai_epi32(_mm256_slli_epi32(record[1], 8), 24);
    __m256i       left = _mm256_sub_epi32(_mm256_set1_epi32(16), _mm256_srai_epi32(record[1], 24));
    __m256i       down = avx2_rsh(ax, _mm256_sub_epi32(zero, kx)), up = _mm256_sllv_epi32(ax, kx);
    __m256i       acc = _mm256_blendv_epi8(up, down, _mm256_srai_epi32(kx, 31));

    acc  = _mm256_add_epi32(acc, _mm256_add_epi32(ah, record[0]));
    *can = _mm256_and_si256(*can, left);
    return avx2_rsh(AVX2_PRODUCT(acc, mult, 0, 16), _mm256_sub_epi32(zero, left));
}

/* Two entries of the table from k on: as two halves of a word. */
AVX2 int avx2_entries(uint32_t k)
{
    int pair;

    memcpy(&pair, stw_sigmoid_table + k, sizeof pair);
    return pair;
}

/* Y(a) - 2^21 + round: both entries weighted by 64 - f and f.  Eight loads, since a gather takes longer on CPUs whose
 * microcode guards it against data sampling. */
AVX2 __m256i avx2_table(__m256i a, int round)
{
    uint32_t k[8];
    __m256i  f = _mm256_and_si256(a, _mm256_set1_epi32(63)), pair;
    __m256i  w = _mm256_add_epi32(_mm256_sub_epi32(_mm256_slli_epi32(f, 16), f), _mm256_set1_epi32(64));

    _mm256_storeu_si256((__m256i *)(void *)k, _mm256_srli_epi32(a, 6));
    pair = _mm256_setr_epi32(avx2_entries(k[0]), avx2_entries(k[1]), avx2_entries(k[2]), avx2_entries(k[3]),
                             avx2_entries(k[4]), avx2_entries(k[5]), avx2_entries(k[6]), avx2_entries(k[7]));
    return _mm256_add_epi32(_mm256_madd_epi16(pair, w), _mm256_set1_epi32(round));
}

/* y with the sign of z; y = 0 where z = 0 */
AVX2 __m256i avx2_sigmoid(__m256i z)
{
    __m256i a = _mm256_min_epu32(_mm256_abs_epi32(z), _mm256_set1_epi32(22527));
    __m256i y = _mm256_sign_epi32(_mm256_srai_epi32(avx2_table(a, 64), 7), z);

    return _mm256_min_epi32(_mm256_add_epi32(y, _mm256_set1_epi32(16384)), _mm256_set1_epi32(32767));
}

AVX2 __m256i avx2_tanh(__m256i z)
{
    __m256i a = _mm256_slli_epi32(_mm256_min_epu32(_mm256_abs_epi32(z), _mm256_set1_epi32(11263)), 1);

    return _mm256_sign_epi32(_mm256_srai_epi32(avx2_table(a, 32), 6), z);
}

AVX2 __m256i avx2_saturating_add(__m256i a, __m256i b)
{
    __m256i sum  = _mm256_add_epi32(a, b);
    __m256i over = _mm256_and_si256(_mm256_xor_si256(a, sum), _mm256_xor_si256(b, sum));
    __m256i end  = _mm256_xor_si256(_mm256_srai_epi32(a, 31), _mm256_set1_epi32(INT32_MAX));

    return _mm256_blendv_epi8(sum, end, _mm256_srai_epi32(over, 31));
}

/* What eight units read: their rows, and the last codes of x and h. */
typedef struct avx2_group {
    __m256i       x_last, h_last;
    const int8_t *w_end, *r_end;
} avx2_group;

AVX2 __m256i avx2_gate(const walk *at, const avx2_group *group, const __m256i field[8], size_t k, __m256i *can)
{
    size_t  n_in = at->n_in, n_out = at->n_out;
    __m256i ax = avx2_sums(at->w + k * n_in, 4 * n_in, at->x, n_in, group->x_last, group->w_end);
    __m256i ah = avx2_sums(at->r + k * n_out, 4 * n_out, at->h, n_out, group->h_last, group->r_end);

    return avx2_pre_activations(field + 2 * k, ax, ah, can);
}

/* New c and h of eight units; 0 when they must be computed one by one, then nothing has changed. */
AVX2 int avx2_units(const walk *at, const avx2_group *group, int32_t *c, int16_t *out)
{
    __m256i field[8], can = _mm256_set1_epi32(-1), i, f, g, o, kept, new_c, y;

    avx2_records(at->row, field);
    i = avx2_sigmoid(avx2_gate(at, group, field, 0, &can));
    f = avx2_sigmoid(avx2_gate(at, group, field, 1, &can));
    g = avx2_tanh(avx2_gate(at, group, field, 2, &can));
    o = avx2_sigmoid(avx2_gate(at, group, field, 3, &can));
    if (_mm256_movemask_ps(_mm256_castsi256_ps(can)) != 0xFF) {
        return 0;
    }
    y     = _mm256_loadu_si256((const __m256i *)(const void *)c);
    kept  = AVX2_PRODUCT(y, f, 1 << 14, 15);
    new_c = avx2_saturating_add(kept, avx2_rsh(_mm256_mullo_epi32(i, g), _mm256_set1_epi32(8)));
    y     = _mm256_mullo_epi32(o, avx2_tanh(avx2_rsh(new_c, _mm256_set1_epi32(11))));
    if (at->h_bits == 8) {
        y = _mm256_min_epi32(avx2_rsh(y, _mm256_set1_epi32(23)), _mm256_set1_epi32(127));
        y = _mm256_max_epi32(y, _mm256_set1_epi32(-127));
    } else {
        y = avx2_rsh(y, _mm256_set1_epi32(15));
    }
    _mm256_storeu_si256((__m256i *)(void *)c, new_c);
    y = _mm256_permute4x64_epi64(_mm256_packs_epi32(y, y), 0x08);
    _mm_storeu_si128((__m128i *)(void *)out, _mm256_castsi256_si128(y));
    return 1;
}

/* As many units as go eight at a time, from the first on; `at` stands behind them.  Gives their number. */
__attribute__((target("avx2"))) static size_t avx2_step(walk *at, int32_t *c, int16_t *out)
{
    size_t     n_in = at->n_in, n_out = at->n_out, u = 0;
    avx2_group group = {avx2_last_codes(at->x, n_in), avx2_last_codes(at->h, n_out), at->w + 4 * n_in * n_out,
                        at->r + 4 * n_out * n_out};

    for (; u + 8 <= n_out && avx2_units(at, &group, c + u, out + u); u += 8) {
        at->w += 32 * n_in;
        at->r += 32 * n_out;
        at->row += 32;
    }
    return u;
}
