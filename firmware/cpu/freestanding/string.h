/* string.h - for compilers that come without a libc: the functions that the library and the program use (see memory.c).
 */
#ifndef STRING_H
#define STRING_H

#include <stddef.h>

void *memcpy(void *to, const void *from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);
int   memcmp(const void *a, const void *b, size_t n);

#endif /* STRING_H */
