# Cortex-M0+: flags of every board with this core. make includes this file, Python parses it.
CPU     = cortex_m
CPU_GCC = -mcpu=cortex-m0plus -mthumb -mfloat-abi=soft
CPU_ZIG = -target thumb-freestanding-eabi -mcpu=cortex_m0plus
