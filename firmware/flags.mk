# Compiler flags and sources of every image: make includes this file, Python parses it (KEY = value, nothing else).

WARNINGS  = -Wall -Wextra -Wconversion -Wstrict-prototypes -Wmissing-prototypes
CFLAGS    = -std=c99 -O2 -g -ffreestanding -ffunction-sections -fdata-sections
LDFLAGS   = -nostdlib -Wl,--gc-sections

# per compiler; zig has no libc headers for bare metal, and its default is to inject run-time checks
GCC       = arm-none-eabi-gcc
GCC_FLAGS = -fno-common
GCC_LIBS  = -lgcc
ZIG       = zig cc
ZIG_FLAGS = -fno-sanitize=all -fno-unroll-loops -fno-unwind-tables -fno-asynchronous-unwind-tables -fno-stack-protector
ZIG_LIBS  =

APP       = app/main.c app/service.c app/update.c app/frame.c app/mlperf.c
APP_DIRS  = app . ports

# field updates: no board takes any unless its board.mk says otherwise
UPDATE_BYTES      = 0
UPDATE_PAGE_BYTES = 0
UPDATE_RAM_BYTES  = 0

# facts of board.mk that C (and those that its PORT_FACTS names) and the linker script see as BOARD_<KEY>
C_FACTS   = NAME CPU_HZ UART_BASE UART_BAUD TIMER_BASE TIMER_HZ FLASH_ORIGIN FLASH_BYTES UPDATE_BYTES UPDATE_PAGE_BYTES UPDATE_RAM_BYTES
LD_FACTS  = FLASH_ORIGIN FLASH_BYTES RAM_ORIGIN RAM_BYTES STACK_BYTES UPDATE_BYTES
