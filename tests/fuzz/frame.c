/* frame.c - any bytes on the line, then the same bytes as the content of a frame: what is sent must arrive. */
#include "frame.h"

#include "fuzz.h"

static uint8_t wire[2 * LINK_MTU + 8];
static size_t  n_wire;

static void to_wire(uint8_t byte)
{
    MUST(n_wire < sizeof wire);
    wire[n_wire++] = byte;
}

/* Sends content[n] and reads it back. */
static void round_trip(const uint8_t *content, size_t n)
{
    frame_reader reader = {0};
    uint8_t      frame[LINK_MTU];
    int          n_good = 0;

    memcpy(frame, content, n);
    n_wire = 0;
    frame_send(frame, n, to_wire);
    for (size_t i = 0; i < n_wire; i++) {
        frame_event event = frame_read(&reader, wire[i]);

        MUST(event != FRAME_DAMAGED);
        n_good += event == FRAME_GOOD;
    }
    MUST(n_good == 1 && reader.n == n + LINK_CRC_BYTES && memcmp(reader.data, content, n) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    frame_reader reader = {0};

    for (size_t i = 0; i < n; i++) {
        if (frame_read(&reader, data[i]) == FRAME_GOOD) {
            MUST(reader.n >= LINK_HEADER_BYTES + LINK_CRC_BYTES && reader.n <= LINK_MTU);
            round_trip(reader.data, reader.n - LINK_CRC_BYTES);
        }
    }
    if (n >= LINK_HEADER_BYTES) {
        round_trip(data, n <= LINK_MTU - LINK_CRC_BYTES ? n : LINK_MTU - LINK_CRC_BYTES);
    }
    return 0;
}
