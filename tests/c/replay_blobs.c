/* replay_blobs.c - models and codes in on stdin, outputs and digests on stdout, all raw.  Built by test_cpus.py.
 *
 * For each model: u32 blob_bytes, n_steps, odd, then the blob and int16 codes [n_steps][n_in].  The codes stand at an
 * odd halfword in memory when odd is 1.  Out come int32 y [n_steps][n_out] and the digest of the state. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stepwell.h"

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

int main(void)
{
    uint32_t head[3];

    while (fread(head, sizeof head, 1, stdin) == 1) {
        static stw_layer layers[MAX_LAYERS];
        stw_model        model;
        stw_stream       stream;
        void            *blob = room(head[0]), *ram;
        int16_t         *codes;
        int32_t         *y;
        uint32_t         digest;
        int              status;

        get(blob, head[0]);
        status = stw_blob_open(&model, layers, MAX_LAYERS, blob, head[0]);
        if (status != STW_OK) {
            fprintf(stderr, "%s", stw_strerror(status));
            return 4;
        }
        ram   = room(stw_ram_bytes(&model));
        codes = (int16_t *)room((model.n_in + head[2]) * sizeof *codes);
        y     = (int32_t *)room(model.n_out * sizeof *y);
        memset(y, 0, model.n_out * sizeof *y); /* held until the model gives its first output */
        if (stw_init(&stream, &model, ram, stw_ram_bytes(&model)) != STW_OK) {
            return 5;
        }
        for (uint32_t t = 0; t < head[1]; t++) {
            get(codes + head[2], model.n_in * sizeof *codes);
            if (stw_step(&stream, codes + head[2], y) < STW_OK) {
                return 6;
            }
            fwrite(y, sizeof *y, model.n_out, stdout);
        }
        digest = stw_digest(&stream);
        fwrite(&digest, sizeof digest, 1, stdout);
        free(y);
        free(codes);
        free(ram);
        free(blob);
    }
    return 0;
}
