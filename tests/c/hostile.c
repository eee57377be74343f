/* hostile.c - opens every blob of a pack and steps what is accepted; a sanitiser decides.  Built by test_native.py and
 * test_cpus.py.  stdin: for each blob its size as little-endian uint32, then its bytes.  stdout: for each + or -,
 * whether it was accepted. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stepwell.h"
#include "stw_bytes.h"

static int step_it(const stw_model *model)
{
    size_t     ram_bytes = stw_ram_bytes(model), snapshot_bytes = stw_snapshot_bytes(model);
    void      *ram      = malloc(ram_bytes);
    int16_t   *x        = (int16_t *)malloc(model->n_in * sizeof *x);
    int32_t   *y        = (int32_t *)malloc(model->n_out * sizeof *y);
    void      *snapshot = malloc(snapshot_bytes);
    stw_stream s;
    int        status = stw_init(&s, model, ram, ram_bytes);

    for (int t = 0; status >= STW_OK && t < 12; t++) {
        memset(x, t & 1 ? 0x7F : 0x80, model->n_in * sizeof *x);
        status = stw_step(&s, x, y);
    }
    if (status >= STW_OK) {
        status = stw_save(&s, snapshot, snapshot_bytes);
    }
    if (status == STW_OK) {
        status = stw_load(&s, snapshot, snapshot_bytes);
    }
    free(ram);
    free(x);
    free(y);
    free(snapshot);
    return status;
}

int main(void)
{
    uint8_t   size[4];
    stw_layer layers[8];

    while (fread(size, sizeof size, 1, stdin) == 1) {
        uint32_t  n    = stw_get32(size);
        void     *blob = malloc(n ? n : 1); /* exact size: one byte beyond it is a fault */
        stw_model model;
        int       sound;

        if (fread(blob, 1, n, stdin) != n) {
            return 2;
        }
        sound = stw_blob_to_native(blob, n) == STW_OK && stw_blob_open(&model, layers, 8, blob, n) == STW_OK;
        if (sound && step_it(&model) != STW_OK) {
            return 3;
        }
        putchar(sound ? '+' : '-');
        free(blob);
    }
    return 0;
}
