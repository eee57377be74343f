"""The instruction counter of the simulator against code whose count is known."""

from __future__ import annotations

import ctypes
import struct

import pytest

unicorn = pytest.importorskip(
    "unicorn", reason='unicorn is not installed: pip install "stepwell[sim]"'
)

from stepwell._engine import ffi, lib  # noqa: E402
from stepwell.link import sim  # noqa: E402

ORIGIN = 0x08000000
# fmt: off
CODE = struct.pack(
    "<11H",
    0x2005,          # movs r0, #5
    0x3801,          # loop: subs r0, #1
    0xD1FD,          # bne loop
    0xF3AF, 0x8000,  # nop.w: 32 bits, one instruction
    0x2800,          # cmp r0, #0
    0xBF14,          # ite ne
    0x2101,          # movne r1, #1: skipped, but it takes its place
    0x2102,          # moveq r1, #2
    0xBF00,          # nop
    0xBF00,          # where it stops
)
# fmt: on
EXPECTED = 1 + 5 * 2 + 1 + 2 + 2 + 1


def in_c(uc, code):
    return sim._count_in_c(uc, code, ffi, lib)


@pytest.mark.parametrize("counter", [in_c, sim._count_in_python])
def test_known_sequence(counter):
    uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB)
    uc.ctl_set_cpu_model(unicorn.arm_const.UC_CPU_ARM_CORTEX_M4)
    flash = sim.Memory(ORIGIN, 0x1000)
    uc.mem_map_ptr(ORIGIN, 0x1000, unicorn.UC_PROT_ALL, ctypes.addressof(flash.content))
    uc.mem_write(ORIGIN, CODE)
    count = counter(uc, flash)
    uc.emu_start(ORIGIN | 1, ORIGIN + len(CODE) - 2)
    assert uc.reg_read(unicorn.arm_const.UC_ARM_REG_R1) == 2
    assert count() == EXPECTED
