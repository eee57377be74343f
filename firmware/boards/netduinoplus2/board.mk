# Netduino Plus 2: STM32F405RG, Cortex-M4F. Facts: make includes this file, Python parses it.
TITLE         = Netduino Plus 2, STM32F405RG, Cortex-M4F
LABEL         = emulated
CPU           = cortex_m
CPU_GCC       = -mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard
CPU_ZIG       = -target thumb-freestanding-eabihf -mcpu=cortex_m4
CPU_HZ        = 168000000
PORT          = stm32f4
PORT_FACTS    = UART_GPIO UART_TX_PIN UART_RX_PIN UART_FUNCTION

FLASH_ORIGIN  = 0x08000000
FLASH_BYTES   = 0x00100000
RAM_ORIGIN    = 0x20000000
RAM_BYTES     = 0x00020000
STACK_BYTES   = 4096

# USART1 on the header's SCL (PB6, TX) and SDA (PB7, RX): PA9 and PA10 serve USB and an LED here
UART          = stm32
UART_BASE     = 0x40011000
UART_BAUD     = 115200
UART_GPIO     = 0x40020400
UART_TX_PIN   = 6
UART_RX_PIN   = 7
UART_FUNCTION = 7
TIMER         = dwt
TIMER_BASE    = 0x40000000
TIMER_HZ      = 84000000

# QEMU has no cycle counter: the port falls back to TIM2 / 16, and QEMU clocks TIM2 with 1 GHz
QEMU          = qemu-system-arm -M netduinoplus2
QEMU_TIMER_HZ = 62500000
SIM_CPU       = m4

FLASH_RUNNERS = openocd pyocd st-flash dfu-util stm32loader
OPENOCD_FILES = interface/stlink.cfg target/stm32f4x.cfg
PYOCD_TARGET  = stm32f405rgtx
DFU_ALT       = 0
DFU_DEVICE    = 0483:df11
STM32LOADER_FAMILY = F4
