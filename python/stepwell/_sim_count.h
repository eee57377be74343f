/* _sim_count.h - counts the instructions that the emulator of stepwell.link.sim executes. */
#ifndef STW_SIM_COUNT_H
#define STW_SIM_COUNT_H

#include <stdint.h>

/* @cdef-begin */

/* A UC_HOOK_CODE callback of unicorn (uc, address, size, user data): one call for each instruction; count is a uint64_t *.
 * As a C function it runs at 60 MIPS and more; the same in Python takes a microsecond a call. */
void stw_sim_count(void *uc, uint64_t address, uint32_t size, void *count);

/* @cdef-end */

#endif /* STW_SIM_COUNT_H */
