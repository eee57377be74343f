/* frame.c - see frame.h. */
#include "frame.h"

#include "stepwell.h"
#include "stw_bytes.h"

#define BLOCK_MAX 254u /* bytes of a COBS block; its code 0xFF implies no zero */

static void append(frame_reader *r, uint8_t byte)
{
    if (r->n < LINK_MTU) {
        r->data[r->n++] = byte;
    } else {
        r->bad = 1;
    }
}

static frame_event end_of_frame(const frame_reader *r)
{
    size_t n;

    if (!r->started) {
        return FRAME_NONE; /* two delimiters in a row */
    }
    if (r->bad || r->left != 0 || r->n < LINK_HEADER_BYTES + LINK_CRC_BYTES) {
        return FRAME_DAMAGED;
    }
    n = r->n - LINK_CRC_BYTES;
    return stw_crc32(0, r->data, n) == stw_get32(r->data + n) ? FRAME_GOOD : FRAME_DAMAGED;
}

frame_event frame_read(frame_reader *r, uint8_t byte)
{
    if (byte == 0) {
        frame_event event = end_of_frame(r);
        r->started = r->left = r->zero = r->bad = 0;
        return event;
    }
    if (!r->started) {
        r->started = 1;
        r->n       = 0;
    }
    if (r->left != 0) {
        append(r, byte);
        r->left--;
    } else {
        if (r->zero) {
            append(r, 0);
        }
        r->left = (uint8_t)(byte - 1u);
        r->zero = r->left != BLOCK_MAX;
    }
    return FRAME_NONE;
}

/* Sends the block that starts at data[i]; returns its length. */
static size_t send_block(const uint8_t *data, size_t n, void (*put)(uint8_t byte))
{
    size_t run = 0;

    while (run < n && run < BLOCK_MAX && data[run] != 0) {
        run++;
    }
    put((uint8_t)(run + 1u));
    for (size_t i = 0; i < run; i++) {
        put(data[i]);
    }
    return run;
}

void frame_send(uint8_t *frame, size_t n, void (*put)(uint8_t byte))
{
    size_t i = 0;
    int    more;

    stw_put32(frame + n, stw_crc32(0, frame, n));
    n += LINK_CRC_BYTES;
    put(0);
    do {
        size_t run = send_block(frame + i, n - i, put);
        i += run;
        more = i < n;
        i += run < BLOCK_MAX; /* the block stands for a zero, too */
    } while (more);
    put(0);
}
