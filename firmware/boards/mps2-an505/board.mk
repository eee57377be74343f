# Arm MPS2 with the AN505 image: Cortex-M33 on an FPGA, in the secure state. Facts: make includes this file, Python parses it.
TITLE         = Arm MPS2 AN505, Cortex-M33
LABEL         = emulated
CPU           = cortex_m
CPU_GCC       = -mcpu=cortex-m33 -mthumb -mfpu=fpv5-sp-d16 -mfloat-abi=hard
CPU_ZIG       = -target thumb-freestanding-eabihf -mcpu=cortex_m33+dsp
CPU_HZ        = 20000000
PORT          = cmsdk

FLASH_ORIGIN  = 0x10000000
FLASH_BYTES   = 0x00400000
RAM_ORIGIN    = 0x38000000
RAM_BYTES     = 0x00200000
STACK_BYTES   = 4096

UART          = cmsdk
UART_BASE     = 0x50200000
UART_BAUD     = 115200
TIMER         = cmsdk
TIMER_BASE    = 0x50000000
TIMER_HZ      = 20000000

QEMU          = qemu-system-arm -M mps2-an505
QEMU_TIMER_HZ = 20000000
SIM_CPU       = m33
FLASH_RUNNERS =
