# Cortex-M3: flags of every board with this core. make includes this file, Python parses it.
CPU     = cortex_m
CPU_GCC = -mcpu=cortex-m3 -mthumb -mfloat-abi=soft
CPU_ZIG = -target thumb-freestanding-eabi -mcpu=cortex_m3
