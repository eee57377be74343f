"""examples/: what can be compiled without the framework that an example is for."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import stepwell
from conftest import ROOT
from stepwell.emit import emit

GCC = "riscv64-unknown-elf-gcc"
IDF = {  # declarations of ESP-IDF, as its documentation gives them
    "esp_cpu.h": "#include <stdint.h>\ntypedef uint32_t esp_cpu_cycle_count_t;\n"
    "esp_cpu_cycle_count_t esp_cpu_get_cycle_count(void);\n",
    "freertos/FreeRTOS.h": "#define pdMS_TO_TICKS(ms) ((unsigned)(ms) / 10u)\n",
    "freertos/task.h": "void vTaskDelay(unsigned ticks);\nvoid app_main(void);\n",
    # the compiler of Debian comes without a C library
    "inttypes.h": '#include <stdint.h>\n#define PRId32 "ld"\n#define PRIu32 "lu"\n',
    "stdio.h": "int printf(const char *format, ...);\n",
}


def test_esp_idf_component_configures(tmp_path):
    """ESP-IDF reads each component's CMakeLists.txt in script mode first, to know its requirements."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed: apt-get install cmake")
    component = tmp_path / "motor"
    shutil.copytree(ROOT / "examples" / "esp-idf" / "components" / "motor", component)
    emit(stepwell.load(ROOT / "tests" / "golden" / "two_lstm_three_dense.stw"), component / "src", "motor")
    (tmp_path / "requirements.cmake").write_text(
        'macro(idf_component_register)\n  message("registered: ${ARGN}")\n  return()\nendmacro()\n'
        f"include({component / 'CMakeLists.txt'})\n"
    )
    done = subprocess.run(["cmake", "-P", tmp_path / "requirements.cmake"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "stepwell.c" in done.stderr and "motor.c" in done.stderr and "main.c" not in done.stderr


def test_esp_idf_component_compiles(tmp_path):
    if shutil.which(GCC) is None:
        pytest.skip(f"{GCC} is not installed: apt-get install gcc-riscv64-unknown-elf")
    emit(stepwell.load(ROOT / "tests" / "golden" / "two_lstm_three_dense.stw"), tmp_path / "src", "motor")
    for name, text in IDF.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    example = ROOT / "examples" / "esp-idf"
    own = [path for path in (tmp_path / "src").glob("*.c") if path.name != "main.c"]
    options = "-std=gnu17 -O1 -march=rv32imc_zicsr -mabi=ilp32 -ffreestanding -Wall -Wextra -Werror -c".split()
    include = ["-I", tmp_path / "src", "-isystem", tmp_path, "-isystem", ROOT / "firmware" / "cpu" / "freestanding"]
    subprocess.run([GCC, *options, *include, example / "main" / "main.c", *own], cwd=tmp_path, check=True)
