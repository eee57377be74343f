# Arm MPS3 with the AN547 image: Cortex-M55 with MVE on an FPGA, in the secure state. Facts: make includes this file, Python parses it.
TITLE         = Arm MPS3 AN547, Cortex-M55
CORE          = cortex-m55
LABEL         = emulated
CPU_HZ        = 32000000
PORT          = cmsdk
PORT_FACTS    = COUNTER_BASE

FLASH_ORIGIN  = 0x00000000
FLASH_BYTES   = 0x00080000
RAM_ORIGIN    = 0x30000000
RAM_BYTES     = 0x00080000
STACK_BYTES   = 4096

UART_BASE     = 0x59303000
UART_BAUD     = 115200
TIMER_BASE    = 0x58000000
COUNTER_BASE  = 0x58100000
TIMER_HZ      = 32000000

QEMU          = qemu-system-arm -M mps3-an547
QEMU_TIMER_HZ = 32000000
FLASH_RUNNERS =
