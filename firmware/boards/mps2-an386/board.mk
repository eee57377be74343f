# Arm MPS2 with the AN386 image: Cortex-M4F on an FPGA. Facts: make includes this file, Python parses it.
TITLE         = Arm MPS2 AN386, Cortex-M4F
LIKE          = mps2-an500
CORE          = cortex-m4f

# the end of the code SSRAM stands in for flash: emulated NOR, by ports/cmsdk.c
UPDATE_BYTES      = 0x00040000
UPDATE_PAGE_BYTES = 4096
UPDATE_RAM_BYTES  = 65536

QEMU          = qemu-system-arm -M mps2-an386
SIM_CPU       = m4
