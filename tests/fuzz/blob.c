/* blob.c - any bytes as a model.  The sums are made right, so that what is behind them gets tried; whatever opens must
 * run, be saved and be loaded. */
#include "fuzz.h"

enum { LAYERS = 16, RAM_MOST = 1 << 18 };

static void step_it(const stw_model *model)
{
    size_t     ram_bytes = stw_ram_bytes(model), snapshot_bytes = stw_snapshot_bytes(model);
    void      *ram = room(ram_bytes), *snapshot = room(snapshot_bytes);
    int16_t   *x   = (int16_t *)room(model->n_in * sizeof *x);
    int32_t   *raw = (int32_t *)room(model->n_in * sizeof *raw), *y = (int32_t *)room(model->n_out * sizeof *y);
    stw_stream s;
    stw_unit   unit;
    uint32_t   digest;

    MUST(stw_init(&s, model, ram, ram_bytes) == STW_OK);
    for (int t = 0; t < 4; t++) {
        memset(x, t & 1 ? 0x7F : 0x80, model->n_in * sizeof *x);
        memset(raw, t & 1 ? 0x7F : 0x80, model->n_in * sizeof *raw);
        MUST(stw_step(&s, x, y) >= STW_OK);
        (void)stw_step_raw(&s, raw, y);
    }
    for (size_t layer = 0; layer < model->n_layers; layer++) {
        if (model->layers[layer].src[0] == 0) { /* its input has the length of x */
            (void)stw_probe(&s, layer, x, 0, &unit);
        }
    }
    digest = stw_digest(&s);
    MUST(stw_save(&s, snapshot, snapshot_bytes) == STW_OK);
    stw_reset(&s);
    MUST(stw_load(&s, snapshot, snapshot_bytes) == STW_OK && stw_digest(&s) == digest);
    free(ram);
    free(snapshot);
    free(x);
    free(raw);
    free(y);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    stw_layer layers[LAYERS];
    stw_model model;
    uint8_t  *blob;

    if (n < BLOB_LEAST) {
        return 0;
    }
    blob = (uint8_t *)room(n);
    memcpy(blob, data, n);
    if (n & 1u) { /* some keep their sums, which are wrong */
        make_blob_right(blob, n);
    }
    if (stw_blob_open(&model, layers, LAYERS, blob, n) == STW_OK && stw_ram_bytes(&model) <= RAM_MOST) {
        step_it(&model);
    }
    free(blob);
    return 0;
}
