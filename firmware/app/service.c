/* service.c - see service.h.  What changes something is done once and in order.  The last such request again (same
 * bytes, so same CRC) gets the answer that was kept, because stepping twice for a reply that was lost would be wrong.
 * Session and seq number the requests of a session: one that is not the next is refused, however late it comes. */
#include "service.h"

#include <string.h>

#include "board.h"
#include "cpu.h"
#include "frame.h"
#include "stw_bytes.h"
#include "update.h"

#define TEXT_OF(name) #name
#define TEXT(name)    TEXT_OF(name)

#if defined(__ELF__) /* `stepwell flash` reads there which board an image is for; the section takes no flash */
__asm__(".pushsection .stepwell.board,\"\",%progbits\n.ascii \"" TEXT(BOARD_NAME) "\"\n.popsection");
#endif

#define PAYLOAD_MAX   (LINK_MTU - LINK_HEADER_BYTES - LINK_CRC_BYTES)
#define SESSION_BYTES 4u
#define STEP_REQUEST  (SESSION_BYTES + 1u)
#define STEP_REPLY    5u

#if APP_MODEL_N_IN > LINK_MOST_IN || APP_MODEL_N_OUT > LINK_MOST_OUT
#error "one step does not fit a frame: at most 121 inputs and 60 outputs can be tested over the link"
#endif

/* Holds a snapshot, or the input of any layer: a layer after the first takes its input from the stream's RAM. */
#define TRANSFER_BYTES UPDATE_MAX(MODEL_SNAPSHOT_BYTES, 2 * MODEL_N_IN)

typedef enum transfer_use { HOLDS_NOTHING, HOLDS_STATE, HOLDS_INPUT } transfer_use;

static const stw_model   *model; /* the running one */
static STW_ALIGN4 uint8_t stream_ram[MODEL_RAM_BYTES];
static STW_ALIGN4 uint8_t transfer[TRANSFER_BYTES];
static transfer_use       transfer_holds;
static size_t             input_bytes; /* of the layer input that transfer holds, so far */
static stw_stream         stream;
static int                model_status;
static uint32_t           session; /* 0: no RESET since the board started */
static uint8_t            next;    /* seq of the session's next request; after 255 comes 0 of session + 1 */
static size_t             snapshot_bytes;
static int16_t            x[MODEL_N_IN];
static int32_t            y[MODEL_N_OUT];

static frame_reader    reader;
static uint8_t         kept[LINK_MTU]; /* answer to the last request that changed something, if it comes again */
static size_t          kept_n;         /* its bytes without CRC */
static uint32_t        answered;       /* CRC of the request it answers */
static uint8_t         have_answer;
static uint8_t        *reply;     /* the answer in the making: kept, or the reader's data */
static uint8_t        *reply_end; /* behind its last byte so far */
static uint32_t        n_good, n_damaged, n_steps, n_repeats;
static uint32_t        tick_overhead; /* of two reads of the counter */
static const uint32_t *deepest;       /* stack word, over all paintings */

/* ---- building the reply ---- */

static uint8_t *grow(size_t n)
{
    uint8_t *p = reply_end;
    reply_end += n;
    return p;
}

static void put8(uint32_t v)
{
    *grow(1) = (uint8_t)v;
}

static void put16(uint32_t v)
{
    stw_put16(grow(2), (uint16_t)v);
}

static void put32(uint32_t v)
{
    stw_put32(grow(4), v);
}

/* A host numbers all its requests one after the other: those outside of the session count, too. */
static void count_turn(uint8_t seq)
{
    if (seq == next) {
        next++;
        session += next == 0 && session != 0;
    }
}

/* ---- messages: payload p[n] without the session; 0 or LINK_ERROR_*; `status` explains some errors ---- */

static int status;

static int on_info(const uint8_t *p, size_t n)
{
    static const char name[] = TEXT(BOARD_NAME);

    (void)p;
    (void)n;
    put8(LINK_PROTOCOL);
    put8(LINK_MTU);
    put16(model->n_in);
    put16(model->n_out);
    put8(model->y_frac);
    put8((uint32_t)model_status);
    put32(board_ticks_hz());
    put32(board_cpu_hz());
    put32(stw_version());
    put32(model->id);
    put32((uint32_t)stw_ram_bytes(model));
    put32((uint32_t)snapshot_bytes);
    put32(update_get().room);
    put32(update_get().version);
    memcpy(grow(sizeof name - 1), name, sizeof name - 1);
    return 0;
}

static int on_reset(const uint8_t *p, size_t n)
{
    uint32_t nonce = stw_get32(p);

    (void)n;
    if (nonce == 0) {
        return LINK_ERROR_RANGE;
    }
    session = nonce;
    next    = reply[1]; /* RESET's own seq */
    count_turn(next);
    transfer_holds = HOLDS_NOTHING;
    stw_reset(&stream);
    return 0;
}

/* Ticks of one stw_step from x to y.  Inline: its frame is not part of a step's stack. */
static inline __attribute__((always_inline)) uint32_t timed_step(void)
{
    uint32_t start = board_ticks();

    stw_step(&stream, x, y);
    return board_ticks() - start - tick_overhead;
}

static int on_step(const uint8_t *p, size_t n)
{
    size_t   count = p[0];
    uint32_t cost  = 0;
    uint8_t *cost_at;

    if (n - 1u != count * 2u * model->n_in) {
        return LINK_ERROR_LENGTH;
    }
    if (count == 0 || STEP_REPLY + count * 4u * model->n_out > PAYLOAD_MAX) {
        return LINK_ERROR_RANGE;
    }
    put8((uint32_t)count);
    cost_at = grow(4);
    for (p++; count > 0; count--) {
        for (size_t j = 0; j < model->n_in; j++, p += 2) {
            x[j] = (int16_t)stw_get16(p);
        }
        cost += timed_step();
        n_steps++;
        for (size_t k = 0; k < model->n_out; k++) {
            put32((uint32_t)y[k]);
        }
    }
    stw_put32(cost_at, cost);
    return 0;
}

static int on_get_state(const uint8_t *p, size_t n)
{
    size_t offset = stw_get16(p);
    size_t count;

    (void)n;
    if (offset >= snapshot_bytes) {
        return LINK_ERROR_RANGE;
    }
    if (offset == 0) {
        (void)stw_save(&stream, transfer, sizeof transfer); /* cannot fail: transfer has room */
        transfer_holds = HOLDS_STATE;
    }
    if (transfer_holds != HOLDS_STATE) {
        return LINK_ERROR_ORDER;
    }
    count = snapshot_bytes - offset;
    count = count < PAYLOAD_MAX ? count : PAYLOAD_MAX;
    memcpy(grow(count), transfer + offset, count);
    return 0;
}

static int on_set_state(const uint8_t *p, size_t n)
{
    size_t offset = stw_get16(p);
    size_t count  = n - 2u;

    if (offset > snapshot_bytes || count > snapshot_bytes - offset) {
        return LINK_ERROR_RANGE;
    }
    memcpy(transfer + offset, p + 2, count);
    transfer_holds = HOLDS_NOTHING; /* pieces of a snapshot are nothing to read back */
    if (offset + count < snapshot_bytes) {
        return 0;
    }
    status = stw_load(&stream, transfer, snapshot_bytes);
    return status == STW_OK ? 0 : (int)LINK_ERROR_STATE;
}

static int on_probe_input(const uint8_t *p, size_t n)
{
    size_t offset = stw_get16(p) * sizeof(int16_t);
    size_t count  = n - 2u;

    if (count % 2u != 0) {
        return LINK_ERROR_LENGTH;
    }
    if (offset > sizeof transfer || count > sizeof transfer - offset) {
        return LINK_ERROR_RANGE;
    }
    if (offset != 0 && (transfer_holds != HOLDS_INPUT || offset != input_bytes)) {
        return LINK_ERROR_ORDER; /* a piece is missing */
    }
    for (size_t k = 0; k < count; k += 2) {
        int16_t v = (int16_t)stw_get16(p + 2 + k);
        memcpy(transfer + offset + k, &v, sizeof v);
    }
    transfer_holds = HOLDS_INPUT;
    input_bytes    = offset + count;
    return 0;
}

static void put_unit(const stw_unit *unit)
{
    for (size_t k = 0; k < 4; k++) {
        put16((uint16_t)unit->z[k]);
    }
    for (size_t k = 0; k < 4; k++) {
        put16((uint16_t)unit->gate[k]);
    }
    put32((uint32_t)unit->c);
    put16((uint16_t)unit->h);
}

static int on_probe(const uint8_t *p, size_t n)
{
    size_t   layer = p[0], first = stw_get16(p + 1), count = p[3];
    stw_unit unit;

    (void)n;
    if (transfer_holds != HOLDS_INPUT) {
        return LINK_ERROR_ORDER;
    }
    if (layer >= model->n_layers || count * LINK_UNIT_BYTES > PAYLOAD_MAX ||
        model->layers[layer].n_in * sizeof(int16_t) != input_bytes) {
        return LINK_ERROR_RANGE;
    }
    for (; count > 0; count--, first++) {
        status = stw_probe(&stream, layer, (const int16_t *)(const void *)transfer, first, &unit);
        if (status != STW_OK) {
            return LINK_ERROR_RANGE;
        }
        put_unit(&unit);
    }
    return 0;
}

/* Lowers `deepest` to the lowest stack word in use since it was painted. */
static void note_stack(void)
{
    const uint32_t *now = cpu_deepest_stack();

    deepest = !deepest || now < deepest ? now : deepest;
}

static uint32_t stack_bytes(const uint32_t *from, const uint32_t *down_to)
{
    return from > down_to ? (uint32_t)(from - down_to) * 4u : 0u;
}

/* Bytes of stack that one step takes below this function's frame. */
static __attribute__((noinline)) uint32_t step_stack(uint32_t *cost)
{
    cpu_paint_stack(cpu_stack_pointer());
    *cost = timed_step();
    return stack_bytes(cpu_stack_pointer(), cpu_deepest_stack());
}

static int on_bench(const uint8_t *p, size_t n)
{
    uint32_t cost, stack;

    (void)p;
    (void)n;
    note_stack(); /* painting forgets */
    (void)stw_save(&stream, transfer, sizeof transfer);
    transfer_holds = HOLDS_NOTHING;
    stack          = step_stack(&cost);
    status         = stw_load(&stream, transfer, snapshot_bytes);
    put32(cost);
    put32(stack);
    return status == STW_OK ? 0 : (int)LINK_ERROR_STATE;
}

static int on_mem(const uint8_t *p, size_t n)
{
    (void)p;
    (void)n;
    note_stack();
    put32(stack_bytes(cpu_stack_top, deepest));
    put32(stack_bytes(cpu_stack_top, cpu_stack_low));
    put32(stack_bytes(cpu_data_top, cpu_data_low));
    put32((uint32_t)stw_ram_bytes(model));
    return 0;
}

static int on_echo(const uint8_t *p, size_t n)
{
    (void)p;
    (void)grow(n); /* the answer is made where the question stands */
    return 0;
}

static int on_stat(const uint8_t *p, size_t n)
{
    (void)p;
    (void)n;
    put32(n_good);
    put32(n_damaged);
    put32(n_steps);
    put32(n_repeats);
    return 0;
}

/* ---- field updates: update.c ---- */

/* The model that update.c has chosen; nothing of another one's stream or session stays. */
static void start_model(void)
{
    model          = update_model();
    snapshot_bytes = stw_snapshot_bytes(model);
    session        = 0;
    transfer_holds = HOLDS_NOTHING;
    model_status   = stw_init(&stream, model, stream_ram, sizeof stream_ram);
}

static int on_blob_status(const uint8_t *p, size_t n)
{
    update_state state = update_get();

    (void)p;
    (void)n;
    put32(state.room);
    put32(state.version);
    put32(MODEL_RAM_BYTES);
    put32(state.received);
    put8(state.slot);
    put8(state.packing);
    return 0;
}

static int on_blob_begin(const uint8_t *p, size_t n)
{
    int error = update_begin(p);

    (void)n;
    put32(update_get().received);
    return error;
}

static int on_blob_write(const uint8_t *p, size_t n)
{
    return update_write(stw_get32(p), p + 4, n - 4u);
}

static int on_blob_commit(const uint8_t *p, size_t n)
{
    int error = update_commit(&status);

    (void)p;
    (void)n;
    if (error == 0) {
        start_model();
    }
    return error;
}

/* ---- the table: lengths are checked here, before a handler reads anything ---- */

typedef enum rule {
    ANY_TIME, /* changes nothing: done again when it comes again */
    ONCE,     /* its answer is kept for the same request again */
    IN_TURN   /* ONCE, and needs a model that works, the session and the seq of the next request */
} rule;

typedef struct handler {
    uint8_t type;
    uint8_t rule;
    uint8_t min, max; /* payload bytes, the session not counted */
    int (*run)(const uint8_t *p, size_t n);
} handler;

#define REST (PAYLOAD_MAX - SESSION_BYTES)

static const handler handlers[] = {
    {LINK_TYPE_INFO, ANY_TIME, 0, 0, on_info},
    {LINK_TYPE_RESET, ONCE, 4, 4, on_reset},
    {LINK_TYPE_STEP, IN_TURN, 1, REST, on_step},
    {LINK_TYPE_GET_STATE, IN_TURN, 2, 2, on_get_state},
    {LINK_TYPE_SET_STATE, IN_TURN, 2, REST, on_set_state},
    {LINK_TYPE_PROBE_INPUT, IN_TURN, 2, REST, on_probe_input},
    {LINK_TYPE_PROBE, IN_TURN, 4, 4, on_probe},
    {LINK_TYPE_BENCH, IN_TURN, 0, 0, on_bench},
    {LINK_TYPE_MEM, ANY_TIME, 0, 0, on_mem},
    {LINK_TYPE_ECHO, ANY_TIME, 0, PAYLOAD_MAX, on_echo},
    {LINK_TYPE_STAT, ANY_TIME, 0, 0, on_stat},
    {LINK_TYPE_BLOB_STATUS, ANY_TIME, 0, 0, on_blob_status},
    {LINK_TYPE_BLOB_BEGIN, ONCE, LINK_MANIFEST_BYTES, LINK_MANIFEST_BYTES, on_blob_begin},
    {LINK_TYPE_BLOB_WRITE, ONCE, 4, PAYLOAD_MAX, on_blob_write},
    {LINK_TYPE_BLOB_COMMIT, ONCE, 0, 0, on_blob_commit},
};

static const handler *find_handler(uint8_t type)
{
    for (size_t i = 0; i < sizeof handlers / sizeof handlers[0]; i++) {
        if (handlers[i].type == type) {
            return &handlers[i];
        }
    }
    return NULL;
}

/* 0 for the next request of the session. */
static int turn_check(uint8_t seq, const uint8_t *p, size_t n)
{
    if (n < SESSION_BYTES) {
        return LINK_ERROR_LENGTH;
    }
    if (session == 0 || stw_get32(p) != session) {
        return LINK_ERROR_SESSION;
    }
    if (seq == next) {
        return 0;
    }
    return (uint8_t)(next - seq) <= 128u ? LINK_ERROR_OLD : LINK_ERROR_GAP;
}

/* A new session's number is above that of the session before, in arithmetic modulo 2^32: an old RESET's is not. */
static int is_old_session(const uint8_t *p, size_t n)
{
    return n == SESSION_BYTES && session != 0 && stw_get32(p) != 0 && stw_get32(p) - session - 1u >= 0x7FFFFFFFu;
}

/* 0 when the request may be done now.  What is refused here leaves no trace. */
static int admit(const handler *h, uint8_t seq, const uint8_t *p, size_t n)
{
    if (!h) {
        return LINK_ERROR_TYPE;
    }
    if ((h->rule == IN_TURN || h->type == LINK_TYPE_RESET) && model_status != STW_OK) {
        status = model_status;
        return LINK_ERROR_MODEL;
    }
    if (h->rule == IN_TURN) {
        return turn_check(seq, p, n);
    }
    return h->type == LINK_TYPE_RESET && is_old_session(p, n) ? (int)LINK_ERROR_OLD : 0;
}

static int run_handler(const handler *h, const uint8_t *p, size_t n)
{
    if (h->rule == IN_TURN) {
        p += SESSION_BYTES;
        n -= SESSION_BYTES;
    }
    return n < h->min || n > h->max ? (int)LINK_ERROR_LENGTH : h->run(p, n);
}

static void begin_reply(const handler *h, uint8_t type, uint8_t seq, uint32_t crc, int refused)
{
    reply = reader.data; /* a handler of the rule ANY_TIME has read its payload before it writes */
    if (h && !refused && h->rule != ANY_TIME) {
        reply       = kept;
        answered    = crc;
        have_answer = 1;
    }
    reply_end = reply;
    put8((uint32_t)type | LINK_REPLY);
    put8(seq);
}

/* Does the request in the reader: type, seq, payload[n]. */
static void answer(size_t n, uint32_t crc)
{
    uint8_t        type = reader.data[0], seq = reader.data[1];
    const uint8_t *p = reader.data + LINK_HEADER_BYTES;
    const handler *h = find_handler(type);
    int            refused, error;

    status  = STW_OK;
    refused = admit(h, seq, p, n);
    begin_reply(h, type, seq, crc, refused);
    if (!h || refused == 0) {
        count_turn(seq);
    }
    error = refused != 0 ? refused : run_handler(h, p, n);
    if (error != 0) {
        reply[0]  = LINK_TYPE_ERROR;
        reply_end = reply + LINK_HEADER_BYTES;
        put8((uint32_t)error);
        put8((uint32_t)status);
        put8(type);
    }
    if (refused != 0) {
        put32(crc); /* of which request: seq alone does not tell an old one */
    }
    if (reply == kept) {
        kept_n = (size_t)(reply_end - reply);
    }
}

void service_byte(uint8_t byte)
{
    frame_event event = frame_read(&reader, byte);
    size_t      n;
    uint32_t    crc;

    if (event == FRAME_DAMAGED) {
        n_damaged++;
    }
    if (event != FRAME_GOOD) {
        return;
    }
    n_good++;
    n   = reader.n - LINK_CRC_BYTES;
    crc = stw_get32(reader.data + n);
    if (have_answer && crc == answered) {
        n_repeats++;
        frame_send(kept, kept_n, board_putc);
    } else {
        answer(n - LINK_HEADER_BYTES, crc);
        frame_send(reply, (size_t)(reply_end - reply), board_putc);
    }
}

static void say(const char *text)
{
    uint8_t frame[48] = {LINK_TYPE_LOG, 0};
    size_t  n         = LINK_HEADER_BYTES;

    while (*text && n < sizeof frame - LINK_CRC_BYTES) {
        frame[n++] = (uint8_t)*text++;
    }
    frame_send(frame, n, board_putc);
}

void service_init(void)
{
    uint32_t start;

    update_init();
    start_model();
    start         = board_ticks();
    tick_overhead = board_ticks() - start;
    say("stepwell on " TEXT(BOARD_NAME) " started");
}
