/* main.c - the whole program of a board that runs a model for a host. */
#include "board.h"
#include "service.h"

int main(void)
{
    board_init();
    service_init();
    for (;;) {
        int byte = board_getc();
        if (byte >= 0) {
            service_byte((uint8_t)byte);
        }
    }
}
