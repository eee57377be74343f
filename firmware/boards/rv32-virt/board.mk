# QEMU's RISC-V machine "virt" with RV32IMAC, the instruction set of an ESP32-C3. Facts: make includes this file, Python parses it.
TITLE         = QEMU virt, RV32IMAC
CORE          = rv32imac
LABEL         = emulated
CPU_HZ        = 100000000
PORT          = virt

FLASH_ORIGIN  = 0x80000000
FLASH_BYTES   = 0x00400000
RAM_ORIGIN    = 0x80400000
RAM_BYTES     = 0x00400000
STACK_BYTES   = 4096

UART_BASE     = 0x10000000
UART_BAUD     = 115200
TIMER_BASE    = 0
TIMER_HZ      = 100000000

# under QEMU the counter shows virtual nanoseconds, not instructions
QEMU          = qemu-system-riscv32 -M virt -bios none
QEMU_TIMER_HZ = 1000000000
FLASH_RUNNERS =
