# Cortex-M4F: flags of every board with this core. make includes this file, Python parses it.
CPU     = cortex_m
CPU_GCC = -mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard
CPU_ZIG = -target thumb-freestanding-eabihf -mcpu=cortex_m4
