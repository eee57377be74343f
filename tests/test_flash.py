"""flash: the command of every runner, real programs against emulated bootloaders, images of another
board, drives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bootloaders import Optiboot, Stm32
from conftest import need, skip_for
from stepwell.boards import Board, board_names, flash, load_board
from stepwell.boards.build import build, no_compiler
from stepwell.errors import BuildError, PortMissing, WrongUse

FACTS = {
    "FLASH_ORIGIN": "0x08000000",
    "OPENOCD_FILES": "interface/stlink.cfg target/stm32f4x.cfg",
    "PYOCD_TARGET": "nrf51",
    "DFU_DEVICE": "0483:df11",
    "DFU_ALT": "0",
    "DRIVE_LABEL": "LABEL",
    "STM32LOADER_FAMILY": "F4",
    "ESPTOOL_CHIP": "esp32c3",
    "ESPTOOL_OFFSET": "0x10000",
    "AVRDUDE_PART": "m328p",
    "AVRDUDE_PROGRAMMER": "arduino",
    "AVRDUDE_BAUD": "115200",
}
ANY = Board(Path("any"), FACTS)
COPY = f"{sys.executable} -m stepwell.boards.flash"
STM = "--family F4 --erase --write --verify --address 0x08000000 --go-address 0x08000000 a.bin"
AVR = "avrdude -p m328p -c arduino -P"
DFU = "--alt 0 --dfuse-address 0x08000000:leave --download a.bin"
COMMANDS = [
    ("pyocd", None, "pyocd flash --target nrf51 a.hex"),
    ("pyocd", "99", "pyocd flash --target nrf51 --uid 99 a.hex"),
    ("st-flash", None, "st-flash --reset write a.bin 0x08000000"),
    ("st-flash", "77", "st-flash --reset --serial 77 write a.bin 0x08000000"),
    ("dfu-util", None, f"dfu-util --device 0483:df11 {DFU}"),
    (
        "dfu-util",
        "2F",
        f"dfu-util --device 0483:df11 --alt 0 --serial 2F {DFU.removeprefix('--alt 0 ')}",
    ),
    ("stm32loader", None, f"stm32loader --port PORT {STM}"),
    ("stm32loader", "/dev/ttyUSB0", f"stm32loader --port /dev/ttyUSB0 {STM}"),
    ("esptool", "COM4", "esptool --chip esp32c3 --port COM4 write-flash 0x10000 a.bin"),
    ("avrdude", "/dev/ttyACM0", f"{AVR} /dev/ttyACM0 -b 115200 -D -U flash:w:a.hex:i"),
    ("picotool", None, "picotool load -v -x a.uf2"),
    ("picotool", "E6", "picotool load -v -x a.uf2 --ser E6"),
    ("drive", "/mnt", f"{COPY} a.hex /mnt"),
    ("uf2", "/mnt", f"{COPY} a.uf2 /mnt"),
]


@pytest.mark.parametrize(("runner", "port", "expected"), COMMANDS)
def test_commands(runner, port, expected):
    assert flash.RUNNERS[runner](ANY, flash.Files(Path("a.elf")), port) == expected.split()


def test_openocd_command_keeps_a_blank():
    command = flash.RUNNERS["openocd"](ANY, flash.Files(Path("a b.elf")), "5")
    assert command[:5] == ["openocd", "-f", "interface/stlink.cfg", "-f", "target/stm32f4x.cfg"]
    assert command[5:] == ["-c", "adapter serial 5", "-c", "program {a b.elf} verify reset exit"]


def test_every_runner_is_compared():
    assert {runner for runner, _, _ in COMMANDS} | {"openocd"} == set(flash.RUNNERS)


def test_a_programmer_may_erase_the_chip_and_need_no_baud_rate():
    facts = {"AVRDUDE_PART": "m2560", "AVRDUDE_PROGRAMMER": "usbasp"}
    command = flash.RUNNERS["avrdude"](Board(Path("any"), facts), flash.Files(Path("a.elf")), "usb")
    assert command == "avrdude -p m2560 -c usbasp -P usb -U flash:w:a.hex:i".split()


@pytest.mark.parametrize("name", board_names())
def test_boards_give_the_keys_of_their_runners(name):
    board = load_board(name)
    for runner in board.words("FLASH_RUNNERS"):
        assert flash.RUNNERS[runner](board, flash.Files(Path("a.elf")), None)


# ---- real programs against emulated bootloaders ----


def need_for(board: str, program: str | None = None) -> None:
    """Skip when no compiler builds for the board, or the flash program is missing."""
    skip_for(no_compiler(load_board(board)))
    if program:
        need(program, flash.INSTALL[program])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with a board of one's own, which is flashed by serial bootloaders."""
    site = tmp_path_factory.mktemp("site")
    (site / "stm").mkdir()
    lines = load_board("netduinoplus2").facts | FACTS | {"FLASH_RUNNERS": "stm32loader esptool"}
    (site / "stm" / "board.mk").write_text(
        "".join(f"{k} = {v}\n" for k, v in lines.items() if k != "NAME")
    )
    return site


@pytest.fixture
def flashed(site, small_model):
    """(board, runner, port) -> the program's run, and the image that it was to write."""

    def run(name: str, runner: str, port: str) -> tuple[subprocess.CompletedProcess, bytes]:
        board, image = str(site / name) if (site / name).is_dir() else name, site / f"{name}.elf"
        if not image.exists():
            build(small_model, board, site)
        command = [
            sys.executable,
            "-m",
            "stepwell",
            "flash",
            "--board",
            board,
            "--runner",
            runner,
            "--port",
            port,
        ]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])
        }
        done = subprocess.run(
            command, cwd=site, env=environment, capture_output=True, text=True, timeout=60
        )
        return done, image.with_suffix(".bin").read_bytes()

    return run


def refused(done: subprocess.CompletedProcess, runner: str, board: str, words: str) -> bool:
    """Exit code 1, the program's own words, and ours after them."""
    ours = f"stepwell: {runner} could not write {board}.elf to {board}: exit code "
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(ours), done.stderr
    return words in done.stdout + done.stderr


@pytest.fixture
def stm32loader_over_tcp(site):
    """stm32loader opens device files alone; here pyserial gives it a URL's port. The program itself
    is as installed.
    """
    need_for("netduinoplus2", "stm32loader")
    (site / "sitecustomize.py").write_text(
        "import serial\nserial.Serial = lambda port, **rest: serial.serial_for_url(port, **rest)\n"
    )
    yield
    (site / "sitecustomize.py").unlink()


def test_stm32loader_writes_verifies_and_starts(flashed, stm32loader_over_tcp):
    with Stm32() as chip:
        chip.flash[:2000] = bytes(2000)  # what was there before must be erased
        done, image = flashed("stm", "stm32loader", f"socket://127.0.0.1:{chip.port}")
    assert done.returncode == 0 and "stm.elf written to stm by stm32loader" in done.stdout, (
        done.stderr
    )
    assert chip.flash[: len(image)] == image and set(chip.flash[len(image) + 4 :]) == {0xFF}
    assert chip.started == 0x08000000


def test_stm32loader_is_refused(flashed, stm32loader_over_tcp):
    with Stm32(refuse=Stm32.WRITE) as chip:
        done, _ = flashed("stm", "stm32loader", f"socket://127.0.0.1:{chip.port}")
    assert refused(done, "stm32loader", "stm", "NACK Command"), done.stderr
    assert set(chip.flash) == {0xFF} and chip.started is None


def test_avrdude_writes_and_verifies(flashed):
    need_for("arduino-uno", "avrdude")
    with Optiboot() as chip:
        done, image = flashed("arduino-uno", "avrdude", f"net:127.0.0.1:{chip.port}")
    assert (
        done.returncode == 0 and "arduino-uno.elf written to arduino-uno by avrdude" in done.stdout
    ), done.stderr
    assert chip.flash[: len(image)] == image


def test_avrdude_refuses_another_chip(flashed):
    need_for("arduino-uno", "avrdude")
    with Optiboot(signature=b"\x1e\x98\x01") as chip:  # an ATmega2560
        done, _ = flashed("arduino-uno", "avrdude", f"net:127.0.0.1:{chip.port}")
    assert refused(
        done, "avrdude", "arduino-uno", "expected signature for ATmega328P is 1E 95 0F"
    ), done.stderr
    assert set(chip.flash) == {0xFF}


def test_avrdude_says_when_pages_are_not_written(flashed):
    need_for("arduino-uno", "avrdude")
    with Optiboot(refuse=Optiboot.WRITE_PAGE) as chip:
        done, _ = flashed("arduino-uno", "avrdude", f"net:127.0.0.1:{chip.port}")
    assert refused(done, "avrdude", "arduino-uno", "protocol expects OK byte 0x10 but got 0x11"), (
        done.stderr
    )


def test_esptool_writes_what_is_read_back(flashed, tmp_path):
    need_for("netduinoplus2", "esptool")
    bootloader = pytest.importorskip("esp32_mock_bootloader")
    with bootloader.mock_bootloader("esp32c3") as chip:
        done, image = flashed("stm", "esptool", chip.url())
        assert done.returncode == 0 and "stm.elf written to stm by esptool" in done.stdout, (
            done.stderr
        )
        read = ["read-flash", "0x10000", str(len(image)), str(tmp_path / "read")]
        command = ["esptool", "--port", chip.url(), "--before", "no-reset", "--no-stub", *read]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert (tmp_path / "read").read_bytes() == image
    with bootloader.mock_bootloader("esp32") as chip:
        done, _ = flashed("stm", "esptool", chip.url())
    assert refused(done, "esptool", "stm", "This chip is ESP32, not ESP32-C3"), done.stderr


# ---- what is refused before any program runs ----


@pytest.fixture(scope="module")
def microbit(tmp_path_factory, small_model):
    need_for("microbit")
    return build(small_model, "microbit", tmp_path_factory.mktemp("microbit"))


def test_image_of_another_board_is_refused(microbit, tmp_path):
    board, files = load_board("netduinoplus2"), flash.Files(microbit.elf)
    with pytest.raises(
        BuildError, match=r"microbit\.elf is built for microbit; run `stepwell build --board netdui"
    ):
        flash.flash(board, files, "openocd")
    with pytest.raises(BuildError, match=r"python.* is not built by stepwell: it names no board"):
        flash.flash(board, flash.Files(Path(sys.executable).resolve()), "openocd")
    (tmp_path / "m.elf").write_text("no ELF")
    with pytest.raises(BuildError, match=r"m\.elf: no ELF file"):
        flash.flash(board, flash.Files(tmp_path / "m.elf"), "openocd")


def test_files_of_another_build_are_refused(microbit, tmp_path):
    elf = Path(shutil.copy(microbit.elf, tmp_path))
    shutil.copy(microbit.bin, tmp_path)
    elf.with_suffix(".hex").write_text(microbit.hex.read_text().replace("A", "B"))
    with pytest.raises(
        BuildError, match=r"microbit\.hex is missing or not of microbit\.elf: run `stepwell build`"
    ):
        flash.flash(load_board("microbit"), flash.Files(elf), "pyocd")


def test_serial_bootloaders_need_a_port(microbit):
    board = Board(
        load_board("microbit").folder, load_board("microbit").facts | FACTS | {"FLASH_ORIGIN": "0"}
    )
    board.facts["FLASH_RUNNERS"] = " ".join(flash.NEED_PORT)
    for runner in flash.NEED_PORT:
        with pytest.raises(
            PortMissing, match=f"{runner} needs --port, the board's serial port; `stepwell boards`"
        ):
            flash.flash(board, flash.Files(microbit.elf), runner)


def test_only_a_boards_drive_is_written_to(microbit, tmp_path):
    """A folder that is no drive of a board, or none at all, is an error: nothing was flashed."""
    board, files, drive = load_board("microbit"), flash.Files(microbit.elf), tmp_path / "drive"
    for mark in ("", "INFO_UF2.TXT"):
        if mark:
            drive.mkdir()
            (drive / mark).touch()
        with pytest.raises(
            BuildError, match=r"drive could not write .*microbit\.elf to microbit: exit code 1"
        ):
            flash.flash(board, files, "drive", str(drive))
    (drive / "DETAILS.TXT").write_text("Interface Version: 0255\n")
    flash.flash(board, files, "drive", str(drive))
    assert (drive / "microbit.hex").read_bytes() == microbit.hex.read_bytes()


def test_runner_is_chosen_or_refused(monkeypatch, tmp_path):
    microbit = load_board("microbit")
    monkeypatch.setattr("shutil.which", lambda program: None)
    monkeypatch.setattr(flash, "mounted_drive", lambda label: tmp_path)
    assert flash.choose(microbit, None) == "drive" and flash.choose(microbit, "pyocd") == "pyocd"
    monkeypatch.setattr(flash, "mounted_drive", lambda label: tmp_path / "absent")
    with pytest.raises(BuildError, match="none of the programs that flash microbit is installed"):
        flash.choose(microbit, None)
    with pytest.raises(
        WrongUse, match="cannot be flashed by 'st-flash'; it can by: pyocd, openocd, drive"
    ):
        flash.choose(microbit, "st-flash")
    with pytest.raises(BuildError, match="is an emulator's: there is nothing to flash"):
        flash.choose(load_board("mps2-an386"), None)
    with pytest.raises(
        BuildError, match="board any: FLASH_RUNNERS names 'jtag'; there are: openocd, pyocd"
    ):
        flash.choose(Board(Path("any"), {"FLASH_RUNNERS": "openocd jtag"}), "openocd")


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "--board", "absent", "m.stw"],
        ["flash", "--board", "absent"],
        ["flash", "--board", "./absent"],
        ["hil", "--port", "qemu:absent", "m.stw", "--data", "x.npz"],
    ],
)
def test_unknown_board_is_wrong_use(arguments, tmp_path, small_model):
    small_model.save(tmp_path / "m.stw")
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 2, small_model.n_in)))
    command = [sys.executable, "-m", "stepwell", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "absent" in done.stderr and "there are: " in done.stderr, (
        done.stderr
    )


# ---- the command ----


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "stepwell", "flash", *map(str, arguments)]
    return subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, env=os.environ | {"PATH": str(cwd)}
    )


IMAGES = [  # what --image is, made from a good one; what is said of it
    ("whole", None),
    ("absent", "no {image}: run `stepwell build --board microbit MODEL.stw` first"),
    ("folder", "{image} is a folder: give the .elf file in it"),
    ("empty", "{image}: no ELF file that `stepwell build` wrote"),
    ("half", "{image}: no ELF file that `stepwell build` wrote"),
    (
        "another board's",
        "{image} is built for microbit; run `stepwell build --board netduinoplus2 MODEL.stw`",
    ),
    ("alone", "missing or not of image.elf: run `stepwell build` again"),
    ("a program", "{image} is not built by stepwell: it names no board"),
]


@pytest.fixture(params=IMAGES, ids=[name for name, _ in IMAGES])
def image(request, microbit, tmp_path):
    """A path for --image, what is said of it, and which it is."""
    name, said = request.param
    elf, content = tmp_path / "image.elf", microbit.elf.read_bytes()
    if name == "folder":
        elf.mkdir()
    elif name == "a program":
        elf.write_bytes(Path(sys.executable).read_bytes())
    elif name != "absent":
        elf.write_bytes({"empty": b"", "half": content[: len(content) // 2]}.get(name, content))
    if name == "whole":
        for path in (microbit.bin, microbit.hex):
            shutil.copy(path, elf.with_suffix(path.suffix))
    return elf, said and said.format(image=elf), name


def test_dry_run_and_run_check_the_image_alike(image, tmp_path):
    """Without a program that could flash: the image comes first."""
    elf, said, name = image
    board = "netduinoplus2" if name == "another board's" else "microbit"
    real = command("--board", board, "--image", elf, cwd=tmp_path)
    assert real.returncode == 1
    assert (said or "none of the programs that flash microbit is installed") in real.stderr
    dry = command("--board", board, "--image", elf, "--dry-run", cwd=tmp_path)
    if name in ("whole", "absent"):
        assert (
            dry.returncode == 0
            and f"pyocd flash --target nrf51 {elf.with_suffix('.hex')}" in dry.stdout
        )
        assert dry.stderr == (
            ""
            if name == "whole"
            else f"stepwell: {elf} is not there yet: `stepwell build` writes it\n"
        )
    else:
        assert (
            dry.returncode == 1
            and said in dry.stderr
            and dry.stderr.startswith("stepwell: ")
            and not dry.stdout
        )


def test_port_missing_is_wrong_use(tmp_path):
    done = command("--board", "nucleo-f446re", "--runner", "stm32loader", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("stepwell: stm32loader needs --port"), (
        done.stderr
    )
