# Arm MPS2 with the AN385 image: Cortex-M3 on an FPGA. Facts: make includes this file, Python parses it.
TITLE         = Arm MPS2 AN385, Cortex-M3
LIKE          = mps2-an500
CORE          = cortex-m3

# the end of the code SSRAM stands in for flash: emulated NOR, by ports/cmsdk.c
UPDATE_BYTES      = 0x00040000
UPDATE_PAGE_BYTES = 4096
UPDATE_RAM_BYTES  = 65536

QEMU          = qemu-system-arm -M mps2-an385
SIM_CPU       = m3
