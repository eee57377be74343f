"""A board in software: runs the very ELF that would be flashed, on unicorn, with the chip's memory
map.

Only what the firmware touches is there: flash, RAM, the UART (bytes go to one TCP client) and the
tick counter, which reads as the exact number of executed instructions. Other registers read as zero
or as they were written. One process for each board:

    python -m stepwell.link.sim FOLDER IMAGE.elf      prints "port N" when it listens
"""

from __future__ import annotations

import ctypes
import importlib.util
import select
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from elftools.elf.elffile import ELFFile

from stepwell.boards import Board, load_board
from stepwell.errors import LinkError
from stepwell.link.emulator import Emulator, cannot_run, module_command, serving
from stepwell.link.leash import exit_with_parent

PAGE = 0x1000
SCS = 0xE000E000  # system control space
DWT = 0xE0001000
NVMC = 0x4001E000  # flash controller of nRF51 and nRF52
IDLE_POLLS = 16  # status reads in a row before the emulator sleeps until a byte comes
CONNECT_SECONDS = 60

# peripherals that may be written and read without effect: (origin, bytes)
PLAIN = {
    "stm32": [(0x40000000, 0x10000), (0x40010000, 0x1000), (0x40020000, 0x10000)],
    "stm32_2": [(0x40000000, 0x10000), (0x40020000, 0x3000), (0x50000000, 0x1000)],
    "nrf5": [(0x40000000, 0x1000), (0x50000000, 0x1000)],
    "cmsdk": [],
}
INSTALL = 'pip install "stepwell[sim]"'
Read = Callable[[int], int]
Write = Callable[[int, int], None]


def why_not(board: Board) -> str | None:
    """The reason why ``board`` cannot be simulated here, with what to install; None when it can."""
    if not board.words("SIM_CPU"):
        return cannot_run(f"there is no simulator for {board.name}", board)
    return None if importlib.util.find_spec("unicorn") else f"unicorn is not installed: {INSTALL}"


def start_sim(board: Board, image: Path) -> Emulator:
    """Run ``image`` in a process of its own; the UART waits for one client on ``Emulator.url``.
    LinkError when it cannot.
    """
    reason = why_not(board)
    if reason:
        raise LinkError(reason)
    return serving(
        f"the simulator of {board.name}",
        module_command("stepwell.link.sim", f"{board.folder}", image),
    )


class Line:
    """The serial line: one TCP client. EOFError when it has gone."""

    def __init__(self, client: socket.socket):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = client
        self._received = bytearray()
        self._to_send = bytearray()
        self._polls = 0

    def ready(self) -> bool:
        """Is there a byte? A guest that asks again and again waits here, so that it costs no CPU
        time.
        """
        if self._received:
            return True
        self._polls += 1
        if self._polls < IDLE_POLLS:
            return False
        self._polls = 0
        self.flush()
        data = self._client.recv(65536)
        if not data:
            raise EOFError
        self._received += data
        return True

    def get(self) -> int:
        self._polls = 0
        return self._received.pop(0) if self._received else 0

    def put(self, byte: int) -> None:
        self._polls = 0
        self._to_send.append(byte & 0xFF)
        if len(self._to_send) >= 4096:
            self.flush()

    def flush(self) -> None:
        if self._to_send:
            self._client.sendall(self._to_send)
            self._to_send.clear()


def stm32_uart(line: Line, status: int = 0, receive: int = 4, send: int = 4) -> tuple[Read, Write]:
    """USART: SR (RXNE 0x20, TXE and TC 0xC0) and DR, or in the newer layout ISR, RDR and TDR, at
    these offsets.
    """

    def read(offset: int) -> int:
        if offset == status:
            return 0xE0 if line.ready() else 0xC0
        return line.get() if offset == receive else 0

    return read, lambda offset, value: line.put(value) if offset == send else None


def cmsdk_uart(line: Line) -> tuple[Read, Write]:
    """DATA at 0, STATE at 4 (2: a byte has come)."""

    def read(offset: int) -> int:
        if offset == 4:
            return 2 if line.ready() else 0
        return line.get() if offset == 0 else 0

    return read, lambda offset, value: line.put(value) if offset == 0 else None


def nrf5_uart(line: Line) -> tuple[Read, Write]:
    """Event RXDRDY at 0x108, TXDRDY at 0x11C, RXD at 0x518, TXD at 0x51C."""

    def read(offset: int) -> int:
        if offset == 0x108:
            return int(line.ready())
        if offset == 0x518:
            return line.get()
        return int(offset == 0x11C)

    return read, lambda offset, value: line.put(value) if offset == 0x51C else None


def dwt_ticks(count: Callable[[], int]) -> tuple[Read, Write]:
    """CYCCNT at 4."""
    return lambda offset: count() if offset == 4 else 0, lambda offset, value: None


def cmsdk_ticks(count: Callable[[], int]) -> tuple[Read, Write]:
    """VALUE at 4 counts down."""
    return lambda offset: ~count() if offset == 4 else 0, lambda offset, value: None


def stm32_ticks(count: Callable[[], int]) -> tuple[Read, Write]:
    """TIM2: CNT at 0x24 counts up at CPU clock."""
    return lambda offset: count() if offset == 0x24 else 0, lambda offset, value: None


def nrf5_ticks(count: Callable[[], int]) -> tuple[Read, Write]:
    """A write to CAPTURE[0] at 0x40 stores the counter in CC[0] at 0x540."""
    captured = [0]

    def write(offset: int, value: int) -> None:
        if offset == 0x40:
            captured[0] = count()

    return lambda offset: captured[0] if offset == 0x540 else 0, write


UARTS = {
    "stm32": stm32_uart,
    "stm32_2": partial(stm32_uart, status=0x1C, receive=0x24, send=0x28),
    "cmsdk": cmsdk_uart,
    "nrf5": nrf5_uart,
}
TIMERS = {"dwt": dwt_ticks, "stm32": stm32_ticks, "cmsdk": cmsdk_ticks, "nrf5": nrf5_ticks}


class Memory:
    """Bytes of the guest that this process sees, too; erased flash at first."""

    def __init__(self, origin: int, n_bytes: int):
        self.origin = origin
        self.content = (ctypes.c_uint8 * n_bytes)()
        self.erase(origin, n_bytes)

    def erase(self, address: int, n_bytes: int) -> None:
        at = max(0, min(address - self.origin, len(self.content) - n_bytes))
        ctypes.memset(ctypes.addressof(self.content) + at, 0xFF, n_bytes)


def nrf5_flash(flash: Memory, page_bytes: int) -> tuple[Read, Write]:
    """NVMC: READY at 0x400, the address of a page to erase at 0x508. Writes go into the memory
    without its help here.
    """

    def write(offset: int, value: int) -> None:
        if offset == 0x508:
            flash.erase(value & -page_bytes, page_bytes)

    return lambda offset: int(offset == 0x400), write


class Machine:
    """CPU, memories and peripherals of ``board`` with the image ``elf`` in flash."""

    def __init__(self, board: Board, elf: Path, line: Line):
        import unicorn
        from unicorn import arm_const

        self._unicorn, self._arm = unicorn, arm_const
        self._line = line
        self.gone = False
        self.uc = uc = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB)
        # not UC_MODE_MCLASS: that would make it a Cortex-M33
        uc.ctl_set_cpu_model(
            getattr(arm_const, f"UC_CPU_ARM_CORTEX_{board.text('SIM_CPU').upper()}")
        )
        flash = self._flash = Memory(board.number("FLASH_ORIGIN"), board.number("FLASH_BYTES"))
        uc.mem_map_ptr(
            flash.origin, len(flash.content), unicorn.UC_PROT_ALL, ctypes.addressof(flash.content)
        )
        uc.mem_map(board.number("RAM_ORIGIN"), board.number("RAM_BYTES"))
        self._load(elf)
        self._count = instruction_counter(uc, flash)
        self._map_peripherals(board)
        stack, self._entry = struct.unpack("<II", uc.mem_read(flash.origin, 8))
        uc.reg_write(arm_const.UC_ARM_REG_SP, stack)
        if board.text("SIM_CPU") != "m0":
            # CPACR is not modelled: the FPU is on from the start
            uc.reg_write(arm_const.UC_ARM_REG_FPEXC, 1 << 30)

    def _load(self, elf: Path) -> None:
        with elf.open("rb") as file:
            for segment in ELFFile(file).iter_segments("PT_LOAD"):
                if segment["p_filesz"]:
                    self.uc.mem_write(segment["p_paddr"], segment.data())

    def _map_peripherals(self, board: Board) -> None:
        timer = board.text("TIMER")
        places = {
            board.number("UART_BASE"): UARTS[board.text("UART")](self._line),
            DWT if timer == "dwt" else board.number("TIMER_BASE"): TIMERS[timer](self._count),
            SCS: (lambda offset: 0, self._system_control),
        }
        if board.text("UART") == "nrf5" and board.has_update_area:
            places[NVMC] = nrf5_flash(self._flash, board.number("UPDATE_PAGE_BYTES"))
        for origin, (read, write) in places.items():
            within = origin % PAGE
            on_read, on_write = self._guarded(read, within), self._writer(write, within)
            self.uc.mmio_map(origin - within, PAGE, on_read, None, on_write, None)
        for origin, n_bytes in PLAIN[board.text("UART")]:
            for page in range(origin, origin + n_bytes, PAGE):
                if not any(page == place & -PAGE for place in places):
                    self.uc.mem_map(page, PAGE)

    def _guarded(self, read: Read, within: int) -> Callable[..., int]:
        """``within``: where in its page the peripheral begins."""

        def on_read(uc, offset: int, size: int, data) -> int:
            try:
                return read(offset - within) & 0xFFFFFFFF
            except (EOFError, OSError):
                self._stop()
                return 0

        return on_read

    def _writer(self, write: Write, within: int) -> Callable[..., None]:
        def on_write(uc, offset: int, size: int, value: int, data) -> None:
            try:
                write(offset - within, value)
            except OSError:
                self._stop()

        return on_write

    def _system_control(self, offset: int, value: int) -> None:
        if offset == 0xD0C:  # AIRCR: the firmware asks for a reset after a fault
            self._stop()

    def _stop(self) -> None:
        self.gone = True
        self.uc.emu_stop()

    @property
    def fault(self) -> type[Exception]:
        """What ``run`` raises when the guest goes wrong."""
        return self._unicorn.UcError

    @property
    def counter(self) -> int:
        """The program counter."""
        return self.uc.reg_read(self._arm.UC_ARM_REG_PC)

    def run(self) -> None:
        """Until the client goes away. Raises unicorn.UcError when the guest touches what is not
        there.
        """
        try:
            self.uc.emu_start(self._entry | 1, 0xFFFFFFFF)
        except self._unicorn.UcError:
            if not self.gone:
                raise


def instruction_counter(uc, code: Memory) -> Callable[[], int]:
    """Count every instruction that ``uc`` executes in ``code``; the result gives the count.

    Runs of instructions are counted when they begin, so two reads differ by the exact number when
    they come from the same place: the firmware reads ticks in one function, board_ticks.
    """
    from stepwell._engine import ffi, lib

    if hasattr(lib, "stw_sim_count"):
        return _count_in_c(uc, code, ffi, lib)
    return _count_in_python(uc, code)


def _count_in_c(uc, code: Memory, ffi, lib) -> Callable[[], int]:
    """The hook as a C function: unicorn's Python layer would wrap a Python one, so its C library is
    called directly.
    """
    import unicorn
    from unicorn.unicorn_py3.unicorn import uclib

    bytes_at = ffi.cast("uint8_t *", ctypes.addressof(code.content))
    counter = ffi.new(
        "stw_sim_counter *", {"origin": code.origin, "n_bytes": len(code.content), "code": bytes_at}
    )

    def address(pointer) -> ctypes.c_void_p:
        return ctypes.c_void_p(int(ffi.cast("uintptr_t", pointer)))

    handle = ctypes.c_size_t()
    hook = address(ffi.addressof(lib, "stw_sim_count"))
    everywhere = (ctypes.c_uint64(1), ctypes.c_uint64(0))
    status = uclib.uc_hook_add(
        uc._uch, ctypes.byref(handle), unicorn.UC_HOOK_BLOCK, hook, address(counter), *everywhere
    )
    if status != unicorn.UC_ERR_OK:
        raise unicorn.UcError(status)
    return lambda: counter.count


def _count_in_python(uc, code: Memory) -> Callable[[], int]:
    """The same for an engine that was built without the C hook: as exact, about ten times slower."""
    import unicorn

    count, known = [0], {}

    def on_block(uc, address: int, size: int, data) -> None:
        n = known.get((address, size))
        if n is None:
            at = address - code.origin
            n = known[address, size] = _thumb_instructions(bytes(code.content[at : at + size]))
        count[0] += n

    uc.hook_add(unicorn.UC_HOOK_BLOCK, on_block)
    return lambda: count[0]


def _thumb_instructions(code: bytes) -> int:
    n = at = 0
    while at < len(code):
        at += 4 if code[at + 1] >> 3 >= 0x1D else 2
        n += 1
    return n


def serve(board: Board, elf: Path) -> None:
    """Listen on a free port of this machine, print it, and be the board for the first client until
    it goes away.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        print("port", server.getsockname()[1], flush=True)
        if not select.select([server], [], [], CONNECT_SECONDS)[0]:
            raise TimeoutError("nobody connected")
        client, _ = server.accept()
    with client:
        machine = Machine(board, elf, Line(client))
        try:
            machine.run()
        except machine.fault as error:
            sys.exit(f"the image of {board.name} stopped at {machine.counter:#010x}: {error}")


if __name__ == "__main__":
    exit_with_parent()
    serve(load_board(sys.argv[1]), Path(sys.argv[2]))
