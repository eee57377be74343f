# RV32IMAC: flags of every board with this core. make includes this file, Python parses it.
CPU     = riscv
CPU_GCC = -march=rv32imac_zicsr -mabi=ilp32
CPU_ZIG = -target riscv32-freestanding-none -mcpu=generic_rv32+m+a+c+zicsr
GCC     = riscv64-unknown-elf-gcc
