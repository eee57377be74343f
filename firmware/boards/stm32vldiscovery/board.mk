# STM32VLDISCOVERY: STM32F100RB, Cortex-M3. Facts: make includes this file, Python parses it.
TITLE         = STM32VLDISCOVERY, STM32F100RB, Cortex-M3
CORE          = cortex-m3
LABEL         = emulated
CPU_HZ        = 24000000

FLASH_ORIGIN  = 0x08000000
FLASH_BYTES   = 0x00020000
RAM_ORIGIN    = 0x20000000
RAM_BYTES     = 0x00002000
STACK_BYTES   = 2048

# USART1 on PA9 (TX) and PA10 (RX), for an adapter: the board's ST-LINK has no serial port
UART_BASE     = 0x40013800
UART_BAUD     = 115200
TIMER_BASE    = 0xE000E010
TIMER_HZ      = 3000000

# QEMU has no cycle counter: board.c falls back to SysTick at an eighth of the CPU clock, TIMER_HZ
QEMU          = qemu-system-arm -M stm32vldiscovery
QEMU_TIMER_HZ = 3000000

FLASH_RUNNERS = openocd st-flash pyocd stm32loader
OPENOCD_FILES = board/stm32vldiscovery.cfg
PYOCD_TARGET  = stm32f100rb
STM32LOADER_FAMILY = F1
