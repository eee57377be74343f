/* stw_lanes.c - see stw_lanes.h; the kernel itself is stw_lanes_kernel.h, compiled for each set of instructions. */
#include "stw_lanes.h"

#if STW_WITH_AVX2
#include <string.h>

#include "stw_avx2.h"
#include "stw_dot.h"
#include "stw_fix.h"

/* Of the process, which has one kind of CPU; -1: not asked yet.  Whoever asks finds the same, in whatever order. */
static int chosen = -1;

static int best_up_to(int wanted)
{
    if (!__builtin_cpu_supports("avx2")) {
        return STW_PORTABLE;
    }
    if (wanted >= STW_AVX512_VNNI && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw")) {
        return STW_AVX512_VNNI;
    }
#if STW_HAS_AVX_VNNI
    if (wanted >= STW_AVX_VNNI && __builtin_cpu_supports("avxvnni")) {
        return STW_AVX_VNNI;
    }
#endif
    return wanted < STW_AVX2 ? wanted : STW_AVX2;
}

int stw_kernel_up_to(int wanted)
{
    int found = best_up_to(wanted);

    __atomic_store_n(&chosen, found, __ATOMIC_RELAXED);
    return found;
}

int stw_kernel(void)
{
    int found = __atomic_load_n(&chosen, __ATOMIC_RELAXED);

    return found < 0 ? stw_kernel_up_to(STW_AVX512_VNNI) : found;
}

int stw_lanes_can(const stw_layer *l)
{
    int plain = !stw_variant(l->extra) && stw_weight_bits(l) == 8 && stw_packing_of(l) == STW_PLAIN;

    return plain && (l->kind == STW_LSTM || l->kind == STW_GRU);
}

/* Words of two int16 values that hold n of them. */
static size_t words(size_t n)
{
    return (n + 1u) / 2u;
}

size_t stw_lanes_bytes(const stw_layer *l)
{
    size_t vectors = words(l->n_in) + 2 * words(l->n_out) + l->n_out;

    return vectors * STW_LANES * sizeof(int32_t) + 4 * (words(l->n_in) + words(l->n_out)) * sizeof(int32_t);
}

/* Rows of n weights of 8 bits as rows of words(n) words of two weights of 16 bits. */
AVX2 void widen(int32_t *to, const int8_t *w, size_t n_rows, size_t n)
{
    for (size_t r = 0; r < n_rows; r++, to += words(n), w += n) {
        int16_t *wide = (int16_t *)(void *)to;
        size_t   j    = 0;

        to[words(n) - 1] = 0;
        for (; j + 16 <= n; j += 16) {
            __m256i some = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(w + j)));

            _mm256_storeu_si256((__m256i *)(void *)(wide + j), some);
        }
        for (; j < n; j++) {
            wide[j] = w[j]; /* NOLINT(bugprone-signed-char-misuse,cert-str34-c): a weight, no character */
        }
    }
}

/* Between rows of n words, one for each of eight streams, and a table of n rows in which the streams stand side by
 * side, `stride` words from row to row. */
AVX2 void side_by_side(int32_t *table, size_t stride, const uint8_t *const rows[8], size_t n)
{
    __m256i a[8];
    size_t  j = 0;

    for (; j + 8 <= n; j += 8, table += 8 * stride) {
        for (int i = 0; i < 8; i++) {
            a[i] = _mm256_loadu_si256((const __m256i *)(const void *)(rows[i] + 4 * j));
        }
        avx2_turn(a);
        for (int i = 0; i < 8; i++) {
            _mm256_storeu_si256((__m256i *)(void *)(table + (size_t)i * stride), a[i]);
        }
    }
    for (; j < n; j++, table += stride) {
        for (int i = 0; i < 8; i++) {
            memcpy(table + i, rows[i] + 4 * j, sizeof *table);
        }
    }
}

AVX2 void apart(uint8_t *const rows[8], const int32_t *table, size_t stride, size_t n)
{
    __m256i a[8];
    size_t  j = 0;

    for (; j + 8 <= n; j += 8, table += 8 * stride) {
        for (int i = 0; i < 8; i++) {
            a[i] = _mm256_loadu_si256((const __m256i *)(const void *)(table + (size_t)i * stride));
        }
        avx2_turn(a);
        for (int i = 0; i < 8; i++) {
            _mm256_storeu_si256((__m256i *)(void *)(rows[i] + 4 * j), a[i]);
        }
    }
    for (; j < n; j++, table += stride) {
        for (int i = 0; i < 8; i++) {
            memcpy(rows[i] + 4 * j, table + i, sizeof *table);
        }
    }
}

/* The same for all lanes and for n int16 values in words of two; a last odd one has a word of its own. */
AVX2 void halves_side_by_side(int32_t *table, size_t width, const uint8_t *const *rows, size_t n)
{
    int32_t *last = table + n / 2 * width;

    for (size_t i = 0; i < width; i += 8) {
        side_by_side(table + i, width, rows + i, n / 2);
    }
    for (size_t i = 0; n & 1u && i < width; i++) {
        last[i] = 0;
        memcpy(last + i, rows[i] + 2 * (n - 1), 2);
    }
}

AVX2 void halves_apart(uint8_t *const *rows, const int32_t *table, size_t width, size_t n)
{
    const int32_t *last = table + n / 2 * width;

    for (size_t i = 0; i < width; i += 8) {
        apart(rows + i, table + i, width, n / 2);
    }
    for (size_t i = 0; n & 1u && i < width; i++) {
        memcpy(rows[i] + 2 * (n - 1), last + i, 2);
    }
}

#define JOIN(a, b)       a##b
#define NAME(name, kind) JOIN(name, kind)

#define ISA            avx2
#define TARGET         __attribute__((target("avx2")))
#define WIDTH          8
#define MM(op)         _mm256_##op
#define WIDE           __m256i
#define GATHER(k)      ((V)_mm256_i32gather_epi32((const int *)stw_sigmoid_table, (WIDE)(k), 2))
#define DOT(sum, x, w) ((sum) + (V)_mm256_madd_epi16((WIDE)(x), (WIDE)(w)))
#include "stw_lanes_kernel.h"

#if STW_HAS_AVX_VNNI
#define ISA            avx_vnni
#define TARGET         __attribute__((target("avx2,avxvnni")))
#define WIDTH          8
#define MM(op)         _mm256_##op
#define WIDE           __m256i
#define GATHER(k)      ((V)_mm256_i32gather_epi32((const int *)stw_sigmoid_table, (WIDE)(k), 2))
#define DOT(sum, x, w) ((V)_mm256_dpwssd_avx_epi32((WIDE)(sum), (WIDE)(x), (WIDE)(w)))
#include "stw_lanes_kernel.h"
#endif

#define ISA            avx512_vnni
#define TARGET         __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define WIDTH          16
#define MM(op)         _mm512_##op
#define WIDE           __m512i
#define GATHER(k)      ((V)_mm512_i32gather_epi32((WIDE)(k), stw_sigmoid_table, 2))
#define DOT(sum, x, w) ((V)_mm512_dpwssd_epi32((WIDE)(sum), (WIDE)(x), (WIDE)(w)))
#include "stw_lanes_kernel.h"

void stw_lanes_step(const stw_layer *l, const stw_block *block, void *work)
{
    switch (stw_kernel()) {
    case STW_AVX512_VNNI:
        step_avx512_vnni(l, block, work);
        break;
#if STW_HAS_AVX_VNNI
    case STW_AVX_VNNI:
        step_avx_vnni(l, block, work);
        break;
#endif
    default:
        step_avx2(l, block, work);
        break;
    }
}

#endif /* STW_WITH_AVX2 */
