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

#endif /* FUZZ_H */
