"""What reads the C without running it: cppcheck, clang-tidy, and gcc's own figures of stack and
calls.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import stepwell
from conftest import ROOT, full, need
from stepwell.boards import Board, board_names, flags, load_board
from stepwell.emit import emit
from stepwell.sources import csrc, firmware

sys.path.insert(0, str(ROOT / "tools"))
import misra
import prove

CSRC, FIRMWARE = csrc(), firmware()  # as installed: boards name their files there
APP, CPU = FIRMWARE / "app", FIRMWARE / "cpu"
SIMAVR = FIRMWARE / "emulators" / "simavr.c"
SOURCES = [*sorted(CSRC.glob("*.c")), *sorted(APP.glob("*.c"))]
# >> of a negative value is implementation-defined: stw_fix.h refuses compilers that do not shift
# arithmetically; start.c and ram.h walk from one symbol of the linker script to another
SUPPRESSED = (
    "shiftTooManyBitsSigned",
    "shiftNegativeLHS",
    "toomanyconfigs",
    f"comparePointers:{CPU}/*",
)
TARGETS = {
    "cortex_m": "arm-none-eabi",
    "riscv": "riscv32-unknown-elf",
    "avr": "avr",
}  # folder of firmware/cpu -> clang's


@pytest.fixture(scope="module")
def includes(tmp_path_factory) -> list[str]:
    """Where the headers are: the firmware includes a model's."""
    folder = tmp_path_factory.mktemp("model")
    emit(stepwell.load(ROOT / "tests" / "golden" / "lstm.stw"), folder, "app_model")
    for path in folder.iterdir():
        if path.name != "app_model.h":
            path.unlink()
    return [
        f"-I{path}" for path in (CSRC, folder, APP, APP.parent, ROOT / "tests" / "c" / "service")
    ]


# what of the device's program is for boards that take updates
UPDATES = [
    "-DBOARD_UPDATE_BYTES=8192",
    "-DBOARD_UPDATE_PAGE_BYTES=256",
    "-DBOARD_UPDATE_RAM_BYTES=4096",
]


def assert_clean(*command: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def cppcheck(*words: str | Path) -> None:
    need("cppcheck", "apt-get install cppcheck")
    checks = [
        "--enable=warning,performance,portability",
        *(f"--suppress={name}" for name in SUPPRESSED),
    ]
    assert_clean(
        "cppcheck", *checks, "--std=c99", "-q", "--error-exitcode=1", "-DBOARD_NAME=host", *words
    )


def clang_tidy(sources: list[Path], *flags: str | Path) -> None:
    """.clang-tidy lists the checks, and why some are off."""
    need("clang-tidy", "apt-get install clang-tidy")
    assert_clean("clang-tidy", "--quiet", *sources, "--", "-std=gnu99", "-DBOARD_NAME=host", *flags)


@pytest.mark.full
@pytest.mark.parametrize("update", [[], UPDATES], ids=["", "updates"])
def test_cppcheck(update, includes):
    cppcheck("-USTW_CHECKED", "-j2", *update, *includes, *SOURCES)


@pytest.mark.full
@pytest.mark.parametrize("half", [0, 1])
def test_clang_tidy(half, includes):
    clang_tidy(SOURCES[half::2], "-DSTW_WITH_AVX2=1", *UPDATES, *includes)


def sources_of(board: Board) -> list[Path]:
    """What a board's image has beside the program and the model: the port, the reset code, and what
    a C library would have.
    """
    folders = (CPU / board.text("CPU"), CPU / "freestanding")
    return [board.port, *(path for folder in folders for path in sorted(folder.glob("*.c")))]


def flags_of(board: Board) -> list[str]:
    """The board's facts and folders. Its name is left out: it may be no word of C."""
    facts = flags() | board.facts
    keys = [*facts["C_FACTS"].split(), *board.words("PORT_FACTS")]
    folders = (CPU / board.text("CPU"), CPU / "freestanding", FIRMWARE, FIRMWARE / "ports", CSRC)
    return [f"-DBOARD_{key}={facts[key]}" for key in keys if key != "NAME"] + [
        f"-I{folder}" for folder in folders
    ]


@pytest.mark.parametrize("name", full(board_names(), "microbit"))
def test_cppcheck_of_ports(name):
    board = load_board(name)
    arch = 6 if board.core.startswith("cortex-m0") else 7  # which a compiler would know
    cppcheck(f"-D__ARM_ARCH={arch}", *flags_of(board), *sources_of(board))


@pytest.mark.parametrize("name", full(board_names(), "microbit"))
def test_clang_tidy_of_ports(name):
    board = load_board(name)
    core = [
        word.replace("_zicsr", "") for word in board.words("CPU_GCC")
    ]  # clang 14 has it in every RISC-V
    target = f"--target={TARGETS[board.text('CPU')]}"
    clang_tidy(sources_of(board), target, "-ffreestanding", *core, *flags_of(board))


def test_every_port_belongs_to_a_board():
    """What no board names would not be checked."""
    checked = {path for name in board_names() for path in sources_of(load_board(name))}
    there = [
        path for folder in ("ports", "boards", "cpu") for path in (FIRMWARE / folder).rglob("*.c")
    ]
    assert len(there) > 10 and set(there) <= checked


@pytest.mark.full
def test_simavr_runner():
    cppcheck(SIMAVR)
    if not Path("/usr/include/simavr").is_dir():
        pytest.skip("simavr's headers are not installed: apt-get install libsimavr-dev libelf-dev")
    clang_tidy([SIMAVR])


def test_every_recorded_deviation_from_misra_has_its_reason():
    recorded = misra.recorded(misra.DOC.read_text())
    assert len(recorded) > 20 and set(recorded) <= set(misra.REASONS)
    assert all(count > 0 for files in recorded.values() for count in files.values())


@pytest.mark.full
def test_a_new_deviation_from_misra_is_seen(tmp_path):
    need("cppcheck", "apt-get install cppcheck")
    (tmp_path / "bad.c").write_text(
        "int f(int n);\nint f(int n)\n{\n    goto end;\nend:\n    return n;\n}\n"
    )
    found = misra.deviations(tmp_path)
    assert found["15.1"]["bad.c"] == 1
    assert "rule 15.1: bad.c has 1, 0 are written down" in misra.risen(
        found, misra.recorded(misra.DOC.read_text())
    )


def test_what_eva_reads_by_definition_is_there():
    header = (CSRC / "stw_fix.h").read_text()
    assert "return a < b ? a : b;" in prove.read_by_definition(header)
