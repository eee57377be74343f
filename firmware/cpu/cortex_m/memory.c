/* memory.c - the only libc the program links.  The empty asm keeps compilers from turning a loop into a call of itself. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);

void *memcpy(void *to, const void *from, size_t n)
{
    uint8_t       *d = (uint8_t *)to;
    const uint8_t *s = (const uint8_t *)from;

    while (n--) {
        *d++ = *s++;
        __asm__ volatile("");
    }
    return to;
}

void *memset(void *to, int value, size_t n)
{
    uint8_t *d = (uint8_t *)to;

    while (n--) {
        *d++ = (uint8_t)value;
        __asm__ volatile("");
    }
    return to;
}
