# Cortex-M33F: flags of every board with this core. make includes this file, Python parses it.
CPU     = cortex_m
CPU_GCC = -mcpu=cortex-m33 -mthumb -mfpu=fpv5-sp-d16 -mfloat-abi=hard
CPU_ZIG = -target thumb-freestanding-eabihf -mcpu=cortex_m33+dsp
