/* bench.c - the program of tools/bench_mcu.py: ticks of known loops, of nothing, and of steps, as lines of text. */
#include "app_model.h"
#include "board.h"
#include "cpu.h"
#include "stepwell.h"

#define STEPS 6

static STW_ALIGN4 uint8_t bench_ram[APP_MODEL_RAM_BYTES];
static stw_stream         bench_stream;
static int16_t            bench_x[(APP_MODEL_N_IN + 1) & ~1] __attribute__((aligned(4)));
static int32_t            bench_y[APP_MODEL_N_OUT];

static void bench_put(const char *text)
{
    while (*text) {
        board_putc((uint8_t)*text++);
    }
}

/* In hexadecimal: no division. */
static void bench_line(const char *what, uint32_t value)
{
    bench_put(what);
    board_putc(' ');
    for (int shift = 28; shift >= 0; shift -= 4) {
        board_putc((uint8_t) "0123456789abcdef"[value >> shift & 15u]);
    }
    board_putc('\n');
}

/* 2 n instructions, and those of the call. */
__attribute__((naked, noinline)) static void bench_known(uint32_t n __attribute__((unused)))
{
#if defined(__riscv)
    __asm__ volatile("1: addi a0, a0, -1 \n bnez a0, 1b \n ret \n");
#else
    __asm__ volatile(".syntax unified \n 1: subs r0, #1 \n bne 1b \n bx lr \n");
#endif
}

static void bench_input(int t)
{
    for (int k = 0; k < APP_MODEL_N_IN; k++) {
        bench_x[k] = (int16_t)((t * 7919 + k * 12345) * 31);
    }
}

/* Bytes of stack that one step takes below this function's frame. */
static __attribute__((noinline)) uint32_t bench_stack(void)
{
    const uint32_t *deepest;

    cpu_paint_stack(cpu_stack_pointer());
    (void)stw_step(&bench_stream, bench_x, bench_y);
    deepest = cpu_deepest_stack();
    return (uint32_t)(cpu_stack_pointer() - deepest) * 4u;
}

int main(void)
{
    uint32_t start, end;

    board_init();
    if (stw_init(&bench_stream, &app_model, bench_ram, sizeof bench_ram) != STW_OK) {
        bench_put("refused 0\n");
    }
    start = board_ticks();
    end   = board_ticks();
    bench_line("nothing", end - start);
    for (uint32_t n = 1000; n <= 3000; n += 1000) {
        start = board_ticks();
        bench_known(n);
        end = board_ticks();
        bench_line("known", end - start);
    }
    for (int t = 0; t < STEPS; t++) {
        bench_input(t);
        start = board_ticks();
        (void)stw_step(&bench_stream, bench_x, bench_y);
        end = board_ticks();
        bench_line("step", end - start);
    }
    bench_line("digest", stw_digest(&bench_stream));
    bench_line("stack", bench_stack());
    bench_line("done", 0);
    for (;;) {
    }
}
