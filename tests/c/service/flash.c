/* flash.c - NOR flash in the file FLASH_FILE: a write may only clear bits of words that are still erased.  The file
 * ends with the number of operations so far, word writes and page erasures.  FLASH_CUT=k: the power goes at operation
 * k, which is not done, or half done: with FLASH_TORN=1 the first half of a page or the even bits of a word stay
 * behind, with FLASH_TORN=2 the others.  FLASH_FAIL=k: operation k fails and says so; FLASH_STUCK=k: it does not. */
#include "board.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WORD       4u
#define FILE_BYTES (BOARD_UPDATE_BYTES + sizeof(uint32_t))

static uint8_t *content(void)
{
    static uint8_t *bytes;

    if (!bytes) {
        int file = open(getenv("FLASH_FILE"), O_RDWR | O_CREAT, 0600);

        if (file < 0 || ftruncate(file, (off_t)FILE_BYTES) != 0) {
            perror("FLASH_FILE");
            exit(3);
        }
        bytes = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    }
    return bytes;
}

const uint8_t *board_flash(void)
{
    return content();
}

static int setting(const char *name)
{
    const char *text = getenv(name);

    return text ? atoi(text) : -1;
}

enum { WORKS = -1, FAILS = -2, STUCK = -3 };

/* Counts an operation and says how it goes; 0 and above: the power goes, 0 not done at all, 1 or 2 one half. */
static int power(void)
{
    uint32_t *n = (uint32_t *)(void *)(content() + BOARD_UPDATE_BYTES);

    if (setting("FLASH_CUT") == (int)*n) {
        return setting("FLASH_TORN") > 0 ? setting("FLASH_TORN") : 0;
    }
    (*n)++;
    if (setting("FLASH_FAIL") == (int)*n - 1) {
        return FAILS;
    }
    return setting("FLASH_STUCK") == (int)*n - 1 ? STUCK : WORKS;
}

static void refuse(const char *what, uint32_t at)
{
    fprintf(stderr, "flash: %s at %u\n", what, (unsigned)at);
    exit(2);
}

int board_flash_erase(uint32_t page)
{
    uint8_t *p    = content() + page * BOARD_UPDATE_PAGE_BYTES;
    size_t   half = BOARD_UPDATE_PAGE_BYTES / 2;
    int      cut;

    if ((page + 1) * BOARD_UPDATE_PAGE_BYTES > BOARD_UPDATE_BYTES) {
        refuse("erasing outside", page);
    }
    cut = power();
    if (cut == WORKS || cut > 0) {
        memset(p + (cut == 1 ? half : 0), 0xFF, cut < 0 ? 2 * half : half);
    }
    if (cut >= 0) {
        exit(0);
    }
    return cut == FAILS;
}

static int write_word(uint32_t at, const uint8_t *data)
{
    uint8_t *p   = content() + at;
    int      cut = power();

    for (unsigned k = 0; k < WORD; k++) {
        if (p[k] != 0xFF) {
            refuse("writing what is not erased", at);
        }
        if (cut == WORKS || cut > 0) {
            p[k] = cut < 0 ? data[k] : data[k] | (cut == 1 ? 0x55 : 0xAA);
        }
    }
    if (cut >= 0) {
        exit(0);
    }
    return cut == FAILS;
}

int board_flash_write(uint32_t offset, const uint8_t *data, size_t n)
{
    if (offset % 32 != 0 || n % 32 != 0 || n > BOARD_UPDATE_BYTES || offset > BOARD_UPDATE_BYTES - n) {
        refuse("writing outside, or no whole units", offset);
    }
    for (size_t k = 0; k < n; k += WORD) {
        if (write_word(offset + (uint32_t)k, data + k) != 0) {
            return -1;
        }
    }
    return 0;
}
