# Arduino Mega 2560, ATmega2560. Facts: make includes this file, Python parses it.
TITLE         = Arduino Mega 2560, ATmega2560
LIKE          = arduino-uno
CPU_GCC       = -mmcu=atmega2560
GCC_FLAGS     = -fno-common -std=gnu99 -O2 -fno-inline-small-functions -mrelax -maccumulate-args -Wno-conversion

# the last 8 kB are for the bootloader
FLASH_BYTES   = 0x3E000
RAM_ORIGIN    = 0x800200
RAM_BYTES     = 0x2000
STACK_BYTES   = 1024

# vectors before and behind that of timer 1's overflow
TIMER_VECTOR  = 20
LATER_VECTORS = 36

SIMAVR_MCU    = atmega2560
AVRDUDE_PART  = m2560
AVRDUDE_PROGRAMMER = wiring
