/* memory.c - the only libc the program links, on Arm also under the names that clang calls (run-time ABI, section
 * 4.3.4). The empty asm keeps compilers from turning a loop into a call of itself. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);
int   memcmp(const void *a, const void *b, size_t n);
#if defined(__arm__)
void __aeabi_memmove(void *to, const void *from, size_t n);
void __aeabi_memcpy(void *to, const void *from, size_t n);
void __aeabi_memset(void *to, size_t n, int value);
void __aeabi_memclr(void *to, size_t n);
#endif

typedef uint32_t __attribute__((may_alias)) word;

void *memcpy(void *to, const void *from, size_t n)
{
    uint8_t       *d = (uint8_t *)to;
    const uint8_t *s = (const uint8_t *)from;

    if ((((uintptr_t)d | (uintptr_t)s) & 3u) == 0) {
        for (; n >= 4; n -= 4, d += 4, s += 4) {
            *(word *)(void *)d = *(const word *)(const void *)s;
            __asm__ volatile("");
        }
    }
    while (n--) {
        *d++ = *s++;
        __asm__ volatile("");
    }
    return to;
}

void *memmove(void *to, const void *from, size_t n)
{
    uint8_t       *d = (uint8_t *)to;
    const uint8_t *s = (const uint8_t *)from;

    if (d <= s) {
        return memcpy(to, from, n); /* forwards: every word is read before it is overwritten */
    }
    while (n--) {
        d[n] = s[n];
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

int memcmp(const void *a, const void *b, size_t n)
{
    const uint8_t *p = (const uint8_t *)a, *q = (const uint8_t *)b;

    for (; n > 0 && *p == *q; n--, p++, q++) {
        __asm__ volatile("");
    }
    return n > 0 ? *p - *q : 0;
}

#if defined(__arm__)
void __aeabi_memcpy(void *to, const void *from, size_t n)
{
    (void)memcpy(to, from, n);
}

void __aeabi_memmove(void *to, const void *from, size_t n)
{
    (void)memmove(to, from, n);
}

void __aeabi_memset(void *to, size_t n, int value)
{
    (void)memset(to, value, n);
}

void __aeabi_memclr(void *to, size_t n)
{
    (void)memset(to, 0, n);
}

/* The same for pointers that are known to be aligned to 4 or 8 bytes. */
#define ALIAS(name, of, arguments) void name arguments __attribute__((alias(#of)))
ALIAS(__aeabi_memcpy4, __aeabi_memcpy, (void *to, const void *from, size_t n));
ALIAS(__aeabi_memcpy8, __aeabi_memcpy, (void *to, const void *from, size_t n));
ALIAS(__aeabi_memset4, __aeabi_memset, (void *to, size_t n, int value));
ALIAS(__aeabi_memset8, __aeabi_memset, (void *to, size_t n, int value));
ALIAS(__aeabi_memclr4, __aeabi_memclr, (void *to, size_t n));
ALIAS(__aeabi_memclr8, __aeabi_memclr, (void *to, size_t n));
#endif
