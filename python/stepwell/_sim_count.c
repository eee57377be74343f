/* _sim_count.c - see _sim_count.h. */
#include "_sim_count.h"

void stw_sim_count(void *uc, uint64_t address, uint32_t size, void *count)
{
    (void)uc;
    (void)address;
    (void)size;
    ++*(uint64_t *)count;
}
