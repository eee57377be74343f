# Arm MPS2 with the AN386 image: Cortex-M4F on an FPGA. Facts: make includes this file, Python parses it.
TITLE         = Arm MPS2 AN386, Cortex-M4F
LABEL         = emulated
CPU           = cortex_m
CPU_GCC       = -mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard
CPU_ZIG       = -target thumb-freestanding-eabihf -mcpu=cortex_m4
CPU_HZ        = 25000000
PORT          = cmsdk

FLASH_ORIGIN  = 0x00000000
FLASH_BYTES   = 0x00400000
RAM_ORIGIN    = 0x20000000
RAM_BYTES     = 0x00400000
STACK_BYTES   = 4096

# the end of the code SSRAM stands in for flash: emulated NOR, by ports/cmsdk.c
UPDATE_BYTES      = 0x00040000
UPDATE_PAGE_BYTES = 4096
UPDATE_RAM_BYTES  = 65536

UART          = cmsdk
UART_BASE     = 0x40004000
UART_BAUD     = 115200
TIMER         = cmsdk
TIMER_BASE    = 0x40000000
TIMER_HZ      = 25000000

QEMU          = qemu-system-arm -M mps2-an386
QEMU_TIMER_HZ = 25000000
SIM_CPU       = m4
FLASH_RUNNERS =
