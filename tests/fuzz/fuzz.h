/* fuzz.h - what the harnesses share. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stepwell.h"
#include "stw_bytes.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Memory of exactly n bytes: one beyond them is a fault. */
static inline void *room(size_t n)
{
    void *p = malloc(n ? n : 1);

    MUST(p);
    return p;
}

enum { BLOB_HEADER = 40, BLOB_LEAST = BLOB_HEADER + 4 };

/* Magic, format, length and both checksums of a blob of n >= BLOB_LEAST bytes. */
static inline void make_blob_right(uint8_t *p, size_t n)
{
    uint32_t device_bytes;

    memcpy(p, "STW1", 4);
    stw_put16(p + 4, STW_MODEL_FORMAT);
    stw_put32(p + 8, (uint32_t)n);
    device_bytes = stw_get32(p + 12);
    if (p[27] == STW_PLAIN && device_bytes >= BLOB_HEADER && device_bytes <= n - 4) {
        stw_put32(p + 16, stw_crc32(0, p + 20, device_bytes - 20));
    }
    stw_put32(p + n - 4, stw_crc32(0, p, n - 4));
}

#endif /* FUZZ_H */
