/* frame.h - frames on a byte line: 00 . COBS(type | seq | payload | CRC-32) . 00; at most LINK_MTU bytes before COBS */
#ifndef FRAME_H
#define FRAME_H

#include <stddef.h>
#include <stdint.h>

#include "messages.h"

typedef struct frame_reader {
    uint8_t data[LINK_MTU]; /* type, seq, payload, CRC */
    uint8_t n;              /* bytes in data */
    uint8_t left;           /* bytes that the current COBS block still brings */
    uint8_t zero;           /* a zero stands between this block and the next */
    uint8_t started;        /* something has come since the last delimiter */
    uint8_t bad;            /* longer than LINK_MTU */
} frame_reader;

typedef enum frame_event {
    FRAME_NONE    = 0,
    FRAME_GOOD    = 1, /* data[0 .. n) is a frame whose CRC is right; valid until the next byte */
    FRAME_DAMAGED = 2
} frame_event;

/* Feed one received byte.  Any noise ends with the next delimiter. The reader starts as all zeros. */
frame_event frame_read(frame_reader *r, uint8_t byte);

/* CRC over frame[0 .. n), stored behind it: n + 4 <= LINK_MTU bytes are sent through put. */
void frame_send(uint8_t *frame, size_t n, void (*put)(uint8_t byte));

#endif /* FRAME_H */
