# Arm MPS2 with the AN500 image: Cortex-M7 on an FPGA. Facts: make includes this file, Python parses it.
TITLE         = Arm MPS2 AN500, Cortex-M7
CORE          = cortex-m7f
LABEL         = emulated
CPU_HZ        = 25000000
PORT          = cmsdk

FLASH_ORIGIN  = 0x00000000
FLASH_BYTES   = 0x00400000
RAM_ORIGIN    = 0x20000000
RAM_BYTES     = 0x00400000
STACK_BYTES   = 4096

UART          = cmsdk
UART_BASE     = 0x40004000
UART_BAUD     = 115200
TIMER         = cmsdk
TIMER_BASE    = 0x40000000
TIMER_HZ      = 25000000

QEMU          = qemu-system-arm -M mps2-an500
QEMU_TIMER_HZ = 25000000
SIM_CPU       = m7
FLASH_RUNNERS =
