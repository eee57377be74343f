/* stw_table.h - the activation tables of docs/numerics.md (stw_table.c holds the literals). */
#ifndef STW_TABLE_H
#define STW_TABLE_H

#include <stdint.h>

extern const uint16_t stw_sigmoid_table[353]; /* logistic function, 32 entries per unit, Q16 */
extern const uint16_t stw_exp2_table[65];     /* 2^-x, 64 entries per unit, Q15 */

#endif /* STW_TABLE_H */
