# Nucleo-F446RE: STM32F446RE, Cortex-M4F. Facts: make includes this file, Python parses it.
TITLE         = Nucleo-F446RE, STM32F446RE, Cortex-M4F
CORE          = cortex-m4f
LABEL         = emulated
# 180 MHz would need the over-drive mode (RM0390 5.1.4)
CPU_HZ        = 168000000
PORT          = stm32f4
PORT_FACTS    = UART_GPIO UART_TX_PIN UART_RX_PIN UART_FUNCTION

FLASH_ORIGIN  = 0x08000000
FLASH_BYTES   = 0x00080000
RAM_ORIGIN    = 0x20000000
RAM_BYTES     = 0x00020000
STACK_BYTES   = 4096

# USART2 on PA2 and PA3: the ST-LINK's serial port (UM1724 6.8)
UART          = stm32
UART_BASE     = 0x40004400
UART_BAUD     = 115200
UART_GPIO     = 0x40020000
UART_TX_PIN   = 2
UART_RX_PIN   = 3
UART_FUNCTION = 7
TIMER         = dwt
TIMER_BASE    = 0x40000000
TIMER_HZ      = 84000000

# by the simulator alone, whose UART, timer and flash controller are ours: no QEMU has this board
SIM_CPU       = m4

FLASH_RUNNERS = openocd st-flash pyocd stm32loader
OPENOCD_FILES = board/st_nucleo_f4.cfg
PYOCD_TARGET  = stm32f446retx
STM32LOADER_FAMILY = F4
USB_IDS       = 0483:374b
