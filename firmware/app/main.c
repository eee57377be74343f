/* main.c - the whole program of a board that runs a model for a host. */
#include "board.h"

#ifdef APP_MLPERF
#include "mlperf.h"
#define app_init mlperf_init
#define app_byte mlperf_byte
#define app_idle mlperf_idle
#else
#include "service.h"
#define app_init   service_init
#define app_byte   service_byte
#define app_idle() ((void)0)
#endif

int main(void)
{
    board_init();
    app_init();
    for (;;) {
        int byte = board_getc();
        if (byte >= 0) {
            app_byte((uint8_t)byte);
        } else {
            app_idle();
        }
    }
}
