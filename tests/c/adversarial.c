/* adversarial.c - one step from each of many states.  Built by test_adversarial.py with checks and sanitisers.
 * stdin: the size of a model's blob as uint32, the blob, then pairs of a snapshot and codes.  stdout: y of each pair.
 */
#include <stdio.h>
#include <stdlib.h>

#include "stepwell.h"

static int step_each(const stw_model *model)
{
    size_t     ram_bytes = stw_ram_bytes(model), snapshot_bytes = stw_snapshot_bytes(model);
    void      *ram      = malloc(ram_bytes);
    void      *snapshot = malloc(snapshot_bytes);
    int16_t   *x        = (int16_t *)malloc(model->n_in * sizeof *x);
    int32_t   *y        = (int32_t *)malloc(model->n_out * sizeof *y);
    stw_stream s;
    int        status = stw_init(&s, model, ram, ram_bytes);

    while (status >= STW_OK && fread(snapshot, snapshot_bytes, 1, stdin) == 1) {
        if (fread(x, sizeof *x, model->n_in, stdin) != model->n_in) {
            return 4;
        }
        status = stw_load(&s, snapshot, snapshot_bytes);
        if (status == STW_OK) {
            status = stw_step(&s, x, y);
            fwrite(y, sizeof *y, model->n_out, stdout);
        }
    }
    free(ram);
    free(snapshot);
    free(x);
    free(y);
    return status >= STW_OK ? 0 : 3;
}

int main(void)
{
    uint32_t  n;
    stw_layer layers[16];
    stw_model model;
    void     *blob;
    int       failed;

    if (fread(&n, sizeof n, 1, stdin) != 1) {
        return 1;
    }
    blob = malloc(n);
    if (fread(blob, 1, n, stdin) != n || stw_blob_open(&model, layers, 16, blob, n) != STW_OK) {
        return 2;
    }
    failed = step_each(&model);
    free(blob);
    return failed;
}
