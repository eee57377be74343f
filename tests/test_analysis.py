"""What reads the C without running it: cppcheck, clang-tidy, and gcc's own figures of stack and calls."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import stepwell
from conftest import ROOT
from stepwell.emit import emit

sys.path.insert(0, str(ROOT / "tools"))
import misra
import prove

CSRC, APP = ROOT / "csrc", ROOT / "firmware" / "app"
SOURCES = [*sorted(CSRC.glob("*.c")), *sorted(APP.glob("*.c"))]
# >> of a negative value is implementation-defined: stw_fix.h refuses compilers that do not shift arithmetically
SUPPRESSED = ("shiftTooManyBitsSigned", "shiftNegativeLHS", "toomanyconfigs")


@pytest.fixture(scope="module")
def includes(tmp_path_factory) -> list[str]:
    """Where the headers are: the firmware includes a model's."""
    folder = tmp_path_factory.mktemp("model")
    emit(stepwell.load(ROOT / "tests" / "golden" / "lstm.stw"), folder, "app_model")
    for path in folder.iterdir():
        if path.name != "app_model.h":
            path.unlink()
    return [f"-I{path}" for path in (CSRC, folder, APP, APP.parent, ROOT / "tests" / "c" / "service")]


# what of the device's program is for boards that take updates
UPDATES = ["-DBOARD_UPDATE_BYTES=8192", "-DBOARD_UPDATE_PAGE_BYTES=256", "-DBOARD_UPDATE_RAM_BYTES=4096"]


def need(program: str, package: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed: apt-get install {package}")


def assert_clean(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("update", [[], UPDATES], ids=["", "updates"])
def test_cppcheck(update, includes):
    need("cppcheck", "cppcheck")
    checks = ["--enable=warning,performance,portability", *(f"--suppress={name}" for name in SUPPRESSED)]
    options = ["--std=c99", "-q", "--error-exitcode=1", "-USTW_CHECKED", "-DBOARD_NAME=host", "-j2", *update]
    assert_clean("cppcheck", *checks, *options, *includes, *SOURCES)


@pytest.mark.parametrize("half", [0, 1])
def test_clang_tidy(half, includes):
    """.clang-tidy lists the checks, and why some are off."""
    need("clang-tidy", "clang-tidy")
    flags = ["-std=gnu99", "-DBOARD_NAME=host", "-DSTW_WITH_AVX2=1", *UPDATES, *includes]
    assert_clean("clang-tidy", "--quiet", *SOURCES[half::2], "--", *flags)


def test_every_recorded_deviation_from_misra_has_its_reason():
    recorded = misra.recorded(misra.DOC.read_text())
    assert len(recorded) > 20 and set(recorded) <= set(misra.REASONS)
    assert all(count > 0 for files in recorded.values() for count in files.values())


def test_a_new_deviation_from_misra_is_seen(tmp_path):
    need("cppcheck", "cppcheck")
    (tmp_path / "bad.c").write_text("int f(int n);\nint f(int n)\n{\n    goto end;\nend:\n    return n;\n}\n")
    found = misra.deviations(tmp_path)
    assert found["15.1"]["bad.c"] == 1
    assert "rule 15.1: bad.c has 1, 0 are written down" in misra.risen(found, misra.recorded(misra.DOC.read_text()))


def test_what_eva_reads_by_definition_is_there():
    header = (CSRC / "stw_fix.h").read_text()
    assert "return a < b ? a : b;" in prove.read_by_definition(header)
