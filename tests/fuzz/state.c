/* state.c - any bytes as a snapshot of app_model.  Magic, id and checksum are made right; what loads must step, and
 * what does not must leave the stream as it was. */
#include "app_model.h"
#include "fuzz.h"

static STW_ALIGN4 uint8_t ram[APP_MODEL_RAM_BYTES];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    uint8_t   *snapshot = (uint8_t *)room(n);
    int16_t    x[APP_MODEL_N_IN];
    int32_t    y[APP_MODEL_N_OUT];
    stw_stream s;
    uint32_t   before;

    memcpy(snapshot, data, n);
    if (n >= 12) {
        memcpy(snapshot, "STS\2", 4);
        stw_put32(snapshot + 4, app_model.id);
        stw_put32(snapshot + n - 4, stw_crc32(0, snapshot, n - 4));
    }
    memset(x, 0x7F, sizeof x);
    MUST(stw_init(&s, &app_model, ram, sizeof ram) == STW_OK);
    (void)stw_step(&s, x, y);
    before = stw_digest(&s);
    if (stw_load(&s, snapshot, n) != STW_OK) {
        MUST(stw_digest(&s) == before);
    }
    for (int t = 0; t < 3; t++) {
        MUST(stw_step(&s, x, y) >= STW_OK);
    }
    free(snapshot);
    return 0;
}
