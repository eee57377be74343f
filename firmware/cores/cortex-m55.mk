# Cortex-M55: flags of every board with this core. make includes this file, Python parses it.
CPU     = cortex_m
CPU_GCC = -mcpu=cortex-m55 -mthumb -mfloat-abi=hard
CPU_ZIG = -target thumb-freestanding-eabihf -mcpu=cortex_m55+mve_fp
