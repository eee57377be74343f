# Arm MPS2 with the AN505 image: Cortex-M33 on an FPGA, in the secure state. Facts: make includes this file, Python parses it.
TITLE         = Arm MPS2 AN505, Cortex-M33
LIKE          = mps2-an500
CORE          = cortex-m33f
CPU_HZ        = 20000000

FLASH_ORIGIN  = 0x10000000
RAM_ORIGIN    = 0x38000000
RAM_BYTES     = 0x00200000

UART_BASE     = 0x50200000
TIMER_BASE    = 0x50000000
TIMER_HZ      = 20000000

QEMU          = qemu-system-arm -M mps2-an505
QEMU_TIMER_HZ = 20000000
SIM_CPU       = m33
