/* update.h - which model runs, and a new one over the link into flash (docs/update.md).
 *
 * The board's update area is two slots.  A slot holds, each at a multiple of LINK_UPDATE_UNIT bytes:
 *   header      magic u32, id of the image's own model u32, CRC-32 of these and the manifest u32; written last
 *   seal        the header once more, written when that one has been read; either makes the slot count
 *   manifest    as BLOB_BEGIN brings it: blob bytes u32, model id u32, version u32, signature bytes u32, zeros
 *   blob        the model (csrc/stw_blob.c), and right behind it its signature
 * A slot without a sound header is empty, whatever else is in it.  Results are 0 or LINK_ERROR_*.
 */
#ifndef UPDATE_H
#define UPDATE_H

#include <stddef.h>
#include <stdint.h>

#include "app_model.h"
#include "messages.h"

#define UPDATE_MAX(a, b) ((a) > (b) ? (a) : (b))

/* The largest model that the image has room for: its own, or any of these limits where updates are taken. */
#if BOARD_UPDATE_BYTES
#define MODEL_N_IN      LINK_MOST_IN
#define MODEL_N_OUT     LINK_MOST_OUT
#define MODEL_RAM_BYTES UPDATE_MAX(APP_MODEL_RAM_BYTES, BOARD_UPDATE_RAM_BYTES)
#else
#define MODEL_N_IN      APP_MODEL_N_IN
#define MODEL_N_OUT     APP_MODEL_N_OUT
#define MODEL_RAM_BYTES APP_MODEL_RAM_BYTES
#endif
#define MODEL_SNAPSHOT_BYTES UPDATE_MAX(APP_MODEL_SNAPSHOT_BYTES, MODEL_RAM_BYTES)

typedef struct update_state {
    uint32_t room;     /* bytes of blob and signature that a slot holds; 0: this board takes no update */
    uint32_t version;  /* of the running model; 0: the image's own */
    uint32_t received; /* of an update that has begun */
    uint8_t  slot;     /* of the running model, LINK_NO_SLOT: the image's own */
    uint8_t  packing;  /* stw_packing that the core wants */
} update_state;

void             update_init(void); /* at start: the newest whole slot runs, or else the image's own model */
const stw_model *update_model(void);
update_state     update_get(void);

/* Erases the slot that does not run; the same manifest again goes on where it was. */
int update_begin(const uint8_t manifest[LINK_MANIFEST_BYTES]);

/* Bytes of blob and signature from offset, a multiple of LINK_UPDATE_UNIT, in order; only the last piece may have
 * another length than such a multiple.  A piece that is there already is accepted when it is the same. */
int update_write(uint32_t offset, const uint8_t *data, size_t n);

/* Checks everything and makes the new model the running one; *status: the stw_status behind LINK_ERROR_BLOB. */
int update_commit(int *status);

#endif /* UPDATE_H */
