/* mlperf.c - see mlperf.h.  Commands are words between spaces, up to a %:
 *   name%  profile%  help%  timestamp%  results%  infer N [W]%  db load N%  db HEX%  db print%
 * The buffer of db holds the steps of one sequence, codes as little-endian int16.  An inference resets the model and
 * runs them all; its results are the last outputs, as exact decimals.  Every buffer is bounded, and nothing is divided.
 */
#include "mlperf.h"

#include <string.h>

#include "app_model.h"
#include "board.h"
#include "stw_bytes.h"

#ifndef MLPERF_INPUT_BYTES
#define MLPERF_INPUT_BYTES 4096u /* of the longest sequence */
#endif

#define TEXT_OF(name) #name
#define TEXT(name)    TEXT_OF(name)

#define COMMAND_BYTES  96u
#define MAX_WORDS      4u
#define STEP_BYTES     (2u * APP_MODEL_N_IN)
#define DEFAULT_WARMUP 10u
#define BYTES_A_LINE   8u
#define NO_NUMBER      0xFFFFFFFFu
#define PROFILE        "ULPMark for tinyML Firmware V0.0.1" /* what runners know this interface by */

#ifndef MLPERF_MOST_RUNS
#define MLPERF_MOST_RUNS 1000000u /* a build for fuzzing has less, to come to an end */
#endif

static STW_ALIGN4 uint8_t stream_ram[APP_MODEL_RAM_BYTES];
static stw_stream         stream;
static int                model_status;
static int32_t            y[APP_MODEL_N_OUT];
static uint8_t            have_results;

static uint8_t  input[MLPERF_INPUT_BYTES];
static uint32_t input_size, input_n; /* bytes that db load announced, and that have come */

static char    command[COMMAND_BYTES + 1u];
static size_t  command_n;
static uint8_t too_long;

static uint64_t ticks; /* since the start */
static uint32_t last_ticks;

/* ---- numbers and text ---- */

static void put(const char *text)
{
    while (*text) {
        board_putc((uint8_t)*text++);
    }
}

/* n / by and the rest, bit by bit: the program links no division. */
static uint64_t divide(uint64_t n, uint32_t by, uint32_t *rest)
{
    uint64_t left = 0, quotient = 0;

    for (int bit = 63; bit >= 0; bit--) {
        left = left << 1 | (n >> bit & 1u);
        quotient <<= 1;
        if (left >= by) {
            left -= by;
            quotient |= 1u;
        }
    }
    *rest = (uint32_t)left;
    return quotient;
}

static void put_number(uint64_t n)
{
    char     digits[21];
    size_t   i = sizeof digits - 1;
    uint32_t digit;

    digits[i] = 0;
    do {
        n           = divide(n, 10, &digit);
        digits[--i] = (char)('0' + digit);
    } while (n != 0);
    put(digits + i);
}

/* v / 2^frac, every digit of it. */
static void put_exact(int32_t v, unsigned int frac)
{
    uint32_t size = v < 0 ? 0u - (uint32_t)v : (uint32_t)v;
    uint64_t rest = size & (((uint32_t)1 << frac) - 1u);

    if (v < 0) {
        board_putc('-');
    }
    put_number(size >> frac);
    board_putc('.');
    do {
        rest = (rest << 3) + (rest << 1);
        board_putc((uint8_t)('0' + (rest >> frac)));
        rest &= ((uint64_t)1 << frac) - 1u;
    } while (rest != 0);
}

static void put_hex(uint32_t v, int n_digits)
{
    for (int shift = 4 * (n_digits - 1); shift >= 0; shift -= 4) {
        board_putc((uint8_t) "0123456789abcdef"[v >> shift & 15u]);
    }
}

static int same(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

/* A line of two texts and a number between them; no number: NO_NUMBER. */
static void say(const char *before, uint32_t number, const char *after)
{
    put(before);
    if (number != NO_NUMBER) {
        put_number(number);
    }
    put(after);
    put("\r\n");
}

static void fail(const char *why)
{
    put("e-[");
    say(why, NO_NUMBER, "]");
}

/* Decimal, at most MLPERF_MOST_RUNS; NO_NUMBER for anything else. */
static uint32_t number_of(const char *text)
{
    uint32_t n = 0;

    if (!*text) {
        return NO_NUMBER;
    }
    for (; *text; text++) {
        if (*text < '0' || *text > '9') {
            return NO_NUMBER;
        }
        n = 10u * n + (uint32_t)(*text - '0');
        if (n > MLPERF_MOST_RUNS) {
            return NO_NUMBER;
        }
    }
    return n;
}

/* The value of a hexadecimal digit, or -1. */
static int nibble(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c = (char)(c | 32); /* lower case */
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* ---- time ---- */

/* Often enough that the board's counter cannot wrap unseen. */
static void count_ticks(void)
{
    uint32_t now = board_ticks();

    ticks += now - last_ticks;
    last_ticks = now;
}

void mlperf_idle(void)
{
    count_ticks();
}

/* Whole seconds first: ticks times a million would not fit. */
static void on_timestamp(void)
{
    uint32_t rest, none;
    uint64_t us;

    count_ticks();
    us = divide(ticks, board_ticks_hz(), &rest) * 1000000u;
    us += divide((uint64_t)rest * 1000000u, board_ticks_hz(), &none);
    put("m-lap-us-");
    put_number(us);
    put("\r\n");
}

/* ---- inference ---- */

static void infer_once(void)
{
    int16_t x[APP_MODEL_N_IN];

    stw_reset(&stream);
    memset(y, 0, sizeof y);
    for (const uint8_t *p = input; p < input + input_size; p += STEP_BYTES) {
        for (size_t j = 0; j < APP_MODEL_N_IN; j++) {
            x[j] = (int16_t)stw_get16(p + 2 * j);
        }
        stw_step(&stream, x, y);
        count_ticks();
    }
}

static void on_results(void)
{
    if (!have_results) {
        fail("No inference yet");
        return;
    }
    put("m-results-[");
    for (size_t k = 0; k < APP_MODEL_N_OUT; k++) {
        if (k > 0) {
            board_putc(',');
        }
        put_exact(y[k], app_model.y_frac);
    }
    put("]\r\n");
}

static void on_infer(char **words, size_t n_words)
{
    uint32_t n = n_words > 1 ? number_of(words[1]) : 1u, warmup = n_words > 2 ? number_of(words[2]) : DEFAULT_WARMUP;

    if (n == NO_NUMBER || n == 0) {
        fail("Inference iterations must be >0 and at most 1000000");
        return;
    }
    if (warmup == NO_NUMBER) {
        fail("Inference warmup must be >=0 and at most 1000000");
        return;
    }
    if (model_status != STW_OK) {
        fail(stw_strerror(model_status));
        return;
    }
    if (input_size == 0 || input_n != input_size) {
        fail("No input: db load N, then db HEX");
        return;
    }
    say("m-warmup-start-", warmup, "");
    while (warmup-- > 0) {
        infer_once();
    }
    say("m-warmup-done", NO_NUMBER, "");
    say("m-infer-start-", n, "");
    on_timestamp();
    while (n-- > 0) {
        infer_once();
    }
    on_timestamp();
    have_results = 1;
    say("m-infer-done", NO_NUMBER, "");
    on_results();
}

/* ---- the buffer ---- */

static uint32_t steps_in(uint32_t n_bytes)
{
    uint32_t rest;
    uint32_t n = (uint32_t)divide(n_bytes, STEP_BYTES, &rest);

    return rest == 0 ? n : 0u;
}

static void on_load(const char *text)
{
    uint32_t n = number_of(text);

    input_size = input_n = 0;
    if (n == NO_NUMBER || n > MLPERF_INPUT_BYTES) {
        say("e-[The buffer holds at most ", MLPERF_INPUT_BYTES, " bytes]");
    } else if (steps_in(n) == 0) {
        say("e-[Bytes must be a multiple of a step's ", STEP_BYTES, "]");
    } else {
        input_size = n;
        say("m-[Expecting ", n, " bytes]");
    }
}

static void on_print(void)
{
    for (uint32_t i = 0; i < input_n; i++) {
        put(i % BYTES_A_LINE == 0 ? "m-buffer-" : "-");
        put_hex(input[i], 2);
        if (i % BYTES_A_LINE == BYTES_A_LINE - 1u || i + 1u == input_n) {
            put("\r\n");
        }
    }
}

/* All of the digits or none; what goes beyond the announced size is left out, as runners expect. */
static void on_hex(const char *text)
{
    size_t n = 0;

    if (input_n == input_size) {
        fail("db load N comes first");
        return;
    }
    for (; text[n]; n++) {
        if (nibble(text[n]) < 0) {
            fail("Invalid hex digit");
            return;
        }
    }
    if (n % 2u != 0) {
        fail("Insufficient number of hex digits");
        return;
    }
    for (; *text && input_n < input_size; text += 2) {
        input[input_n++] = (uint8_t)(nibble(text[0]) << 4 | nibble(text[1]));
    }
    if (input_n == input_size) {
        say("m-load-done", NO_NUMBER, "");
    }
}

static void on_db(char **words, size_t n_words)
{
    if (n_words < 2) {
        fail("Command 'db' requires a subcommand");
    } else if (same(words[1], "load")) {
        on_load(n_words > 2 ? words[2] : "");
    } else if (same(words[1], "print")) {
        on_print();
    } else {
        on_hex(words[1]);
    }
}

/* ---- commands ---- */

static void on_help(void)
{
    put("m-help-[name, profile, help, timestamp]\r\n"
        "m-help-[db load N, db HEX, db print: a sequence, little-endian int16 codes]\r\n"
        "m-help-[infer N [W=10]: reset and run the sequence, N times after W warm-ups]\r\n"
        "m-help-[results: the last outputs]\r\n");
}

static void on_profile(void)
{
    put("m-profile-[" PROFILE "]\r\nm-model-[stepwell-");
    put_hex(app_model.id, 8);
    put("]\r\n");
}

/* Cuts the command into words where it stands; their number. */
static size_t split(char **words)
{
    size_t n = 0;

    for (char *p = command; *p && n < MAX_WORDS;) {
        while (*p == ' ') {
            *p++ = 0;
        }
        if (*p) {
            words[n++] = p;
        }
        while (*p && *p != ' ') {
            p++;
        }
    }
    return n;
}

static void run_command(void)
{
    char  *words[MAX_WORDS];
    size_t n = split(words);

    if (n == 0) {
        return; /* runners send a lone % to be in step */
    }
    if (same(words[0], "name")) {
        put("m-name-dut-[" TEXT(BOARD_NAME) "]\r\n");
    } else if (same(words[0], "profile")) {
        on_profile();
    } else if (same(words[0], "help")) {
        on_help();
    } else if (same(words[0], "timestamp")) {
        on_timestamp();
    } else if (same(words[0], "results")) {
        on_results();
    } else if (same(words[0], "infer")) {
        on_infer(words, n);
    } else if (same(words[0], "db")) {
        on_db(words, n);
    } else {
        fail("Unknown command");
    }
}

void mlperf_byte(uint8_t byte)
{
    if (byte != '%') {
        if (byte < ' ' || byte > '~') {
            return; /* line ends and noise */
        }
        if (command_n < COMMAND_BYTES) {
            command[command_n++] = (char)byte;
        } else {
            too_long = 1;
        }
        return;
    }
    command[command_n] = 0;
    if (too_long) {
        fail("Command too long");
    } else {
        run_command();
    }
    command_n = 0;
    too_long  = 0;
    put("m-ready\r\n");
}

void mlperf_init(void)
{
    model_status = stw_init(&stream, &app_model, stream_ram, sizeof stream_ram);
    last_ticks   = board_ticks();
    put("m-init-done\r\nm-ready\r\n");
}
