/* stw_bytes.h - little-endian integers in byte strings, whatever the machine's own order and alignment. */
#ifndef STW_BYTES_H
#define STW_BYTES_H

#include <stdint.h>

static inline uint16_t stw_get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | (uint16_t)p[1] << 8);
}

static inline uint32_t stw_get32(const uint8_t *p)
{
    return stw_get16(p) | (uint32_t)stw_get16(p + 2) << 16;
}

static inline void stw_put16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v & 255u);
    p[1] = (uint8_t)(v >> 8);
}

static inline void stw_put32(uint8_t *p, uint32_t v)
{
    stw_put16(p, (uint16_t)(v & 65535u));
    stw_put16(p + 2, (uint16_t)(v >> 16));
}

#endif /* STW_BYTES_H */
