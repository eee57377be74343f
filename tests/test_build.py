"""Board facts, image builds with both compilers, what is linked, flash commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, random_dense, random_lstm, random_sequences
from elftools.elf.elffile import ELFFile
from stepwell import boards, convert, flash, load
from stepwell.boards import LABELS, Board, board_names, flags, load_board, parse_facts
from stepwell.build import NAME, build, flash_bytes, intel_hex, why_not
from stepwell.emit import emit
from stepwell.errors import BuildError
from stepwell.graph import Graph
from stepwell.info import describe
from stepwell.link.qemu import ICOUNT_SHIFT
from stepwell.packing import TARGETS, packing_for

NAMES = board_names()
# compiler and libc helpers that would mean: float, division, heap or libm is in the image
FORBIDDEN = re.compile(
    r"""__aeabi_([fd](add|sub|r?sub|mul|div|neg|cmp.*)|[fd]2.*|u?[il]2[fd]|u?l2[fd]|u?[il]div(mod)?|u?ldivmod)
    |__(u?(div|mod|divmod)[sdt]i[34]|(add|sub|mul|div|neg|ne|eq|lt|gt|le|ge|fix|fixuns)[sdt]f.*|floatu?n?[sdt]i[sdt]f)
    |(m|c|re)alloc|free|_sbrk|(exp|log|tanh|pow|floor|round|fabs|sqrt)f?|printf""",
    re.VERBOSE,
)


def need(compiler: str, board: str = "microbit") -> None:
    reason = why_not(compiler, load_board(board))
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("name", NAMES)
def test_board_facts_are_complete(name):
    board = load_board(name)
    assert board.label in LABELS
    for key in (flags()["C_FACTS"] + " " + flags()["LD_FACTS"]).split():
        assert (flags() | board.facts)[key]
    for key in ("FLASH_ORIGIN", "FLASH_BYTES", "RAM_ORIGIN", "RAM_BYTES", "STACK_BYTES", "CPU_HZ", "UART_BASE"):
        assert board.number(key) >= 0
    assert board.words("QEMU")[1:3] == ["-M", name if board.text("CPU") == "cortex_m" else "virt"]
    assert (board.number("QEMU_TIMER_HZ") << ICOUNT_SHIFT) * 1e-9 > 1  # an instruction moves the counter
    assert set(board.words("FLASH_RUNNERS")) <= set(flash.RUNNERS)
    assert board.port.is_file() and board.target in TARGETS


def test_facts_are_refused_with_file_and_line(tmp_path):
    path = tmp_path / "board.mk"
    path.write_text("# facts\nCPU = m0  # core\nifdef X\n")
    with pytest.raises(BuildError, match=r"board\.mk line 3: expected KEY = value, got 'ifdef X'"):
        parse_facts(path)
    path.write_text("# facts\n\nCPU = m0  # core\nEMPTY =\n")
    assert parse_facts(path) == {"CPU": "m0", "EMPTY": ""}
    with pytest.raises(BuildError, match=r"board x: its board\.mk gives no UART"):
        Board("x", {}).text("UART")
    with pytest.raises(BuildError, match=f"no board 'uno'; there are: {', '.join(NAMES)}"):
        load_board("uno")


# zig on one board of each kind of core: the boards of the parity tests are built by both elsewhere, too
BY_ZIG = ("microbit", "netduinoplus2", "mps3-an547", "rv32-virt")


@pytest.mark.parametrize(
    ("name", "compiler"), [*((name, "gcc") for name in NAMES), *((name, "zig") for name in BY_ZIG)]
)
def test_image(name, compiler, small_model, tmp_path):
    need(compiler, name)
    image = build(small_model, name, tmp_path, compiler)
    board, binary = load_board(name), image.bin.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.bin", f"{name}.elf", f"{name}.hex"]
    assert binary == flash_bytes(image.elf) and image.sizes.flash <= len(binary) < image.sizes.flash + 16
    assert from_hex(image.hex.read_text()) == (board.number("FLASH_ORIGIN"), binary)
    info = describe(small_model, packing_for(board.target))
    room = int(board.facts.get("UPDATE_RAM_BYTES", "0"))  # for models to come
    assert image.sizes.constants == info["flash_bytes"] and image.sizes.stream_ram == max(room, info["ram_bytes"])
    assert image.sizes.ram - 2 * room < 3500 and image.sizes.flash < 28 * 1024
    if board.text("CPU") == "cortex_m":
        stack, reset = (int.from_bytes(binary[at : at + 4], "little") for at in (0, 4))
        assert stack == board.number("RAM_ORIGIN") + board.number("RAM_BYTES") and reset & 1
    assert not [name for name in symbols(image.elf) if FORBIDDEN.fullmatch(name)]


def symbols(elf: Path) -> list[str]:
    with elf.open("rb") as file:
        return [symbol.name for symbol in ELFFile(file).get_section_by_name(".symtab").iter_symbols()]


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


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed: apt-get install make")
@pytest.mark.parametrize(
    ("name", "compiler"), [("microbit", "zig"), *((name, "gcc") for name in ("mps2-an386", "microbit", "rv32-virt"))]
)
def test_makefile_builds_the_same_image_without_warnings(name, compiler, small_model, tmp_path):
    need(compiler, name)
    emit(small_model, tmp_path / "model", NAME, load_board(name).target)
    settings = [f"BOARD={name}", f"MODEL={tmp_path / 'model'}", f"OUT={tmp_path}", f"COMPILER={compiler}"]
    settings += [f"WARNINGS={flags()['WARNINGS']} -Werror", f"ZIG={sys.executable} -m ziglang cc"]
    subprocess.run(["make", "-s", "-C", ROOT / "firmware", *settings], check=True)
    assert flash_bytes(tmp_path / f"{name}.elf") == build(small_model, name, tmp_path / "py", compiler).bin.read_bytes()


def test_missing_compilers_are_named_with_the_install_line(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        BuildError, match="no compiler for microbit: apt-get install gcc-arm-none-eabi, or pip install zig"
    ):
        build(small_model, "microbit", tmp_path)
    with pytest.raises(BuildError, match="ziglang is not installed: pip install ziglang"):
        build(small_model, "microbit", tmp_path, "zig")
    with pytest.raises(BuildError, match="unknown compiler 'icc'; there are: gcc, zig"):
        build(small_model, "microbit", tmp_path, "icc")
    assert not list(tmp_path.iterdir())


def test_model_that_does_not_fit_leaves_no_files(tmp_path, rng_model):
    need("gcc")
    with pytest.raises(BuildError, match=r"region .*FLASH.* overflowed"):
        build(rng_model(30, 240, 2), "microbit", tmp_path / "out", "gcc")
    assert not (tmp_path / "out").exists()


def test_model_too_wide_for_the_link(tmp_path, rng_model):
    with pytest.raises(
        BuildError, match="122 inputs and 2 outputs; the test program's link carries at most 121 and 60"
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


FILES = flash.Files(Path("a b.elf"), Path("a.bin"), Path("a.hex"))


@pytest.mark.parametrize(
    ("board", "runner", "port", "expected"),
    [
        ("microbit", "pyocd", None, "pyocd flash --target nrf51 a.hex"),
        ("microbit", "pyocd", "99", "pyocd flash --target nrf51 --uid 99 a.hex"),
        ("microbit", "drive", "/mnt", f"{sys.executable} -m stepwell.flash a.hex /mnt"),
        ("netduinoplus2", "st-flash", None, "st-flash --reset write a.bin 0x08000000"),
        ("netduinoplus2", "st-flash", "77", "st-flash --reset --serial 77 write a.bin 0x08000000"),
        (
            "netduinoplus2",
            "dfu-util",
            None,
            "dfu-util --device 0483:df11 --alt 0 --dfuse-address 0x08000000:leave --download a.bin",
        ),
    ],
)
def test_flash_commands(board, runner, port, expected):
    assert flash.RUNNERS[runner](load_board(board), FILES, port) == expected.split()


def test_openocd_command():
    command = flash.RUNNERS["openocd"](load_board("netduinoplus2"), FILES, "5")
    assert command[:5] == ["openocd", "-f", "interface/stlink.cfg", "-f", "target/stm32f4x.cfg"]
    assert command[5:] == ["-c", "adapter serial 5", "-c", "program {a b.elf} verify reset exit"]


def test_only_a_boards_drive_is_written_to(tmp_path):
    """A folder that is no drive of a board, or none at all, is an error: nothing was flashed."""
    image = tmp_path / "m.hex"
    image.write_text(":00000001FF\n")
    files, drive = flash.Files(image, image, image), tmp_path / "drive"
    with pytest.raises(BuildError, match="failed with exit code 1"):
        flash.flash(load_board("microbit"), files, "drive", str(drive))
    assert not drive.exists()
    drive.mkdir()
    (drive / "DETAILS.TXT").write_text("Interface Version: 0255\n")
    flash.flash(load_board("microbit"), files, "drive", str(drive))
    assert (drive / "m.hex").read_text() == image.read_text()


def test_makefile_builds_anew_for_another_model(tmp_path, small_model):
    if why_not("gcc") or not shutil.which("make"):
        pytest.skip("needs make and arm-none-eabi-gcc")
    images = []
    for name in ("a", "b"):
        model = small_model if name == "a" else load(ROOT / "tests" / "golden" / "softmax.stw")
        emit(model, tmp_path / name, NAME)
        command = ["make", "-C", ROOT / "firmware", "BOARD=microbit", f"MODEL={tmp_path / name}", f"OUT={tmp_path}"]
        subprocess.run(command, check=True, capture_output=True)
        images.append((tmp_path / "microbit.elf").read_bytes())
        subprocess.run(["touch", "-d", "1 hour ago", *(tmp_path / name).iterdir()], check=True)
    assert images[0] != images[1]
    done = subprocess.run([*command, "COMPILER=clang"], capture_output=True, text=True)
    assert done.returncode != 0 and "unknown COMPILER clang" in done.stderr


def test_runner_is_chosen_or_refused(monkeypatch, tmp_path):
    microbit = load_board("microbit")
    monkeypatch.setattr("shutil.which", lambda program: None)
    monkeypatch.setattr(flash, "mounted_drive", lambda label: tmp_path)
    assert flash.choose(microbit, None) == "drive" and flash.choose(microbit, "pyocd") == "pyocd"
    monkeypatch.setattr(flash, "mounted_drive", lambda label: tmp_path / "absent")
    with pytest.raises(BuildError, match="none of the programs that flash microbit is installed"):
        flash.choose(microbit, None)
    with pytest.raises(BuildError, match="cannot be flashed by 'st-flash'; it can by: pyocd, openocd, drive"):
        flash.choose(microbit, "st-flash")
    with pytest.raises(BuildError, match="is an emulator's: there is nothing to flash"):
        flash.choose(load_board("mps2-an386"), None)
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(BuildError, match="none of the programs that flash netduinoplus2 is installed"):
        flash.choose(load_board("netduinoplus2"), None)
    assert boards.LABELS == ("emulated", "built only", "seen on hardware")
