/* replay_blobs.c - models and codes in on stdin, outputs and snapshots on stdout, little endian.  Built by
 * test_cpus.py.
 *
 * For each model: u32 blob_bytes, n_steps, odd, then the blob and int16 codes [n_steps][n_in].  The codes stand at an
 * odd halfword in memory when odd is 1.  Out come int32 y [n_steps][n_out] and the CRC-32 of the snapshot.
 *
 * All weights stand in memory of their exact size: AddressSanitizer sees a kernel that reads behind them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stepwell.h"
#include "stw_bytes.h"
#include "stw_dot.h"
#include "stw_lanes.h"
#include "stw_layers.h"

#define MAX_LAYERS 64

static void *room(size_t n_bytes)
{
    void *p = malloc(n_bytes ? n_bytes : 1);

    if (!p) {
        exit(2);
    }
    return p;
}

static void get(void *to, size_t n_bytes)
{
    if (n_bytes && fread(to, n_bytes, 1, stdin) != 1) {
        exit(3);
    }
}

#if STW_WITH_AVX2
/* 19 streams side by side, each some steps further on in the codes than the one before it, give what each gives alone;
 * the first is at the beginning and ends with the digest given. */
static void check_many(const stw_model *m, const int16_t *codes, uint32_t n_steps, uint32_t digest)
{
    enum { N = 19 };
    stw_stream streams[N], alone[N];
    void      *work = room(stw_many_bytes(m)), *ram = room(2 * N * stw_ram_bytes(m));
    int16_t   *x   = (int16_t *)room(N * m->n_in * sizeof *x);
    int32_t   *out = (int32_t *)room(N * m->n_out * sizeof *out), *one = (int32_t *)room(m->n_out * sizeof *one);

    for (size_t i = 0; i < N; i++) {
        stw_init(streams + i, m, (uint8_t *)ram + 2 * i * stw_ram_bytes(m), stw_ram_bytes(m));
        stw_init(alone + i, m, (uint8_t *)ram + (2 * i + 1) * stw_ram_bytes(m), stw_ram_bytes(m));
    }
    for (uint32_t t = 0; t < n_steps; t++) {
        for (uint32_t i = 0; i < N; i++) {
            memcpy(x + i * m->n_in, codes + (t + 7 * i) % n_steps * m->n_in, m->n_in * sizeof *x);
        }
        stw_many_step(streams, N, x, out, work);
        for (size_t i = 0; i < N; i++) {
            if (stw_step(alone + i, x + i * m->n_in, one) == STW_OK &&
                memcmp(out + i * m->n_out, one, m->n_out * sizeof *one) != 0) {
                exit(7);
            }
        }
    }
    for (size_t i = 0; i < N; i++) {
        if (stw_digest(streams + i) != (i ? stw_digest(alone + i) : digest)) {
            exit(8);
        }
    }
    free(work);
    free(ram);
    free(x);
    free(out);
    free(one);
}

static void check_kernels(const stw_model *m, const int16_t *codes, uint32_t n_steps, uint32_t digest)
{
    for (int kernel = STW_AVX2; stw_many_can(m) && kernel <= STW_AVX512_VNNI; kernel++) {
        if (stw_kernel_up_to(kernel) == kernel) {
            check_many(m, codes, n_steps, digest);
        }
    }
}
#else
#define check_kernels(m, codes, n_steps, digest) ((void)0)
#endif

static void put(uint32_t v)
{
    uint8_t bytes[4];

    stw_put32(bytes, v);
    fwrite(bytes, sizeof bytes, 1, stdout);
}

static const void *alone(const void *array, size_t n_bytes)
{
    return n_bytes ? memcpy(room(n_bytes), array, n_bytes) : array;
}

/* Weights of recurrent and dense layers leave the blob, where other arrays follow them. */
static void move_weights(stw_layer *l)
{
    size_t rows = stw_n_gates(l) * l->p[0];

    if (stw_is_recurrent(l)) {
        l->w = alone(l->w, rows * stw_row_bytes(stw_weight_bits(l), l->n_in));
        l->r = (const int8_t *)alone(l->r, rows * stw_row_bytes(stw_weight_bits(l), l->n_out));
    } else if (l->kind == STW_DENSE) {
        l->w = alone(l->w, sizeof(int16_t) * l->n_out * l->p[2]);
    }
}

static void free_weights(stw_layer *l)
{
    if (stw_is_recurrent(l) || l->kind == STW_DENSE) {
        free((void *)(uintptr_t)l->w);
        free((void *)(uintptr_t)l->r);
    }
}

/* CRC-32 of the stream's snapshot, after the stream has taken it back. */
static uint32_t snapshot_crc(stw_stream *s)
{
    size_t   n      = stw_snapshot_bytes(s->model);
    void    *buffer = room(n);
    uint32_t before = stw_digest(s), crc;

    if (stw_save(s, buffer, n) != STW_OK) {
        exit(9);
    }
    stw_reset(s);
    if (stw_load(s, buffer, n) != STW_OK || stw_digest(s) != before) {
        exit(10);
    }
    crc = stw_crc32(0, buffer, n);
    free(buffer);
    return crc;
}

int main(void)
{
    uint32_t head[3];
    uint8_t  bytes[12];

    while (fread(bytes, sizeof bytes, 1, stdin) == 1) {
        static stw_layer layers[MAX_LAYERS];
        stw_model        model;
        stw_stream       stream;
        void            *blob, *ram;
        int16_t         *codes;
        int32_t         *y;
        int              status;

        for (int k = 0; k < 3; k++) {
            head[k] = stw_get32(bytes + 4 * k);
        }
        blob = room(head[0]);
        get(blob, head[0]);
        status = stw_blob_to_native(blob, head[0]);
        if (status == STW_OK) {
            status = stw_blob_open(&model, layers, MAX_LAYERS, blob, head[0]);
        }
        if (status != STW_OK) {
            fprintf(stderr, "%s", stw_strerror(status));
            return 4;
        }
        for (size_t i = 0; i < model.n_layers; i++) {
            move_weights(layers + i);
        }
        ram   = room(stw_ram_bytes(&model));
        codes = (int16_t *)room((head[1] * model.n_in + head[2]) * sizeof *codes);
        y     = (int32_t *)room((head[1] + 1) * model.n_out * sizeof *y);
        memset(y, 0, model.n_out * sizeof *y); /* held until the model gives its first output */
        get(codes + head[2], head[1] * model.n_in * sizeof *codes);
        for (size_t k = 0; k < head[1] * model.n_in; k++) {
            codes[head[2] + k] = (int16_t)stw_get16((const uint8_t *)(codes + head[2] + k));
        }
        if (stw_init(&stream, &model, ram, stw_ram_bytes(&model)) != STW_OK) {
            return 5;
        }
        for (uint32_t t = 0; t < head[1]; t++) {
            int32_t *now = y + t * model.n_out;

            if (stw_step(&stream, codes + head[2] + t * model.n_in, now) < STW_OK) {
                return 6;
            }
            memcpy(now + model.n_out, now, model.n_out * sizeof *now);
        }
        for (size_t k = 0; k < head[1] * model.n_out; k++) {
            put((uint32_t)y[k]);
        }
        check_kernels(&model, codes + head[2], head[1], stw_digest(&stream));
        put(snapshot_crc(&stream));
        for (size_t i = 0; i < model.n_layers; i++) {
            free_weights(layers + i);
        }
        free(y);
        free(codes);
        free(ram);
        free(blob);
    }
    return 0;
}
