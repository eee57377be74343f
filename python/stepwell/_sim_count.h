/* _sim_count.h - counts the instructions that the emulator of stepwell.link.sim executes. */
#ifndef STW_SIM_COUNT_H
#define STW_SIM_COUNT_H

#include <stdint.h>

/* @cdef-begin */

typedef struct stw_sim_counter {
    uint64_t       count;   /* instructions so far */
    uint64_t       origin;  /* address of code[0] */
    uint64_t       n_bytes; /* of code */
    const uint8_t *code;    /* Thumb code as the guest sees it */
} stw_sim_counter;

/* A UC_HOOK_BLOCK callback of unicorn (uc, address, size, user data): adds a straight run of instructions before it
 * executes.  An instruction that an IT block skips counts, as in QEMU and as it takes its cycle on a core. */
void stw_sim_count(void *uc, uint64_t address, uint32_t size, void *counter);

/* @cdef-end */

#endif /* STW_SIM_COUNT_H */
