# AVR: what every board with this core has. make includes this file, Python parses it.
CPU     = avr
GCC     = avr-gcc
