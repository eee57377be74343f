/* stw_pairs_dsp.h - a step for Armv7E-M and Armv8-M with the DSP extension; part of stw_pairs.c. */
#include <arm_acle.h>

/* One part of a unit's sums: the input's or the hidden states'.  The fields stand in the order in which they are
 * loaded. */
typedef struct dsp_part {
    int32_t        start[6]; /* of P (two words), twice, and Q, twice: -128 * sum of x */
    const int16_t *x;        /* 4-byte aligned */
    int32_t        turns;    /* 4 * (columns / 32) + columns % 4 */
    uint32_t       entry;    /* into the loop: the blocks of 4 columns beyond whole turns stand before its end */
} dsp_part;

typedef struct dsp_walk {
    dsp_part              x, h;
    const int8_t         *w, *r; /* of the next unit */
    const stw_pairs_rows *rows;
    int32_t               sums[4]; /* of the inputs, with the biases */
} dsp_walk;

/* The pre-activations of the next unit, Q4.11: i | f << 16 in the low word, g | o << 16 in the high one.
 *
 * Registers of the inner loop: r2:r3 and r4:r5 are P of (i, f) and (g, o), r6 and r7 their Q, r0 walks over x and r1
 * over the weights.  A turn is 8 blocks of 4 columns; the first turn is entered in its middle. What enters TANH is
 * limited to 15 bits instead of 16, so that twice its size stays within the long table. Stack: [0] the walk, [4] turns
 * left, [8] return address. */
uint64_t                                        stw_pairs_dsp_unit(dsp_walk *walk);
__attribute__((naked, noinline, used)) uint64_t stw_pairs_dsp_unit(dsp_walk *walk __attribute__((unused)))
{
    __asm__ volatile(".syntax unified                \n"
                     "push   {r0-r11, lr}            \n"
                     /* the input's sums */
                     "ldr    r1, [r0, #72]           \n"
                     "mov    r12, r0                 \n"
                     "bl     3f                      \n"
                     "ldr    r0, [sp]                \n"
                     "str    r1, [r0, #72]           \n"
                     "ldr    r8, [r0, #80]           \n"
                     "ldm    r8!, {r9-r12}           \n" /* biases */
                     "ldr    r1, [r8], #4            \n" /* kx of the four gates */
                     "str    r8, [r0, #80]           \n"
                     "tst    r1, #0x80808080         \n"
                     "bne    2f                      \n"
                     "uxtb   r3, r1                  \n" /* all kx >= 0: shift left */
                     "lsls   r2, r3                  \n"
                     "add    r9, r2                  \n"
                     "ubfx   r3, r1, #8, #8          \n"
                     "lsls   r6, r3                  \n"
                     "add    r10, r6                 \n"
                     "ubfx   r3, r1, #16, #8         \n"
                     "lsls   r4, r3                  \n"
                     "add    r11, r4                 \n"
                     "lsrs   r3, r1, #24             \n"
                     "lsls   r7, r3                  \n"
                     "add    r12, r7                 \n"
                     "1:                             \n"
                     "add    r3, r0, #84             \n"
                     "stm    r3, {r9-r12}            \n"
                     /* the hidden states' sums */
                     "ldr    r1, [r0, #76]           \n"
                     "add    r12, r0, #36            \n"
                     "bl     3f                      \n"
                     "ldr    r0, [sp]                \n"
                     "str    r1, [r0, #76]           \n"
                     "add    r1, r0, #84             \n"
                     "ldm    r1, {r9-r12}            \n"
                     "add    r9, r2                  \n"
                     "add    r10, r6                 \n"
                     "add    r11, r4                 \n"
                     "add    r12, r7                 \n"
                     /* RQ(acc, mult * 2^(32 - shift), 32), then SAT16 */
                     "ldr    r8, [r0, #80]           \n"
                     "ldm    r8!, {r2-r5}            \n"
                     "str    r8, [r0, #80]           \n"
                     "smmulr r9, r9, r2              \n"
                     "smmulr r10, r10, r3            \n"
                     "smmulr r11, r11, r4            \n"
                     "smmulr r12, r12, r5            \n"
                     "ssat   r9, #16, r9             \n"
                     "ssat   r10, #16, r10           \n"
                     "ssat   r11, #15, r11           \n" /* TANH is flat beyond 2^14, and below */
                     "ssat   r12, #16, r12           \n"
                     "pkhbt  r0, r9, r10, lsl #16    \n"
                     "pkhbt  r1, r11, r12, lsl #16   \n"
                     "add    sp, #16                 \n"
                     "pop    {r4-r11, pc}            \n"
                     /* some kx < 0: those shift right and round */
                     ".macro stw_join acc, sum       \n"
                     "cmp    r3, #0                  \n"
                     "itete  ge                      \n"
                     "lslge  \\sum, \\sum, r3        \n"
                     "mvnlt  r3, r3                  \n"
                     "addge  \\acc, \\acc, \\sum     \n"
                     "asrlt  \\sum, \\sum, r3        \n"
                     "itt    lt                      \n"
                     "addlt  \\sum, \\sum, #1        \n"
                     "addlt  \\acc, \\acc, \\sum, asr #1 \n"
                     ".endm                          \n"
                     "2:                             \n"
                     "sxtb   r3, r1                  \n"
                     "stw_join r9, r2                \n"
                     "sbfx   r3, r1, #8, #8          \n"
                     "stw_join r10, r6               \n"
                     "sbfx   r3, r1, #16, #8         \n"
                     "stw_join r11, r4               \n"
                     "asr    r3, r1, #24             \n"
                     "stw_join r12, r7               \n"
                     "b      1b                      \n"
                     ".purgem stw_join               \n"
                     /* r12: part, r1: weights -> r2, r6, r4, r7: sums of i, f, g, o; r1 behind the weights */
                     ".thumb_func                    \n"
                     ".globl stw_pairs_dsp_dot       \n"
                     "stw_pairs_dsp_dot:             \n"
                     "3:                             \n"
                     "str    lr, [sp, #8]            \n"
                     "ldm    r12!, {r2-r7}           \n"
                     "ldm    r12, {r0, r8, r9}       \n"
                     "str    r8, [sp, #4]            \n"
                     "mov    pc, r9                  \n"
                     ".balign 4                      \n"
                     "4:                             \n"
                     ".rept  8                       \n" /* a block: 14 instructions of 4 bytes */
                     "ldmia.w r1!, {r10-r12, lr}     \n"
                     "ldrd   r8, r9, [r0], #8        \n"
                     "smlald r2, r3, r10, r8         \n"
                     "uxtb16 r10, r10                \n"
                     "smlad  r6, r10, r8, r6         \n"
                     "smlald r4, r5, r11, r8         \n"
                     "uxtb16 r11, r11                \n"
                     "smlad  r7, r11, r8, r7         \n"
                     "smlald r2, r3, r12, r9         \n"
                     "uxtb16 r12, r12                \n"
                     "smlad  r6, r12, r9, r6         \n"
                     "smlald r4, r5, lr, r9          \n"
                     "uxtb16 lr, lr                  \n"
                     "smlad  r7, lr, r9, r7          \n"
                     ".endr                          \n"
                     ".globl stw_pairs_dsp_end       \n"
                     "stw_pairs_dsp_end:             \n"
                     "ldr    r8, [sp, #4]            \n"
                     "subs   r8, #4                  \n"
                     "str    r8, [sp, #4]            \n"
                     "bpl    4b                      \n"
                     "lsls   r8, r8, #30             \n"
                     "bne    7f                      \n"
                     "6:                             \n"
                     "subs   r2, r2, r6              \n"
                     "sbc    r3, r3, r6, asr #31     \n"
                     "lsrs   r2, r2, #8              \n"
                     "orr    r2, r2, r3, lsl #24     \n"
                     "subs   r4, r4, r7              \n"
                     "sbc    r5, r5, r7, asr #31     \n"
                     "lsrs   r4, r4, #8              \n"
                     "orr    r4, r4, r5, lsl #24     \n"
                     "ldr    pc, [sp, #8]            \n"
                     "7:                             \n" /* one to three columns more */
                     "bpl    8f                      \n"
                     "ldrd   r10, r11, [r1], #8      \n"
                     "ldr    r9, [r0], #4            \n"
                     "smlald r2, r3, r10, r9         \n"
                     "uxtb16 r10, r10                \n"
                     "smlad  r6, r10, r9, r6         \n"
                     "smlald r4, r5, r11, r9         \n"
                     "uxtb16 r11, r11                \n"
                     "smlad  r7, r11, r9, r7         \n"
                     "8:                             \n"
                     "lsls   r8, r8, #1              \n"
                     "bpl    6b                      \n"
                     "ldr    r10, [r1], #4           \n"
                     "ldrsh  r9, [r0]                \n"
                     "smlalbb r2, r3, r10, r9        \n"
                     "uxtb   r11, r10                \n"
                     "smlabb r6, r11, r9, r6         \n"
                     "smlaltb r4, r5, r10, r9        \n"
                     "ubfx   r11, r10, #16, #8       \n"
                     "smlabb r7, r11, r9, r7         \n"
                     "b      6b                      \n");
}

extern const uint8_t stw_pairs_dsp_end[]; /* the loop's end, in the code above */
enum { DSP_BLOCK_BYTES = 56 };

static void part_of(dsp_part *part, const int16_t *x, size_t n)
{
    int64_t start;
    int32_t sum = 0; /* of up to 65535 values: below 2^31 */

    for (size_t j = 0; j + 1 < n; j += 2) {
        int16x2_t two;

        __builtin_memcpy(&two, x + j, sizeof two);
        sum = __smlad(two, 0x00010001, sum);
    }
    sum += n & 1u ? x[n - 1] : 0;
    start          = -128 * (int64_t)sum;
    part->start[0] = part->start[2] = part->start[4] = part->start[5] = (int32_t)(uint32_t)start;
    part->start[1] = part->start[3] = (int32_t)(start >> 32);
    part->x                         = x;
    part->turns                     = (int32_t)((n >> 5) << 2 | (n & 3u));
    part->entry                     = (uint32_t)(uintptr_t)stw_pairs_dsp_end - DSP_BLOCK_BYTES * ((n >> 2) & 7u);
}

/* Two halves in one instruction, which compilers do not find: the low half of one, the other shifted into place. */
static inline uint32_t pack_low_lsl16(uint32_t low, uint32_t high)
{
    uint32_t packed;

    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(packed) : "r"(low), "r"(high));
    return packed;
}

static inline uint32_t pack_low_lsl9(int32_t low, int32_t high)
{
    uint32_t packed;

    __asm__("pkhbt %0, %1, %2, lsl #9" : "=r"(packed) : "r"(low), "r"(high));
    return packed;
}

static inline uint32_t pack_high_asr16(uint32_t high, uint32_t low)
{
    uint32_t packed;

    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(packed) : "r"(high), "r"(low));
    return packed;
}

/* Two table entries, k in the low half. */
static inline int16x2_t entries(uint32_t k)
{
    int16x2_t pair;

    __builtin_memcpy(&pair, stw_sigmoid_table + k, sizeof pair);
    return pair;
}

/* |z| of both halves, 0 .. 32768: the long table needs no limit. */
static inline uint16x2_t magnitudes(int16x2_t z)
{
    int16x2_t negative = __ssub16(0, z); /* sets GE where z <= 0 */

    return __sel((uint16x2_t)negative, (uint16x2_t)z);
}

/* y with the sign of z, both halves. */
static inline int16x2_t signs_of(int16x2_t y, int16x2_t z)
{
    int16x2_t negative = __ssub16(0, y);

    (void)__ssub16(0, z);
    return (int16x2_t)__sel((uint16x2_t)negative, (uint16x2_t)y);
}

/* Two values of the table at a: Y(a) - 2^21 + round of each half. */
static inline void interpolate(uint16x2_t a, int32_t round_low, int32_t round_high, int32_t *low, int32_t *high)
{
    uint32_t f = a & 0x003F003Fu, rest = 0x00400040u - f; /* weights of the entry above and of the one below */

    *low  = __smlad(entries(a >> 6 & 0x3FFu), (int16x2_t)pack_low_lsl16(rest, f), round_low);
    *high = __smlad(entries(a >> 22), (int16x2_t)pack_high_asr16(f, rest), round_high);
}

/* SIG of both halves. */
static inline int16x2_t two_sigmoids(int16x2_t z)
{
    int32_t low, high;

    interpolate(magnitudes(z), 64, 64, &low, &high);
    return __qadd16(signs_of((int16x2_t)pack_low_lsl9(low >> 7, high), z), 0x40004000);
}

/* TANH of the low half, which is within +-2^14, SIG of the high one. */
static inline int16x2_t tanh_and_sigmoid(int16x2_t z)
{
    uint16x2_t a = magnitudes(z);
    int32_t    low, high;

    interpolate(a + (a & 0xFFFFu), 32, 64, &low, &high); /* TANH reads at 2 |z| */
    return __qadd16(signs_of((int16x2_t)pack_low_lsl9(low >> 6, high), z), 0x40000000);
}

/* TANH of z of 15 bits, which are enough, for TANH is flat beyond 2^14, and below. */
static inline int32_t tanh_of(int32_t z)
{
    int32_t  sign = z >> 31;
    uint32_t a = (uint32_t)((z ^ sign) - sign) << 1, f = a & 63u;
    int32_t  y = __smlad(entries(a >> 6), (int16x2_t)((f << 16) - f + 64u), 32) >> 6;

    return (y ^ sign) - sign;
}

/* TANH(SAT16(RSH(c, 11))) */
static inline int32_t tanh_of_cell(int32_t c)
{
    int32_t z;

    __asm__("ssat %0, #15, %1, asr #1" : "=r"(z) : "r"((c >> 10) + 1));
    return tanh_of(z);
}

static inline int32_t new_cell(int32_t c, int16x2_t i_f, int16x2_t g_o)
{
    int64_t kept = (int64_t)c * (i_f >> 16) + 16384;

    return __qadd((int32_t)(kept >> 15), __smlabb(i_f, g_o, 128) >> 8);
}

/* RSH(o * a, 15), or with hidden states of 8 bits LIM(RSH(o * a, 23)). */
static inline int16_t new_hidden(int32_t o, int32_t a, int narrow)
{
    int32_t y = o * a;

    if (!narrow) {
        return (int16_t)((y + 16384) >> 15);
    }
    y = y > -127 * 8388608 ? y : -127 * 8388608;
    __asm__("ssat %0, #8, %1, asr #23" : "=r"(y) : "r"(y + 4194304));
    return (int16_t)y;
}

static inline void dsp_units(dsp_walk *walk, int32_t *c, int16_t *out, const int32_t *end, int narrow)
{
    for (; c < end; c++, out++) {
        uint64_t  z   = stw_pairs_dsp_unit(walk);
        int16x2_t i_f = two_sigmoids((int16x2_t)(uint32_t)z), g_o = tanh_and_sigmoid((int16x2_t)(z >> 32));

        *c   = new_cell(*c, i_f, g_o);
        *out = new_hidden(g_o >> 16, tanh_of_cell(*c), narrow);
    }
}

static void dsp_lstm_step(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t *c, int16_t *out)
{
    dsp_walk walk;

    part_of(&walk.x, x, l->n_in);
    part_of(&walk.h, h, l->n_out);
    walk.w    = (const int8_t *)l->w;
    walk.r    = l->r;
    walk.rows = rows_of(l, 0);
    if (l->p[2] == 8) {
        dsp_units(&walk, c, out, c + l->n_out, 1);
    } else {
        dsp_units(&walk, c, out, c + l->n_out, 0);
    }
}

/* ---- GRU ---- */

#if STW_WITH_GRU
/* The sums of a quad over one part's columns, in the order of the places 0, 2, 1, 3; returns what follows its weights.
 */
const int8_t *stw_pairs_dsp_sums(const dsp_part *part, const int8_t *w, int32_t sums[4]);
__attribute__((naked, noinline, used)) const int8_t *stw_pairs_dsp_sums(const dsp_part *part __attribute__((unused)),
                                                                        const int8_t   *w __attribute__((unused)),
                                                                        int32_t         sums[4] __attribute__((unused)))
{
    __asm__ volatile(".syntax unified                \n"
                     "push   {r2, r4-r11, lr}        \n"
                     "sub    sp, #12                 \n" /* what the sums use of the stack */
                     "mov    r12, r0                 \n"
                     "bl     stw_pairs_dsp_dot       \n"
                     "mov    r0, r1                  \n"
                     "ldr    r1, [sp, #12]           \n"
                     "stm    r1, {r2, r4, r6, r7}    \n"
                     "add    sp, #16                 \n"
                     "pop    {r4-r11, pc}            \n");
}

/* Sums of four units: r, r, z, z of the first two, of the others, and n of the units 0, 2, 1, 3. */
typedef struct gru_sums {
    int32_t x[12], h[12];
} gru_sums;

/* x limited to a number of bits, a constant */
static inline __attribute__((always_inline)) int32_t saturated(int32_t x, int bits)
{
    int32_t y;

    __asm__("ssat %0, %2, %1" : "=r"(y) : "r"(x), "I"(bits));
    return y;
}

static inline int32_t requantise16(int32_t acc, int32_t mult)
{
    return saturated((int32_t)(((int64_t)acc * mult + ((int64_t)1 << 31)) >> 32), 16);
}

/* Unit u of the four: rz is where its reset gate stands in the sums, its update gate stands two behind; n likewise. */
static inline int16_t gru_unit_of(const gru_sums *sums, const stw_pairs_rows *row, int rz, int n, int32_t *c,
                                  int narrow)
{
    int32_t   r  = stw_join(sums->x[rz], row->kx[0]) + sums->h[rz] + row->bias[0];
    int32_t   z  = stw_join(sums->x[rz + 2], row->kx[1]) + sums->h[rz + 2] + row->bias[1];
    int32_t   nx = requantise16(sums->x[n] + row->bias[2], row->mult[2]);
    int32_t   nh = requantise16(sums->h[n] + row->bias[3], row->mult[3]), y;
    uint32_t  both;
    int16x2_t r_z;

    both = pack_low_lsl16((uint32_t)requantise16(r, row->mult[0]), (uint32_t)requantise16(z, row->mult[1]));
    r_z  = two_sigmoids((int16x2_t)both);
    y    = tanh_of(saturated(nx + (((int16_t)r_z * nh + 16384) >> 15), 15));
    y    = saturated(32768 - (r_z >> 16), 16) * y;
    *c   = __qadd((int32_t)(((int64_t)*c * (r_z >> 16) + 16384) >> 15), (y + 128) >> 8);
    if (narrow) {
        y = saturated(((*c >> 14) + 1) >> 1, 8);
        return (int16_t)(y < -127 ? -127 : y);
    }
    y = saturated(((*c >> 6) + 1) >> 1, 16);
    return (int16_t)(y < -32767 ? -32767 : y);
}

static inline void dsp_gru_units(const stw_layer *l, const dsp_part *x, const dsp_part *h, int32_t *c, int16_t *out,
                                 int narrow)
{
    const int8_t         *w = (const int8_t *)l->w, *r = l->r;
    const stw_pairs_rows *row = rows_of(l, 0), *end = row + l->n_out;
    gru_sums              sums;

    for (; row < end; row += 4, c += 4, out += 4) {
        for (int quad = 0; quad < 12; quad += 4) {
            w = stw_pairs_dsp_sums(x, w, sums.x + quad);
            r = stw_pairs_dsp_sums(h, r, sums.h + quad);
        }
        out[0] = gru_unit_of(&sums, row, 0, 8, c, narrow);
        out[1] = gru_unit_of(&sums, row + 1, 1, 10, c + 1, narrow);
        out[2] = gru_unit_of(&sums, row + 2, 4, 9, c + 2, narrow);
        out[3] = gru_unit_of(&sums, row + 3, 5, 11, c + 3, narrow);
    }
}

static void dsp_gru_step(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t *c, int16_t *out)
{
    dsp_part of_x, of_h;

    part_of(&of_x, x, l->n_in);
    part_of(&of_h, h, l->n_out);
    dsp_gru_units(l, &of_x, &of_h, c, out, l->p[2] == 8);
}
#endif

static void dsp_step(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t *c, int16_t *out)
{
#if STW_WITH_GRU
    if (l->kind == STW_GRU) {
        dsp_gru_step(l, x, h, c, out);
        return;
    }
#endif
    dsp_lstm_step(l, x, h, c, out);
}
