/* service.c - any bytes on the serial line of the device's program, raw or as the payloads of sound frames.  It takes
 * field updates, into memory with the rules of NOR flash; before some commits the sums of what was sent are made right,
 * so that hostile models get as far as they can.  Each input finds a board that was just switched on. */
#include "../../firmware/app/service.c" /* its variables are what a reset clears */

#include "fuzz.h"

uint32_t        cpu_stack_low[4], cpu_data_low[4];
uint32_t *const cpu_stack_top = cpu_stack_low + 4, *const cpu_data_top = cpu_data_low + 4;

static frame_reader       answers;
static STW_ALIGN4 uint8_t flash[BOARD_UPDATE_BYTES];

const uint8_t *board_flash(void)
{
    return flash;
}

int board_flash_erase(uint32_t page)
{
    MUST((page + 1) * BOARD_UPDATE_PAGE_BYTES <= BOARD_UPDATE_BYTES);
    memset(flash + page * BOARD_UPDATE_PAGE_BYTES, 0xFF, BOARD_UPDATE_PAGE_BYTES);
    return 0;
}

int board_flash_write(uint32_t offset, const uint8_t *data, size_t n)
{
    MUST(offset % 32 == 0 && n % 32 == 0 && n <= BOARD_UPDATE_BYTES && offset <= BOARD_UPDATE_BYTES - n);
    for (size_t k = 0; k < n; k++) {
        MUST(flash[offset + k] == 0xFF);
        flash[offset + k] = data[k];
    }
    return 0;
}

/* What the device says must be sound frames. */
void board_putc(uint8_t byte)
{
    MUST(frame_read(&answers, byte) != FRAME_DAMAGED);
}

uint32_t board_ticks(void)
{
    return 0;
}

uint32_t board_ticks_hz(void)
{
    return 1000;
}

uint32_t board_cpu_hz(void)
{
    return 1000;
}

/* The blob in the slot that does not run, and its id in the manifest (update.h). */
static void make_update_right(void)
{
    uint8_t *manifest = flash + (update_get().slot == 0 ? BOARD_UPDATE_BYTES / 2 : 0) + 2 * LINK_UPDATE_UNIT;
    uint8_t *blob     = manifest + LINK_UPDATE_UNIT;
    uint32_t n        = stw_get32(manifest);

    if (n >= BLOB_LEAST && update_get().received == (uint64_t)n + stw_get32(manifest + 12)) { /* all of it is there */
        make_blob_right(blob, n);
        memcpy(manifest + 4, blob + 16, 4);
    }
}

/* length, type, seq, payload: a frame; returns the bytes it took. */
static size_t say_frame(const uint8_t *data, size_t n)
{
    uint8_t frame[LINK_MTU];
    size_t  length = data[0] % (LINK_MTU - LINK_CRC_BYTES - 1);

    length = length < LINK_HEADER_BYTES ? LINK_HEADER_BYTES : length;
    if (length > n - 1) {
        return n;
    }
    memcpy(frame, data + 1, length);
    if (frame[0] == LINK_TYPE_BLOB_COMMIT && (frame[1] & 1u)) {
        make_update_right();
    }
    frame_send(frame, length, service_byte);
    return 1 + length;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    memset(flash, 0xFF, sizeof flash);
    memset(transfer, 0, sizeof transfer);
    reader      = (frame_reader){0};
    answers     = (frame_reader){0};
    session     = 0;
    have_answer = 0;
    n_good = n_damaged = n_steps = n_repeats = 0;
    service_init();
    for (size_t at = 0; at + 3 < n;) {
        if (data[at] & 0x80u) {
            service_byte(data[at++]);
        } else {
            at += say_frame(data + at, n - at);
        }
    }
    service_byte(0);
    return 0;
}
