/* stw_table.h - the activation tables of docs/numerics.md (stw_table.c holds the literals). */
#ifndef STW_TABLE_H
#define STW_TABLE_H

#include <stdint.h>

#include "stepwell.h"
#include "stw_config.h"

#define STW_SIGMOID_ENTRIES (STW_LONG_TABLE ? 514 : 353)

extern const STW_ROM int16_t
    stw_sigmoid_table[STW_SIGMOID_ENTRIES];       /* logistic function less 1/2, 32 entries per unit, Q16 */
extern const STW_ROM uint16_t stw_exp2_table[65]; /* 2^-x, 64 entries per unit, Q15 */

#endif /* STW_TABLE_H */
