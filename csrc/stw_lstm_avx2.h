/* stw_lstm_avx2.h - eight units of a plain LSTM layer at once on x86-64 with AVX2; part of stw_lstm.c.  Built with
 * STW_WITH_AVX2 and taken at run time where the CPU has it. */
#include <immintrin.h>
#include <string.h>

#define AVX2 static inline __attribute__((target("avx2")))

int stw_avx2 = -1; /* 1: use it, 0: do not, -1: not asked yet */

static int avx2_is_on(void)
{
    if (stw_avx2 < 0) {
        stw_avx2 = __builtin_cpu_supports("avx2") != 0;
    }
    return stw_avx2;
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

/* The sums of the four gates of one unit over n columns. */
AVX2 __m128i avx2_sums(const int8_t *w, const int16_t *x, size_t n, __m256i x_last, const int8_t *end)
{
    const int8_t *w1 = w + n, *w2 = w1 + n, *w3 = w2 + n;
    __m256i       a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0, pairs;
    size_t        j = 0;

    for (; j + 16 <= n; j += 16) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(x + j));

        a0 = _mm256_add_epi32(a0, avx2_products(_mm_loadu_si128((const __m128i *)(const void *)(w + j)), v));
        a1 = _mm256_add_epi32(a1, avx2_products(_mm_loadu_si128((const __m128i *)(const void *)(w1 + j)), v));
        a2 = _mm256_add_epi32(a2, avx2_products(_mm_loadu_si128((const __m128i *)(const void *)(w2 + j)), v));
        a3 = _mm256_add_epi32(a3, avx2_products(_mm_loadu_si128((const __m128i *)(const void *)(w3 + j)), v));
    }
    if (j < n) {
        a0 = _mm256_add_epi32(a0, avx2_products(avx2_last_weights(w + j, n - j, end), x_last));
        a1 = _mm256_add_epi32(a1, avx2_products(avx2_last_weights(w1 + j, n - j, end), x_last));
        a2 = _mm256_add_epi32(a2, avx2_products(avx2_last_weights(w2 + j, n - j, end), x_last));
        a3 = _mm256_add_epi32(a3, avx2_products(avx2_last_weights(w3 + j, n - j, end), x_last));
    }
    pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(a0, a1), _mm256_hadd_epi32(a2, a3));
    return _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
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

/* Pre-activations of one gate of eight units, Q4.11 before SAT16; sums stand four apart, records likewise.  Shifts of
 * 17 or more: RQ(a, mult, shift) = RSH(floor(a * mult / 2^16), shift - 16); *can keeps its sign bits while all are. */
AVX2 __m256i avx2_pre_activations(const stw_row *row, const int32_t *ax, const int32_t *ah, __m256i *can)
{
    const __m256i at = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28), zero = _mm256_setzero_si256();
    const int    *field = (const int *)(const void *)row;
    __m256i       bias  = _mm256_i32gather_epi32(field, at, 8);
    __m256i       word  = _mm256_i32gather_epi32(field + 1, at, 8); /* mult, kx, shift */
    __m256i       mult  = _mm256_srai_epi32(_mm256_slli_epi32(word, 16), 16);
    __m256i       kx    = _mm256_srai_epi32(_mm256_slli_epi32(word, 8), 24);
    __m256i       left  = _mm256_sub_epi32(_mm256_set1_epi32(16), _mm256_srai_epi32(word, 24));
    __m256i       sum   = _mm256_i32gather_epi32(ax, at, 4);
    __m256i       down = avx2_rsh(sum, _mm256_sub_epi32(zero, kx)), up = _mm256_sllv_epi32(sum, kx);
    __m256i       acc = _mm256_blendv_epi8(up, down, _mm256_srai_epi32(kx, 31));

    acc  = _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_i32gather_epi32(ah, at, 4), bias));
    *can = _mm256_and_si256(*can, left);
    return avx2_rsh(AVX2_PRODUCT(acc, mult, 0, 16), _mm256_sub_epi32(zero, left));
}

/* Y(a) - 2^21 + round: both entries by one gather, weighted by 64 - f and f. */
AVX2 __m256i avx2_table(__m256i a, int round)
{
    __m256i pair = _mm256_i32gather_epi32((const int *)(const void *)stw_sigmoid_table, _mm256_srli_epi32(a, 6), 2);
    __m256i f    = _mm256_and_si256(a, _mm256_set1_epi32(63));
    __m256i w    = _mm256_add_epi32(_mm256_sub_epi32(_mm256_slli_epi32(f, 16), f), _mm256_set1_epi32(64));

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

/* New c and h of eight units; 0 when they must be computed one by one, then nothing has changed. */
AVX2 int avx2_units(const stw_row *row, const int32_t *ax, const int32_t *ah, int32_t *c, int16_t *out,
                    unsigned int h_bits)
{
    __m256i can = _mm256_set1_epi32(-1), eight = _mm256_set1_epi32(8);
    __m256i i     = avx2_sigmoid(avx2_pre_activations(row, ax, ah, &can));
    __m256i f     = avx2_sigmoid(avx2_pre_activations(row + 1, ax + 1, ah + 1, &can));
    __m256i g     = avx2_tanh(avx2_pre_activations(row + 2, ax + 2, ah + 2, &can));
    __m256i o     = avx2_sigmoid(avx2_pre_activations(row + 3, ax + 3, ah + 3, &can));
    __m256i old_c = _mm256_loadu_si256((const __m256i *)(const void *)c), kept, new_c, y;

    if (_mm256_movemask_ps(_mm256_castsi256_ps(can)) != 0xFF) {
        return 0;
    }
    kept  = AVX2_PRODUCT(old_c, f, 1 << 14, 15);
    new_c = avx2_saturating_add(kept, avx2_rsh(_mm256_mullo_epi32(i, g), eight));
    y     = _mm256_mullo_epi32(o, avx2_tanh(avx2_rsh(new_c, _mm256_set1_epi32(11))));
    if (h_bits == 8) {
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
    const int8_t *w_end = at->w + 4 * (size_t)at->n_in * at->n_out, *r_end = at->r + 4 * (size_t)at->n_out * at->n_out;
    __m256i       x_last = avx2_last_codes(at->x, at->n_in), h_last = avx2_last_codes(at->h, at->n_out);
    size_t        u = 0;

    for (; u + 8 <= at->n_out; u += 8) {
        const int8_t *w = at->w, *r = at->r;
        int32_t       ax[32], ah[32];

        for (size_t k = 0; k < 32; k += 4) {
            _mm_storeu_si128((__m128i *)(void *)(ax + k), avx2_sums(w, at->x, at->n_in, x_last, w_end));
            _mm_storeu_si128((__m128i *)(void *)(ah + k), avx2_sums(r, at->h, at->n_out, h_last, r_end));
            w += 4 * (size_t)at->n_in;
            r += 4 * (size_t)at->n_out;
        }
        if (!avx2_units(at->row, ax, ah, c + u, out + u, at->h_bits)) {
            break;
        }
        at->w = w;
        at->r = r;
        at->row += 32;
    }
    return u;
}
