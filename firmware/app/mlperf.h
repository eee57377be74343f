/* mlperf.h - the text interface of MLPerf Tiny's and EEMBC's runners, in place of service.h (docs/hil.md). */
#ifndef MLPERF_H
#define MLPERF_H

#include <stdint.h>

void mlperf_init(void);
void mlperf_byte(uint8_t byte); /* one received byte; a command ends with %, its answer with the line m-ready */
void mlperf_idle(void);         /* now and then, before the board's counter comes round */

#endif /* MLPERF_H */
