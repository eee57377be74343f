# nRF52840-DK: nRF52840, Cortex-M4F. Facts: make includes this file, Python parses it.
TITLE         = nRF52840-DK, nRF52840, Cortex-M4F
CORE          = cortex-m4f
LABEL         = emulated
CPU_HZ        = 64000000
PORT          = nrf5
PORT_FACTS    = UART_TX_PIN UART_RX_PIN

FLASH_ORIGIN  = 0x00000000
FLASH_BYTES   = 0x00100000
RAM_ORIGIN    = 0x20000000
RAM_BYTES     = 0x00040000
STACK_BYTES   = 4096

# the end of flash, by the chip's own controller (NVMC)
UPDATE_BYTES      = 0x00040000
UPDATE_PAGE_BYTES = 4096
UPDATE_RAM_BYTES  = 16384

# P0.06 and P0.08: the debugger's first serial port
UART          = nrf5
UART_BASE     = 0x40002000
UART_BAUD     = 115200
UART_TX_PIN   = 6
UART_RX_PIN   = 8
TIMER         = dwt
TIMER_BASE    = 0x40008000
TIMER_HZ      = 16000000

# by the simulator alone, whose UART, timer and flash controller are ours: no QEMU has this board
SIM_CPU       = m4

FLASH_RUNNERS = openocd pyocd
OPENOCD_FILES = board/nordic_nrf52_dk.cfg
PYOCD_TARGET  = nrf52840
USB_IDS       = 1366:1015 1366:1051 1366:0105
