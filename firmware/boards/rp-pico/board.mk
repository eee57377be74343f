# Raspberry Pi Pico: RP2040, Cortex-M0+. Facts: make includes this file, Python parses it.
TITLE         = Raspberry Pi Pico, RP2040, Cortex-M0+
CORE          = cortex-m0plus
LABEL         = emulated
CPU_HZ        = 125000000

FLASH_ORIGIN  = 0x10000000
FLASH_BYTES   = 0x00200000
RAM_ORIGIN    = 0x20000000
RAM_BYTES     = 0x00042000
STACK_BYTES   = 4096

# UART0 on GP0 (TX) and GP1 (RX), for a debug probe or an adapter
UART_BASE     = 0x40034000
UART_BAUD     = 115200
TIMER_BASE    = 0x40054000
TIMER_HZ      = 125000000

RP2040JS      = rp2040
UF2_FAMILY    = 0xe48bff56

FLASH_RUNNERS = picotool uf2 openocd pyocd
OPENOCD_FILES = interface/cmsis-dap.cfg target/rp2040.cfg
PYOCD_TARGET  = rp2040
DRIVE_LABEL   = RPI-RP2
USB_IDS       = 2e8a:000c 2e8a:0004
