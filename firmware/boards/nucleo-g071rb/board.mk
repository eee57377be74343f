# Nucleo-G071RB: STM32G071RB, Cortex-M0+. Facts: make includes this file, Python parses it.
TITLE         = Nucleo-G071RB, STM32G071RB, Cortex-M0+
CORE          = cortex-m0plus
LABEL         = emulated
CPU_HZ        = 64000000

FLASH_ORIGIN  = 0x08000000
FLASH_BYTES   = 0x00020000
RAM_ORIGIN    = 0x20000000
RAM_BYTES     = 0x00009000
STACK_BYTES   = 2048

# USART2 on PA2 and PA3: the ST-LINK's serial port (UM2324 6.9)
UART          = stm32_2
UART_BASE     = 0x40004400
UART_BAUD     = 115200
TIMER         = stm32
TIMER_BASE    = 0x40000000
TIMER_HZ      = 64000000

# by the simulator alone, whose UART, timer and flash controller are ours: no QEMU has this board
SIM_CPU       = m0

FLASH_RUNNERS = openocd st-flash pyocd stm32loader
OPENOCD_FILES = board/st_nucleo_g0.cfg
PYOCD_TARGET  = stm32g071rbtx
STM32LOADER_FAMILY = G0
USB_IDS       = 0483:374b
