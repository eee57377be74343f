# Arduino Uno, ATmega328P. Facts: make includes this file, Python parses it.
TITLE         = Arduino Uno, ATmega328P
CORE          = avr
LABEL         = emulated
CPU_GCC       = -mmcu=atmega328p
# a third of the flash less than with -O2, for 9 % more cycles
GCC_FLAGS     = -fno-common -std=gnu99 -Os -mrelax -maccumulate-args -Wno-conversion
CPU_HZ        = 16000000
PORT          = avr

FLASH_ORIGIN  = 0x0
# the last 512 bytes are the bootloader
FLASH_BYTES   = 0x7E00
RAM_ORIGIN    = 0x800100
RAM_BYTES     = 0x800
STACK_BYTES   = 512

UART_BASE     = 0xC0
UART_BAUD     = 115200
TIMER_BASE    = 0x80
TIMER_HZ      = 16000000
# vectors before and behind that of timer 1's overflow
TIMER_VECTOR  = 13
LATER_VECTORS = 12
PORT_FACTS    = TIMER_VECTOR LATER_VECTORS

SIMAVR_MCU    = atmega328p
FLASH_RUNNERS = avrdude
AVRDUDE_PART  = m328p
AVRDUDE_PROGRAMMER = arduino
AVRDUDE_BAUD  = 115200
