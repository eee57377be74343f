/* mlperf.c - any bytes for the text interface; what it says is printable. */
#include "mlperf.h"

#include "board.h"
#include "fuzz.h"

void board_putc(uint8_t byte)
{
    MUST((byte >= 32 && byte < 127) || byte == '\r' || byte == '\n');
}

uint32_t board_ticks(void)
{
    return 0;
}

uint32_t board_ticks_hz(void)
{
    return 1000;
}

uint32_t board_cpu_hz(void)
{
    return 1000;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    mlperf_init();
    for (size_t i = 0; i < n; i++) {
        mlperf_byte(data[i]);
    }
    return 0;
}
