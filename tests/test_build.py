"""Board facts, image builds with both compilers, what is linked."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, full, need, skip_for
from elftools.elf.elffile import ELFFile
from shapes import random_dense, random_lstm, random_sequences
from stepwell import convert, load
from stepwell.boards import LABELS, Board, board_names, flags, load_board, parse_facts
from stepwell.boards.build import NAME, build, flash_bytes, image_board, intel_hex, why_not
from stepwell.emit import emit, lean_flags
from stepwell.errors import BuildError, UnknownBoard, WrongUse
from stepwell.graph import Graph
from stepwell.info import describe
from stepwell.integer.packing import TARGETS, packing_for
from stepwell.link.qemu import ICOUNT_SHIFT

NAMES = board_names()
# compiler and libc helpers that would mean: float, division, heap or libm is in the image
FORBIDDEN = re.compile(
    r"""__aeabi_([fd](add|sub|r?sub|mul|div|neg|cmp.*)|[fd]2.*|u?[il]2[fd]|u?l2[fd]|u?[il]div(mod)?|u?ldivmod)
    |__(u?(div|mod|divmod)[sdt]i[34]|(add|sub|mul|div|neg|ne|eq|lt|gt|le|ge|fix|fixuns)[sdt]f.*|floatu?n?[sdt]i[sdt]f)
    |(m|c|re)alloc|free|_sbrk|(exp|log|tanh|pow|floor|round|fabs|sqrt)f?|printf""",
    re.VERBOSE,
)


def need_compiler(compiler: str, board: str = "microbit") -> None:
    skip_for(why_not(compiler, load_board(board)))


@pytest.mark.parametrize("name", NAMES)
def test_board_facts_are_complete(name):
    board = load_board(name)
    assert board.label in LABELS
    for key in (flags()["C_FACTS"] + " " + flags()["LD_FACTS"]).split():
        assert (flags() | board.facts)[key]
    for key in (
        "FLASH_ORIGIN",
        "FLASH_BYTES",
        "RAM_ORIGIN",
        "RAM_BYTES",
        "STACK_BYTES",
        "CPU_HZ",
        "UART_BASE",
    ):
        assert board.number(key) >= 0
    assert bool(board.emulators) == (board.label == "emulated")
    if board.words("SIMAVR_MCU"):
        assert board.text("SIMAVR_MCU") == board.text("CPU_GCC").removeprefix("-mmcu=")
    if board.words("QEMU"):
        assert board.words("QEMU")[1:3] == [
            "-M",
            name if board.text("CPU") == "cortex_m" else "virt",
        ]
        assert (
            board.number("QEMU_TIMER_HZ") << ICOUNT_SHIFT
        ) * 1e-9 > 1  # an instruction moves the counter
    assert board.port.is_file() and board.target in TARGETS


def test_facts_are_refused_with_file_and_line(tmp_path):
    path = tmp_path / "board.mk"
    path.write_text("# facts\nCPU = m0  # core\nifdef X\n")
    with pytest.raises(BuildError, match=r"board\.mk line 3: expected KEY = value, got 'ifdef X'"):
        parse_facts(path)
    path.write_text("# facts\n\nCPU = m0  # core\nEMPTY =\n")
    assert parse_facts(path) == {"CPU": "m0", "EMPTY": ""}
    with pytest.raises(BuildError, match=r"board x: its board\.mk gives no UART"):
        Board(Path("x"), {}).text("UART")
    with pytest.raises(
        BuildError, match=f"no board 'uno'; there are: {', '.join(NAMES)}, or a folder of your own"
    ):
        load_board("uno")


# zig on one board of each kind of core: the boards of the parity tests are built by both elsewhere,
# too
BY_ZIG = ("microbit", "netduinoplus2", "mps3-an547", "rv32-virt")


@pytest.mark.parametrize(
    ("name", "compiler"),
    [
        *full(
            [(name, "gcc") for name in NAMES], *((name, "gcc") for name in (*BY_ZIG, "arduino-uno"))
        ),
        *((name, "zig") for name in BY_ZIG),
    ],
)
def test_image(name, compiler, small_model, tmp_path):
    need_compiler(compiler, name)
    image = build(small_model, name, tmp_path, compiler)
    board, binary = load_board(name), image.bin.read_bytes()
    kinds = ["bin", "elf", "hex", *(["uf2"] if "UF2_FAMILY" in board.facts else [])]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.{kind}" for kind in kinds]
    assert image_board(image.elf) == name
    assert (
        binary == flash_bytes(image.elf)
        and image.sizes.flash <= len(binary) < image.sizes.flash + 16
    )
    assert from_hex(image.hex.read_text()) == (board.number("FLASH_ORIGIN"), binary)
    info = describe(small_model, packing_for(board.target))
    narrow = board.text("CPU") == "avr"  # pointers of 16 bits in the model's structs
    assert info["flash_bytes"] - image.sizes.constants in (range(1, 60) if narrow else [0])
    assert image.sizes.stream_ram == info["ram_bytes"]
    assert image.sizes.ram < 3500 and image.sizes.flash < 28 * 1024
    if board.text("CPU") == "cortex_m":
        # behind the boot block
        stack, reset = struct.unpack_from("<II", binary, 256 if name == "rp-pico" else 0)
        assert stack == board.number("RAM_ORIGIN") + board.number("RAM_BYTES") and reset & 1
    assert not [name for name in symbols(image.elf) if FORBIDDEN.fullmatch(name)]


@pytest.fixture(scope="module")
def pico(small_model, tmp_path_factory):
    need_compiler("gcc", "rp-pico")
    return build(small_model, "rp-pico", tmp_path_factory.mktemp("pico"), "gcc")


def test_uf2_holds_the_image(pico):
    """Blocks of 512 bytes, as https://github.com/microsoft/uf2 describes them; the RP2040's ROM
    wants 256 bytes in each.
    """
    blocks = [pico.uf2.read_bytes()[at : at + 512] for at in range(0, pico.uf2.stat().st_size, 512)]
    data = b""
    for number, block in enumerate(blocks):
        head = struct.unpack_from("<8I", block)
        assert head == (
            0x0A324655,
            0x9E5D5157,
            0x2000,
            0x10000000 + len(data),
            256,
            number,
            len(blocks),
            0xE48BFF56,
        )
        assert block[508:] == struct.pack("<I", 0x0AB16F30)
        data += block[32:288]
    binary = pico.bin.read_bytes()
    assert data[: len(binary)] == binary and len(data) - len(binary) < 256


def test_boot_block_of_the_pico(pico):
    """The check sum that the ROM computes, and what the code does: flash interface, VTOR, stack,
    then the reset handler.
    """
    unicorn = pytest.importorskip("unicorn")
    binary, crc = pico.bin.read_bytes(), 0xFFFFFFFF
    for byte in binary[:252]:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    assert struct.unpack_from("<I", binary, 252) == (crc,)

    cpu, written = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB), []
    cpu.ctl_set_cpu_model(unicorn.arm_const.UC_CPU_ARM_CORTEX_M0)
    for origin, size in (
        (0x10000000, 0x200000),
        (0x20000000, 0x42000),
        (0x18000000, 0x1000),
        (0xE000E000, 0x1000),
    ):
        cpu.mem_map(origin, size)
    cpu.mem_write(0x10000000, binary)
    cpu.mem_write(0x20041F00, binary[:256])  # where the ROM copies it
    cpu.hook_add(
        unicorn.UC_HOOK_MEM_WRITE,
        lambda uc, access, at, size, value, data: written.append((at, value)),
    )
    stack, reset = struct.unpack_from("<II", binary, 256)
    cpu.emu_start(0x20041F01, reset & ~1, count=100)
    assert cpu.reg_read(unicorn.arm_const.UC_ARM_REG_PC) == reset & ~1
    assert cpu.reg_read(unicorn.arm_const.UC_ARM_REG_SP) == stack
    ssi = [(at - 0x18000000, value) for at, value in written[:-1]]
    assert ssi == [(8, 0), (0x14, 4), (0, 0x001F0300), (4, 0), (0xF4, 0x03000218), (8, 1)]
    assert written[-1] == (0xE000ED08, 0x10000100)


def symbols(elf: Path) -> list[str]:
    with elf.open("rb") as file:
        return [
            symbol.name for symbol in ELFFile(file).get_section_by_name(".symtab").iter_symbols()
        ]


def test_forbidden_names_are_recognised():
    bad = """__aeabi_fadd __aeabi_dmul __aeabi_idiv __aeabi_uidivmod __aeabi_uldivmod __aeabi_f2iz __aeabi_i2d __udivsi3
    __divdi3 __umodsi3 __mulsf3 __adddf3 __floatsidf __fixdfsi __negdf2 malloc free expf tanh _sbrk""".split()
    good = "__aeabi_lmul __muldi3 __aeabi_memcpy __aeabi_memclr4 memcpy stw_step __gnu_thumb1_case_uqi frame_send fault".split()
    assert all(FORBIDDEN.fullmatch(name) for name in bad)
    assert not any(FORBIDDEN.fullmatch(name) for name in good)


def from_hex(text: str) -> tuple[int, bytes]:
    """(origin, data) of Intel HEX, checksums checked."""
    upper, parts = 0, {}
    for line in text.split():
        record = bytes.fromhex(line[1:])
        assert sum(record) & 0xFF == 0 and len(record) == record[0] + 5
        if record[3] == 4:
            upper = int.from_bytes(record[4:6], "big") << 16
        elif record[3] == 0:
            parts[upper + int.from_bytes(record[1:3], "big")] = record[4:-1]
    assert text.split()[-1] == ":00000001FF"
    return min(parts), b"".join(parts[at] for at in sorted(parts))


def test_hex_over_a_64k_border():
    data = bytes(range(256)) * 300
    assert from_hex(intel_hex(data, 0x0800FF00)) == (0x0800FF00, data)


@pytest.mark.parametrize(
    "name", full([name for name in NAMES if load_board(name).has_update_area], "microbit")
)
def test_image_that_takes_updates(name, small_model, tmp_path):
    need_compiler("gcc", name)
    board = load_board(name)
    image = build(small_model, name, tmp_path, "gcc", updates=True)
    assert {"board_flash_erase", "board_flash_write", "stw_gru_unit"} <= set(symbols(image.elf))
    assert (
        image.sizes.stream_ram == board.number("UPDATE_RAM_BYTES") > small_model.info()["ram_bytes"]
    )
    area = board.number("FLASH_ORIGIN") + board.number("FLASH_BYTES") - board.number("UPDATE_BYTES")
    assert len(image.bin.read_bytes()) <= area - board.number("FLASH_ORIGIN")
    plain = build(small_model, name, tmp_path, "gcc")
    assert plain.sizes.flash < image.sizes.flash / 2 and "board_flash_erase" not in symbols(
        plain.elf
    )


def test_updates_need_a_place(small_model, tmp_path):
    with pytest.raises(BuildError, match="arduino-uno has no update area"):
        build(small_model, "arduino-uno", tmp_path, updates=True)
    with pytest.raises(WrongUse, match="takes no updates: build with one of the two"):
        build(small_model, "microbit", tmp_path, updates=True, mlperf=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "compiler"),
    [
        ("microbit", "zig"),
        *full(
            [(name, "gcc") for name in ("mps2-an386", "microbit", "rv32-virt")], ("microbit", "gcc")
        ),
    ],
)
def test_makefile_builds_the_same_image_without_warnings(name, compiler, small_model, tmp_path):
    need("make", "apt-get install make")
    need_compiler(compiler, name)
    emit(small_model, tmp_path / "model", NAME, load_board(name).target)
    # a board may be a folder anywhere
    place = load_board(name).folder if compiler == "zig" else name
    settings = [
        f"BOARD={place}",
        f"MODEL={tmp_path / 'model'}",
        f"OUT={tmp_path}",
        f"COMPILER={compiler}",
    ]
    updates = name == "mps2-an386"
    settings += (
        ["UPDATES=1"]
        if updates
        else [f"KNOBS={' '.join(lean_flags(small_model, load_board(name).target))}"]
    )
    settings += [f"WARNINGS={flags()['WARNINGS']} -Werror", f"ZIG={sys.executable} -m ziglang cc"]
    subprocess.run(["make", "-s", "-C", ROOT / "firmware", *settings], check=True)
    image = build(small_model, name, tmp_path / "py", compiler, updates=updates)
    assert flash_bytes(tmp_path / f"{name}.elf") == image.bin.read_bytes()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("UPDATE_BYTES = lots", "UPDATE_BYTES = lots is no number"),
        ("RAM_BYTES = 64K", "board own: RAM_BYTES = 64K is no number: write 8192 or 0x2000"),
        ("UART_BAUD = fast", "UART_BAUD = fast is no number"),
        ("CPU_HZ = 12.5e6", "CPU_HZ = 12.5e6 is no number"),
        ("STACK_BYTES = 1_024", "STACK_BYTES = 1_024 is no number"),
        ("FLASH_ORIGIN = 0b1", "FLASH_ORIGIN = 0b1 is no number"),
        ("TIMER_BASE = 010", "TIMER_BASE = 010 is no number"),
        ("UART_BASE =", "UART_BASE =  is no number"),
        ("QEMU_TIMER_HZ = 1k", "QEMU_TIMER_HZ = 1k is no number"),
        ("CPU = cortex_n", "board own: CPU = cortex_n: firmware/cpu has: avr, cortex_m, riscv"),
        ("LABEL = great", "LABEL = great: say one of emulated, built only"),
        ("GCC = icc-for-arm", "icc-for-arm is not installed: install icc-for-arm"),
        ("what", "line 1: expected KEY = value, got 'what'"),
        ("TITLE = caf\xe9", "not UTF-8 text"),
    ],
)
def test_wrong_facts_of_a_board_are_named(line, said, small_model, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    facts = (load_board("netduinoplus2").folder / "board.mk").read_bytes()
    key = line.split()[0].encode()
    kept = b"\n".join(row for row in facts.split(b"\n") if row.split()[:1] != [key])
    (own / "board.mk").write_bytes(line.encode("latin-1") + b"\n" + kept)
    with pytest.raises(BuildError, match=re.escape(said)):
        board = load_board(f"{own}/")
        assert board.label
        build(small_model, board, tmp_path, "gcc", updates=line.startswith("UPDATE"))


def test_a_board_is_a_folder(tmp_path):
    (tmp_path / "board.mk").touch()
    with pytest.raises(
        UnknownBoard,
        match=rf"{tmp_path}/board\.mk is a file: a board is the folder that it is in, {tmp_path}/;",
    ):
        load_board(f"{tmp_path}/board.mk")


def own_board(folder: Path, *facts: str) -> Board:
    (folder / "board.mk").write_text("\n".join(facts) + "\n")
    return load_board(f"{folder}/")


def test_a_board_says_what_differs_from_its_core_and_its_relative(tmp_path):
    relative = load_board("nucleo-f446re")
    board = own_board(
        tmp_path, "LIKE = nucleo-f446re", "CORE = cortex-m7f", "FLASH_BYTES = 4096", "USB_IDS ="
    )
    assert (
        board.core == "cortex-m7"
        and board.number("FLASH_BYTES") == 4096
        and board.words("USB_IDS") == []
    )
    assert board.text("UART_BASE") == relative.text("UART_BASE") and board.port == relative.port
    # its board.c
    assert own_board(tmp_path, "LIKE = nucleo-g071rb").port == load_board("nucleo-g071rb").port


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        ("CORE = cortex-m9", "CORE = cortex-m9: there are: avr, cortex-m0"),
        ("LIKE = nucleo", "LIKE = nucleo: there are: arduino-mega"),
        ("LIKE = ../../etc", "there are: arduino-mega"),
        ("LIKE = microbit", "microbit is itself LIKE nrf52840dk: name that one"),
    ],
)
def test_a_core_or_relative_that_is_none(fact, words, tmp_path):
    with pytest.raises(BuildError, match=re.escape(words)) as error:
        own_board(tmp_path, fact)
    assert str(tmp_path / "board.mk") in str(error.value)


def test_the_environment_chooses_the_compiler(small_model, tmp_path, monkeypatch):
    monkeypatch.setenv("STEPWELL_COMPILER", "tcc")
    with pytest.raises(WrongUse, match="unknown compiler 'tcc'; there are: gcc, zig"):
        build(small_model, "microbit", tmp_path)
    monkeypatch.setenv("STEPWELL_COMPILER", "zig")
    with pytest.raises(
        BuildError, match="zig does not compile for arduino-uno: apt-get install gcc-avr"
    ):
        build(small_model, "arduino-uno", tmp_path)
    assert not list(tmp_path.iterdir())
    need_compiler("zig")
    assert build(small_model, "microbit", tmp_path).compiler == "zig"


def test_missing_compilers_are_named_with_the_install_line(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        BuildError,
        match="no compiler for microbit: apt-get install gcc-arm-none-eabi, or pip install zig",
    ):
        build(small_model, "microbit", tmp_path)
    with pytest.raises(BuildError, match="ziglang is not installed: pip install ziglang"):
        build(small_model, "microbit", tmp_path, "zig")
    with pytest.raises(WrongUse, match="unknown compiler 'icc'; there are: gcc, zig"):
        build(small_model, "microbit", tmp_path, "icc")
    assert not list(tmp_path.iterdir())


def test_snapshot_too_large_for_the_link(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "stepwell.boards.build.MOST_SNAPSHOT", small_model.info()["snapshot_bytes"] - 1
    )
    with pytest.raises(
        BuildError,
        match=r"the model's snapshot has \d+ bytes; the test program's link carries at most",
    ):
        build(small_model, "microbit", tmp_path)


@pytest.mark.parametrize("seed", full(range(40), 0, 1, 2))
def test_damaged_elf_files_are_refused(seed, small_model, tmp_path):
    """Whatever is wrong with them, the error names the file; what is not damaged enough is read."""
    need_compiler("gcc")
    elf = build(small_model, "microbit", tmp_path, "gcc").elf
    content, rng = bytearray(elf.read_bytes()), np.random.default_rng(seed)
    for at in rng.integers(4, 400 if seed % 2 else len(content), 12):
        content[at] = rng.integers(256)
    elf.write_bytes(content)
    for read in (image_board, flash_bytes):
        try:
            read(elf)
        except BuildError as error:
            assert str(elf) in str(error)


def test_model_that_does_not_fit_leaves_no_files(tmp_path, rng_model):
    need_compiler("gcc")
    with pytest.raises(
        BuildError,
        match=r"region .*FLASH.* overflowed by (\d+) bytes: the image is \1 bytes larger than",
    ):
        build(rng_model(30, 240, 2), "microbit", tmp_path / "out", "gcc")
    assert not (tmp_path / "out").exists()


def test_array_too_large_for_avr_gcc(tmp_path, rng_model):
    with pytest.raises(
        BuildError,
        match=r"layer 0 \(lstm\) has 36864 bytes of weights in one array, and avr-gcc takes 32767",
    ):
        build(rng_model(4, 96, 2), "arduino-mega", tmp_path)


def test_model_too_wide_for_the_link(tmp_path, rng_model):
    with pytest.raises(
        BuildError,
        match="122 inputs and 2 outputs; the test program's link carries at most 121 and 60",
    ):
        build(rng_model(122, 2), "microbit", tmp_path)


@pytest.fixture
def rng_model():
    import numpy as np

    def model(n_in: int, *widths: int):
        rng = np.random.default_rng(1)
        head = (random_dense(rng, *widths),) if len(widths) == 2 else ()
        graph = Graph((random_lstm(rng, n_in, widths[0]), *head))
        return convert(graph, random_sequences(np.random.default_rng(2), 2, 8, n_in))

    return model


def test_makefile_builds_anew_for_another_model(tmp_path, small_model):
    need_compiler("gcc")
    need("make", "apt-get install make")
    images = []
    for name in ("a", "b"):
        model = small_model if name == "a" else load(ROOT / "tests" / "golden" / "softmax.stw")
        emit(model, tmp_path / name, NAME)
        command = [
            "make",
            "-C",
            ROOT / "firmware",
            "BOARD=microbit",
            f"MODEL={tmp_path / name}",
            f"OUT={tmp_path}",
        ]
        subprocess.run(command, check=True, capture_output=True)
        images.append((tmp_path / "microbit.elf").read_bytes())
        subprocess.run(["touch", "-d", "1 hour ago", *(tmp_path / name).iterdir()], check=True)
    assert images[0] != images[1]
    done = subprocess.run([*command, "COMPILER=clang"], capture_output=True, text=True)
    assert done.returncode != 0 and "unknown COMPILER clang" in done.stderr
