# BBC micro:bit version 1: nRF51822, Cortex-M0. Facts: make includes this file, Python parses it.
TITLE         = BBC micro:bit v1, nRF51822, Cortex-M0
LIKE          = nrf52840dk
CORE          = cortex-m0
CPU_HZ        = 16000000

FLASH_BYTES   = 0x00040000
RAM_BYTES     = 0x00004000
STACK_BYTES   = 2048

# the end of flash, by the chip's own controller (NVMC)
UPDATE_BYTES      = 0x00010000
UPDATE_PAGE_BYTES = 1024
UPDATE_RAM_BYTES  = 2048

UART_TX_PIN   = 24
UART_RX_PIN   = 25
TIMER         = nrf5

QEMU          = qemu-system-arm -M microbit
QEMU_TIMER_HZ = 16000000
SIM_CPU       = m0

FLASH_RUNNERS = pyocd openocd drive
PYOCD_TARGET  = nrf51
OPENOCD_FILES = interface/cmsis-dap.cfg target/nrf51.cfg
DRIVE_LABEL   = MICROBIT
USB_IDS       = 0d28:0204
