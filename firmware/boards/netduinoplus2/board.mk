# Netduino Plus 2: STM32F405RG, Cortex-M4F. Facts: make includes this file, Python parses it.
TITLE         = Netduino Plus 2, STM32F405RG, Cortex-M4F
LIKE          = nucleo-f446re

FLASH_BYTES   = 0x00100000

# USART1 on the header's SCL (PB6, TX) and SDA (PB7, RX): PA9 and PA10 serve USB and an LED here
UART_BASE     = 0x40011000
UART_GPIO     = 0x40020400
UART_TX_PIN   = 6
UART_RX_PIN   = 7

# QEMU has no cycle counter: the port falls back to TIM2 / 16, and QEMU clocks TIM2 with 1 GHz
QEMU          = qemu-system-arm -M netduinoplus2
QEMU_TIMER_HZ = 62500000

FLASH_RUNNERS = openocd pyocd st-flash dfu-util stm32loader
OPENOCD_FILES = interface/stlink.cfg target/stm32f4x.cfg
PYOCD_TARGET  = stm32f405rgtx
DFU_ALT       = 0
DFU_DEVICE    = 0483:df11
USB_IDS       =
