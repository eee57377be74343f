/* _sim_count.c - see _sim_count.h. */
#include "_sim_count.h"

void stw_sim_count(void *uc, uint64_t address, uint32_t size, void *counter)
{
    stw_sim_counter *c  = (stw_sim_counter *)counter;
    uint64_t         at = address - c->origin;
    uint64_t         end;

    (void)uc;
    if (address < c->origin || at > c->n_bytes || size > c->n_bytes - at) {
        return; /* no code of ours */
    }
    for (end = at + size; at < end; c->count++) {
        at += c->code[at + 1] >> 3 >= 0x1D ? 4 : 2; /* the first halfword 0b11101.., 11110.., 11111..: 32-bit Thumb */
    }
}
