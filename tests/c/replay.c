/* replay.c - codes in on stdin, outputs on stdout, both raw; the state digest on stderr.  Built by test_native.py. */
#include <stdio.h>

#include "model.h"

int main(void)
{
    static STW_ALIGN4 uint8_t ram[MODEL_RAM_BYTES];
    stw_stream                s;
    int16_t                   x[MODEL_N_IN];
    int32_t                   y[MODEL_N_OUT] = {0}; /* held until the model gives its first output */

    if (stw_init(&s, &model, ram, MODEL_RAM_BYTES - 1) != STW_E_SPACE) {
        return 2; /* MODEL_RAM_BYTES is exact: one byte less must not do */
    }
    if (stw_init(&s, &model, ram, sizeof ram) != STW_OK) {
        return 3;
    }
    while (fread(x, sizeof x, 1, stdin) == 1) {
        uint8_t snapshot[MODEL_SNAPSHOT_BYTES];

        if (stw_save(&s, snapshot, sizeof snapshot) != STW_OK || stw_load(&s, snapshot, sizeof snapshot) != STW_OK) {
            return 4;
        }
        if (stw_step(&s, x, y) < STW_OK) {
            return 5;
        }
        fwrite(y, sizeof y, 1, stdout);
    }
    fprintf(stderr, "%08lx", (unsigned long)stw_digest(&s));
    return 0;
}
