/* long.c - 64-bit arithmetic that an ARMv6-M compiler calls for.  gcc brings its own (libgcc); zig cc, linked without a
 * run-time library, needs these. */
#if defined(__clang__) && __ARM_ARCH == 6

#include <stdint.h>

typedef union halves {
    uint64_t whole;
    struct {
        uint32_t low, high; /* little endian */
    } part;
} halves;

uint64_t __aeabi_lmul(uint64_t a, uint64_t b);
uint64_t __aeabi_llsl(uint64_t a, int n);
uint64_t __aeabi_llsr(uint64_t a, int n);
int64_t  __aeabi_lasr(int64_t a, int n);

/* a * b exactly, from four products of 16 bits each. */
static halves product(uint32_t a, uint32_t b)
{
    uint32_t low = (a & 0xFFFFu) * (b & 0xFFFFu), high = (a >> 16) * (b >> 16);
    uint32_t one = (a >> 16) * (b & 0xFFFFu), two = (a & 0xFFFFu) * (b >> 16);
    uint32_t middle = (low >> 16) + (one & 0xFFFFu) + (two & 0xFFFFu);
    halves   y;

    y.part.low  = (middle << 16) | (low & 0xFFFFu);
    y.part.high = high + (one >> 16) + (two >> 16) + (middle >> 16);
    return y;
}

uint64_t __aeabi_lmul(uint64_t a, uint64_t b)
{
    halves x, z, y;

    x.whole = a;
    z.whole = b;
    y       = product(x.part.low, z.part.low);
    y.part.high += x.part.high * z.part.low + x.part.low * z.part.high;
    return y.whole;
}

uint64_t __aeabi_llsl(uint64_t a, int n)
{
    halves x, y;

    x.whole     = a;
    y.part.low  = n < 32 ? x.part.low << n : 0u;
    y.part.high = n >= 32 ? x.part.low << (n - 32) : n ? (x.part.high << n) | (x.part.low >> (32 - n)) : x.part.high;
    return y.whole;
}

/* The low half of a right shift whose high half is `fill` beyond the top. */
static uint32_t shifted_low(halves x, int n, uint32_t fill_shifted)
{
    return n >= 32 ? fill_shifted : n ? (x.part.low >> n) | (x.part.high << (32 - n)) : x.part.low;
}

uint64_t __aeabi_llsr(uint64_t a, int n)
{
    halves x, y;

    x.whole     = a;
    y.part.low  = shifted_low(x, n, x.part.high >> (n & 31));
    y.part.high = n < 32 ? x.part.high >> n : 0u;
    return y.whole;
}

int64_t __aeabi_lasr(int64_t a, int n)
{
    halves   x, y;
    uint32_t sign;

    x.whole     = (uint64_t)a;
    sign        = x.part.high >> 31 ? 0xFFFFFFFFu : 0u;
    y.part.low  = shifted_low(x, n, (uint32_t)((int32_t)x.part.high >> (n & 31)));
    y.part.high = n < 32 ? (uint32_t)((int32_t)x.part.high >> n) : sign;
    return (int64_t)y.whole;
}

#else
typedef int long_is_empty; /* a translation unit must hold something */
#endif
