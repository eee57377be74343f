/* stw_many.h - one step of up to STW_LANES streams of a model, layer by layer, so that stw_lanes.c takes the weights of
 * a layer once for all of them; part of stepwell.c. */

static void *aligned(void *p)
{
    return (uint8_t *)p + ((64u - ((uintptr_t)p & 63u)) & 63u);
}

int stw_many_can(const stw_model *m)
{
    int can = 0;

    for (size_t k = 0; k < m->n_layers; k++) {
        can |= stw_lanes_can(m->layers + k);
    }
    return can && m->mode == STW_CARRY && !stw_has_clock(m);
}

size_t stw_many_bytes(const stw_model *m)
{
    size_t most = 0;

    for (size_t k = 0; k < m->n_layers; k++) {
        const stw_layer *l    = m->layers + k;
        size_t           used = stw_lanes_can(l) ? stw_lanes_bytes(l) : 0;

        most = used > most ? used : most;
    }
    return most + 64;
}

/* A layer of all streams; c and h are its states.  The last layer gives y [n][n_out]. */
static void lanes_layer(const walk *w, const stw_layer *l, int32_t *const *c, int16_t *const *h, size_t n, int32_t *y,
                        void *work)
{
    stw_block block;

    block.n = n;
    for (size_t i = 0; i < n; i++) {
        block.x[i]   = source_at(w + i, l->src[0], 0);
        block.h[i]   = h[i];
        block.c[i]   = c[i];
        block.out[i] = place_at(w + i, l, 0);
    }
    stw_lanes_step(l, &block, work);
    for (size_t i = 0; i < n; i++) {
        memcpy(h[i], block.out[i], l->n_out * sizeof *h[i]);
        for (size_t r = 0; y && r < l->n_out; r++) {
            y[i * l->n_out + r] = h[i][r];
        }
    }
}

void stw_many_step(const stw_stream *streams, size_t n, const int16_t *x, int32_t *y, void *work)
{
    const stw_model *m    = streams->model;
    const stw_layer *last = m->layers + m->n_layers - 1;
    walk             w[STW_LANES];
    int32_t         *c[STW_LANES];
    int16_t         *h[STW_LANES];

    for (size_t i = 0; i < n; i++) {
        stw_copy state = stw_first_copy(streams + i);
        walk     start = {m, x + i * m->n_in, streams[i].scratch, state.h, 0, 1, 1};

        w[i] = start;
        c[i] = state.c;
        h[i] = state.h;
    }
    for (const stw_layer *l = m->layers; l <= last; l++) {
        int lanes = stw_lanes_can(l);

        if (lanes) {
            lanes_layer(w, l, c, h, n, l == last ? y : 0, aligned(work));
        }
        for (size_t i = 0; i < n; i++) {
            if (!lanes) {
                run_layer(w + i, l, c[i], h[i], l == last ? y + i * m->n_out : 0);
            }
            c[i] += stw_n_cells(l);
            h[i] += stw_even(stw_n_hidden(l));
        }
    }
}
