/* stw_lanes_kernel.h - the step of stw_lanes.h for one set of instructions; included by stw_lanes.c with these set:
 *   ISA its name, TARGET the compiler's attribute, WIDTH the int32 lanes of a vector, MM(op) and WIDE the intrinsics'
 *   prefix and type, DOT(sum, x, w) sum + the products of two int16 halves in each lane, GATHER(k) entries k of the
 *   sigmoid's table. */

#define V    NAME(lanes_, ISA)
#define F(f) NAME(NAME(f, _), ISA)
#define FN   static inline TARGET __attribute__((always_inline))

typedef int32_t V __attribute__((vector_size(4 * WIDTH)));

/* Two vectors of streams go side by side: each weight that is loaded serves both. */
typedef struct F(numbers) {
    V x[2];
} F(numbers);

/* a * b for int16 a >= 0 and int16 b */
FN V F(product)(V a, V b)
{
    return (V)MM(madd_epi16)((WIDE)a, (WIDE)b);
}

FN V F(all)(int32_t x)
{
    return (V)MM(set1_epi32)(x);
}

FN V F(min)(V a, V b)
{
    return (V)MM(min_epi32)((WIDE)a, (WIDE)b);
}

FN V F(max)(V a, V b)
{
    return (V)MM(max_epi32)((WIDE)a, (WIDE)b);
}

/* RSH(x, n), n >= 1 */
FN V F(rsh)(V x, int n)
{
    return ((x >> (n - 1)) + 1) >> 1;
}

FN V F(sat16)(V x)
{
    return F(max)(F(min)(x, F(all)(32767)), F(all)(-32768));
}

/* RQ(a, mult, shift) for the records of one row */
FN V F(rq)(V a, const stw_row *row)
{
    V mult = F(all)(row->mult);

    if (row->shift <= 16) { /* rare: rows of very large weights */
        for (int i = 0; i < WIDTH; i++) {
            a[i] = stw_rq(a[i], row->mult, row->shift);
        }
        return a;
    }
    /* floor(a * mult / 2^16): the high half of a as it is, of the low half what it carries */
    a = (V)MM(madd_epi16)((WIDE)a, (WIDE)(mult << 16)) + (V)MM(mulhi_epu16)((WIDE)a, (WIDE)mult);
    return F(rsh)(a, row->shift - 16);
}

FN V F(join)(V ax, int kx)
{
    return kx >= 0 ? ax << kx : F(rsh)(ax, -kx);
}

/* Y(a) - 2^21: two neighbours of the table in each lane, weighted by 64 - f and f. */
FN V F(table)(V a)
{
    V f = a & 63, w = (f << 16) - f + 64, k = a >> 6;
    k = GATHER(k);
    return (V)MM(madd_epi16)((WIDE)k, (WIDE)w);
}

FN V F(magnitude)(V z, int32_t limit)
{
    return (V)MM(min_epu32)(MM(abs_epi32)((WIDE)z), MM(set1_epi32)(limit));
}

FN V F(with_sign)(V y, V z)
{
    return (y ^ (z >> 31)) - (z >> 31);
}

FN V F(sigmoid)(V z)
{
    V y = (F(table)(F(magnitude)(z, 22527)) + 64) >> 7;

    return F(min)(F(with_sign)(y, z) + 16384, F(all)(32767));
}

FN V F(tanh)(V z)
{
    V y = (F(table)(F(magnitude)(z, 11263) << 1) + 32) >> 6;

    return F(with_sign)(y, z);
}

/* RSH(g * c, 15), g >= 0 */
FN V F(gate_mul)(V c, V g)
{
    return (c >> 16) * g * 2 + (((c & 0xFFFF) * g + (1 << 14)) >> 15);
}

FN V F(sat_add)(V a, V b)
{
    V sum  = (V)MM(add_epi32)((WIDE)a, (WIDE)b);
    V over = ((a ^ sum) & (b ^ sum)) >> 31;

    return (sum & ~over) | (((a >> 31) ^ INT32_MAX) & over);
}

/* sums[r] = row r of the weights times x, for n words of two columns */
FN void F(sums)(F(numbers) * sums, int n_rows, const int32_t *w, const F(numbers) * x, size_t n)
{
    F(numbers) sum[4] = {{{{0}}}};

    for (size_t j = 0; j < n; j++) {
        for (int r = 0; r < n_rows; r++) {
            V wide = F(all)(w[(size_t)r * n + j]);

            sum[r].x[0] = DOT(sum[r].x[0], x[j].x[0], wide);
            sum[r].x[1] = DOT(sum[r].x[1], x[j].x[1], wide);
        }
    }
    for (int r = 0; r < n_rows; r++) {
        sums[r] = sum[r];
    }
}

FN V F(hidden)(V y, int shift, const stw_layer *l)
{
    int narrow = l->p[2] == 8;
    V   h = F(rsh)(y, shift + (narrow ? 8 : 0)), limit = F(all)(narrow ? 127 : 32767);

    return F(max)(F(min)(h, limit), -limit);
}

/* Pre-activations of a unit from its sums: of a GRU the candidate's two, too, before they are joined. */
FN void F(pre)(F(numbers) z[4], const stw_row *row, int is_lstm, const F(numbers) * ax, const F(numbers) * ah)
{
    for (int k = 0; k < 2; k++) {
        z[0].x[k] = F(rq)(F(join)(ax[0].x[k], row[0].kx) + ah[0].x[k] + row[0].bias, row);
        z[1].x[k] = F(rq)(F(join)(ax[1].x[k], row[1].kx) + ah[1].x[k] + row[1].bias, row + 1);
        z[2].x[k] = F(rq)((is_lstm ? F(join)(ax[2].x[k], row[2].kx) + ah[2].x[k] : ax[2].x[k]) + row[2].bias, row + 2);
        z[3].x[k] = F(rq)((is_lstm ? F(join)(ax[3].x[k], row[3].kx) + ah[3].x[k] : ah[2].x[k]) + row[3].bias, row + 3);
    }
}

/* A unit of an LSTM: new c in place, gives the new h. */
FN V F(lstm_unit)(const stw_layer *l, const F(numbers) z[4], int k, V *c)
{
    V i = F(sigmoid)(z[0].x[k]), f = F(sigmoid)(z[1].x[k]), g = F(tanh)(z[2].x[k]), o = F(sigmoid)(z[3].x[k]);

    *c = F(sat_add)(F(gate_mul)(*c, f), F(rsh)(F(product)(i, g), 8));
    return F(hidden)(F(product)(o, F(tanh)(F(rsh)(*c, 11))), 15, l);
}

/* The same of a GRU whose reset comes after the product. */
FN V F(gru_unit)(const stw_layer *l, const F(numbers) z[4], int k, V *c)
{
    V reset = F(sigmoid)(z[0].x[k]), keep = F(sigmoid)(z[1].x[k]);
    V n = F(sat16)(z[2].x[k]) + F(rsh)(F(product)(reset, F(sat16)(z[3].x[k])), 15);

    *c = F(sat_add)(F(gate_mul)(*c, keep),
                    F(rsh)(F(product)(F(min)(32768 - keep, F(all)(32767)), F(tanh)(F(sat16)(n))), 8));
    return F(hidden)(*c, 7, l);
}

/* All units: c in place, the new hidden states to `out`, two units in a word.  Sums of several units, then their
 * activations: those wait for the table, and do so for several at once. */
FN void F(units)(const stw_layer *l, int    is_lstm, const F(numbers) * x, const F(numbers) * h, F(numbers) * c,
                 F(numbers) * out, int32_t *wide)
{
    enum { UNITS = 4 };
    size_t n_rows = is_lstm ? 4 : 3, n_x = words(l->n_in), n_h = words(l->n_out);
    F(numbers) ax[4], ah[4], z[UNITS][4];

    for (size_t from = 0; from < l->n_out; from += UNITS) {
        size_t n = l->n_out - from < UNITS ? l->n_out - from : UNITS;

        for (size_t u = from; u < from + n; u++) {
            widen(wide, (const int8_t *)l->w + u * n_rows * l->n_in, n_rows, l->n_in);
            F(sums)(ax, (int)n_rows, wide, x, n_x);
            widen(wide, l->r + u * n_rows * l->n_out, n_rows, l->n_out);
            F(sums)(ah, (int)n_rows, wide, h, n_h);
            F(pre)(z[u - from], l->rows + 4 * u, is_lstm, ax, ah);
        }
        for (size_t u = from; u < from + n; u++) {
            for (int k = 0; k < 2; k++) {
                V *both = &out[u / 2].x[k], *cell = &c[u].x[k];
                V  y = is_lstm ? F(lstm_unit)(l, z[u - from], k, cell) : F(gru_unit)(l, z[u - from], k, cell);

                *both = u & 1u ? *both | y << 16 : y & 0xFFFF;
            }
        }
    }
}

static TARGET __attribute__((noinline)) void F(lstm)(const stw_layer *l, const F(numbers) * x, const F(numbers) * h,
                                                     F(numbers) * c, F(numbers) * out, int32_t *wide)
{
    F(units)(l, 1, x, h, c, out, wide);
}

static TARGET __attribute__((noinline)) void F(gru)(const stw_layer *l, const F(numbers) * x, const F(numbers) * h,
                                                    F(numbers) * c, F(numbers) * out, int32_t *wide)
{
    F(units)(l, 0, x, h, c, out, wide);
}

static TARGET void F(step)(const stw_layer *l, const stw_block *block, void *work)
{
    enum { N = 2 * WIDTH };
    F(numbers) *x = (F(numbers) *)work, *h = x + words(l->n_in), *out = h + words(l->n_out), *c = out + words(l->n_out);
    const uint8_t *x_of[N], *h_of[N];
    uint8_t       *c_of[N], *out_of[N];

    for (size_t first = 0; first < block->n; first += N) {
        for (size_t lane = 0; lane < N; lane++) {
            size_t i = first + lane < block->n ? first + lane : first; /* lanes to spare repeat a stream */

            x_of[lane]   = (const uint8_t *)block->x[i];
            h_of[lane]   = (const uint8_t *)block->h[i];
            c_of[lane]   = (uint8_t *)block->c[i];
            out_of[lane] = (uint8_t *)block->out[i];
        }
        halves_side_by_side((int32_t *)(void *)x, N, x_of, l->n_in);
        halves_side_by_side((int32_t *)(void *)h, N, h_of, l->n_out);
        for (size_t lane = 0; lane < N; lane += 8) {
            side_by_side((int32_t *)(void *)c + lane, N, (const uint8_t *const *)c_of + lane, l->n_out);
        }
        (l->kind == STW_LSTM ? F(lstm) : F(gru))(l, x, h, c, out, (int32_t *)(void *)(c + l->n_out));
        halves_apart(out_of, (const int32_t *)(const void *)out, N, l->n_out);
        for (size_t lane = 0; lane < N; lane += 8) {
            apart(c_of + lane, (const int32_t *)(const void *)c + lane, N, l->n_out);
        }
    }
}

#undef V
#undef F
#undef FN
#undef ISA
#undef TARGET
#undef WIDTH
#undef MM
#undef WIDE
#undef DOT
#undef GATHER
