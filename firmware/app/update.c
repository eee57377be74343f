/* update.c - see update.h.  A power cut may come at any moment: the running slot is never touched, and the header,
 * which makes the other one count, is written when all else has been checked where it stands. */
#include "update.h"

#include <string.h>

#include "board.h"
#include "stw_bytes.h"

#if BOARD_UPDATE_BYTES

#ifndef UPDATE_LAYERS
#define UPDATE_LAYERS 24u /* of a model, at most: 40 bytes of RAM each, for both slots */
#endif

/* The packing that this core is fastest with: python/stepwell/integer/packing.py. */
#ifndef UPDATE_PACKING
#if defined(__ARM_FEATURE_DSP) && !defined(__ARM_FEATURE_MVE)
#define UPDATE_PACKING STW_PAIRS
#else
#define UPDATE_PACKING STW_PLAIN
#endif
#endif

#define N_SLOTS     2u
#define SLOT_BYTES  (BOARD_UPDATE_BYTES / N_SLOTS)
#define SLOT_PAGES  (SLOT_BYTES / BOARD_UPDATE_PAGE_BYTES)
#define UNIT        LINK_UPDATE_UNIT
#define SEAL_AT     UNIT
#define MANIFEST_AT (2u * UNIT)
#define BLOB_AT     (3u * UNIT)
#define ROOM        (SLOT_BYTES - BLOB_AT)
#define MAGIC       0x55575453u /* "STWU" */
#define HEADER_USED 12u
#define PACKING_AT  27u /* in a blob's header */

#if SLOT_BYTES % BOARD_UPDATE_PAGE_BYTES != 0 || BOARD_UPDATE_PAGE_BYTES % LINK_UPDATE_UNIT != 0 ||                    \
    LINK_MANIFEST_BYTES != LINK_UPDATE_UNIT
#error "UPDATE_BYTES must be two slots of whole pages"
#endif

typedef struct manifest {
    uint32_t blob_bytes, id, version, signature_bytes;
} manifest;

static struct {
    stw_model model;
    stw_layer layers[UPDATE_LAYERS];
} opened[N_SLOTS]; /* the models in the slots; of the running one it must stay as it is */

static const stw_model *running = &app_model;
static uint8_t          running_slot;
static uint32_t         running_version;
static uint8_t          receiving; /* an update into the other slot has begun */
static uint32_t         received;  /* bytes of its blob and signature */

__attribute__((weak)) int board_verify_signature(const uint8_t *message, size_t n, const uint8_t *signature,
                                                 size_t signature_bytes)
{
    (void)message;
    (void)n;
    (void)signature;
    (void)signature_bytes;
    return 0; /* a board without a key takes what is whole; see board.h */
}

static const uint8_t *slot_at(size_t slot)
{
    return board_flash() + slot * SLOT_BYTES;
}

static manifest manifest_at(const uint8_t *p)
{
    return (manifest){stw_get32(p), stw_get32(p + 4), stw_get32(p + 8), stw_get32(p + 12)};
}

static size_t other_slot(void)
{
    return running_slot == 0;
}

/* ---- checks ---- */

static int manifest_check(const uint8_t *p)
{
    manifest m = manifest_at(p);

    for (size_t i = 16; i < LINK_MANIFEST_BYTES; i++) {
        if (p[i] != 0) {
            return LINK_ERROR_RANGE;
        }
    }
    return m.blob_bytes > ROOM || m.signature_bytes > ROOM - m.blob_bytes ? (int)LINK_ERROR_SIZE : 0;
}

static int fits_image(const stw_model *m)
{
    return m->n_in <= MODEL_N_IN && m->n_out <= MODEL_N_OUT && stw_ram_bytes(m) <= MODEL_RAM_BYTES &&
           stw_snapshot_bytes(m) <= MODEL_SNAPSHOT_BYTES;
}

/* Everything about a slot but its header.  The signature comes first: what it guards is not even parsed without it. */
static int content_check(size_t slot, int *status)
{
    const uint8_t *p = slot_at(slot), *blob = p + BLOB_AT;
    manifest       m     = manifest_at(p + MANIFEST_AT);
    int            error = manifest_check(p + MANIFEST_AT);

    if (error != 0) {
        return error;
    }
    if (board_verify_signature(p + MANIFEST_AT, LINK_MANIFEST_BYTES + m.blob_bytes, blob + m.blob_bytes,
                               m.signature_bytes) != 0) {
        return LINK_ERROR_SIGNATURE;
    }
    *status = stw_blob_open(&opened[slot].model, opened[slot].layers, UPDATE_LAYERS, blob, m.blob_bytes);
    if (*status == STW_OK && opened[slot].model.id != m.id) {
        *status = STW_E_MISMATCH;
    }
    if (*status != STW_OK) {
        return LINK_ERROR_BLOB;
    }
    if (blob[PACKING_AT] != STW_PLAIN && blob[PACKING_AT] != UPDATE_PACKING) {
        return LINK_ERROR_PACKING;
    }
    return fits_image(&opened[slot].model) ? 0 : (int)LINK_ERROR_ROOM;
}

/* The header that makes a slot count.  It names the image's own model: after another image was flashed, that one runs.
 */
static void make_header(const uint8_t *slot, uint8_t header[UNIT])
{
    memset(header, 0xFF, UNIT);
    stw_put32(header, MAGIC);
    stw_put32(header + 4, app_model.id);
    stw_put32(header + 8, stw_crc32(stw_crc32(0, header, 8), slot + MANIFEST_AT, LINK_MANIFEST_BYTES));
}

static int is_whole(size_t slot)
{
    const uint8_t *p = slot_at(slot);
    uint8_t        header[UNIT];
    int            status;

    make_header(p, header);
    return (memcmp(p, header, HEADER_USED) == 0 || memcmp(p + SEAL_AT, header, HEADER_USED) == 0) &&
           content_check(slot, &status) == 0;
}

/* The header once more.  A word whose write was cut may read as it should at one start and not at the next: a slot that
 * was found whole stays it. */
static void seal(size_t slot)
{
    const uint8_t *p = slot_at(slot) + SEAL_AT;
    uint8_t        header[UNIT];
    size_t         erased = 0;

    while (erased < UNIT && p[erased] == 0xFF) {
        erased++;
    }
    if (erased == UNIT) {
        make_header(slot_at(slot), header);
        (void)board_flash_write((uint32_t)(slot * SLOT_BYTES) + SEAL_AT, header, UNIT); /* else at the next start */
    }
}

static void run_slot(size_t slot)
{
    running         = &opened[slot].model;
    running_slot    = (uint8_t)slot;
    running_version = manifest_at(slot_at(slot) + MANIFEST_AT).version;
}

void update_init(void)
{
    running         = &app_model;
    running_slot    = LINK_NO_SLOT;
    running_version = 0;
    receiving       = 0;
    for (size_t slot = 0; slot < N_SLOTS; slot++) {
        if (is_whole(slot) && manifest_at(slot_at(slot) + MANIFEST_AT).version > running_version) {
            run_slot(slot);
        }
    }
    if (running_slot != LINK_NO_SLOT) {
        seal(running_slot);
    }
}

/* ---- receiving ---- */

/* Whole units at data into the slot that does not run, read back. */
static int store(uint32_t at, const uint8_t *data, size_t n)
{
    uint32_t offset = (uint32_t)(other_slot() * SLOT_BYTES) + at;

    return board_flash_write(offset, data, n) == 0 && memcmp(board_flash() + offset, data, n) == 0
               ? 0
               : (int)LINK_ERROR_FLASH;
}

/* The page of the header goes first: from then on the slot is empty. */
static int erase_slot(void)
{
    const uint8_t *p = slot_at(other_slot());

    for (uint32_t page = 0; page < SLOT_PAGES; page++) {
        if (board_flash_erase((uint32_t)(other_slot() * SLOT_PAGES) + page) != 0) {
            return LINK_ERROR_FLASH;
        }
    }
    for (size_t i = 0; i < SLOT_BYTES; i++) {
        if (p[i] != 0xFF) {
            return LINK_ERROR_FLASH;
        }
    }
    return 0;
}

int update_begin(const uint8_t p[LINK_MANIFEST_BYTES])
{
    int error = manifest_check(p);

    /* the highest version of all would be the last one for ever */
    if (error == 0 && (manifest_at(p).version <= running_version || manifest_at(p).version == UINT32_MAX)) {
        error = LINK_ERROR_VERSION;
    }
    if (error != 0 || (receiving && memcmp(slot_at(other_slot()) + MANIFEST_AT, p, LINK_MANIFEST_BYTES) == 0)) {
        return error;
    }
    receiving = 0;
    received  = 0;
    error     = erase_slot();
    if (error == 0) {
        error = store(MANIFEST_AT, p, LINK_MANIFEST_BYTES);
    }
    receiving = error == 0;
    return error;
}

static uint32_t bytes_expected(void)
{
    manifest m = manifest_at(slot_at(other_slot()) + MANIFEST_AT);

    return m.blob_bytes + m.signature_bytes;
}

int update_write(uint32_t offset, const uint8_t *data, size_t n)
{
    uint8_t tail[UNIT];
    size_t  whole = n - n % UNIT;
    int     error = 0;

    if (!receiving || offset > received) {
        return LINK_ERROR_ORDER;
    }
    if (offset % UNIT != 0 || n > bytes_expected() - offset || (whole != n && offset + n != bytes_expected())) {
        return LINK_ERROR_RANGE;
    }
    if (offset < received) { /* a repeat, or another update with the same manifest (a fresh signature): begin anew */
        receiving = n <= received - offset && memcmp(slot_at(other_slot()) + BLOB_AT + offset, data, n) == 0;
        return receiving ? 0 : (int)LINK_ERROR_ORDER;
    }
    if (whole != 0) {
        error = store(BLOB_AT + offset, data, whole);
    }
    if (error == 0 && whole != n) {
        memset(tail, 0xFF, sizeof tail);
        memcpy(tail, data + whole, n - whole);
        error = store(BLOB_AT + offset + (uint32_t)whole, tail, sizeof tail);
    }
    receiving = error == 0;
    received  = offset + (uint32_t)n;
    return error;
}

int update_commit(int *status)
{
    uint8_t header[UNIT];
    size_t  slot = other_slot();
    int     error;

    if (!receiving || received != bytes_expected()) {
        return LINK_ERROR_ORDER;
    }
    receiving = 0;
    error     = content_check(slot, status);
    if (error == 0) {
        make_header(slot_at(slot), header);
        error = store(0, header, sizeof header);
    }
    if (error == 0) {
        run_slot(slot);
        seal(slot);
    }
    return error;
}

update_state update_get(void)
{
    return (update_state){ROOM, running_version, receiving ? received : 0u, running_slot, UPDATE_PACKING};
}

const stw_model *update_model(void)
{
    return running;
}

#else /* a board without an update area */

void update_init(void)
{
}

const stw_model *update_model(void)
{
    return &app_model;
}

update_state update_get(void)
{
    return (update_state){0, 0, 0, LINK_NO_SLOT, STW_PLAIN};
}

int update_begin(const uint8_t manifest[LINK_MANIFEST_BYTES])
{
    (void)manifest;
    return LINK_ERROR_NO_UPDATE;
}

int update_write(uint32_t offset, const uint8_t *data, size_t n)
{
    (void)offset;
    (void)data;
    (void)n;
    return LINK_ERROR_NO_UPDATE;
}

int update_commit(int *status) /* NOLINT(readability-non-const-parameter): as above */
{
    (void)status;
    return LINK_ERROR_NO_UPDATE;
}

#endif
