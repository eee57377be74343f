"""examples/: the Arduino sketch runs on an emulated board; the others are compiled without the
framework they are for.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import stepwell
from conftest import ROOT, need, skip_for
from stepwell.boards import load_board
from stepwell.emit import emit
from stepwell.link import simavr

MODEL = ROOT / "tests" / "golden" / "two_lstm_three_dense.stw"
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
    need("cmake", "apt-get install cmake")
    component = tmp_path / "motor"
    shutil.copytree(ROOT / "examples" / "esp-idf" / "components" / "motor", component)
    emit(stepwell.load(MODEL), component / "src", "motor")
    (tmp_path / "requirements.cmake").write_text(
        'macro(idf_component_register)\n  message("registered: ${ARGN}")\n  return()\nendmacro()\n'
        f"include({component / 'CMakeLists.txt'})\n"
    )
    done = subprocess.run(
        ["cmake", "-P", tmp_path / "requirements.cmake"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "stepwell.c" in done.stderr and "motor.c" in done.stderr and "main.c" not in done.stderr


def test_esp_idf_component_compiles(tmp_path):
    need(GCC, "apt-get install gcc-riscv64-unknown-elf")
    emit(stepwell.load(MODEL), tmp_path / "src", "motor")
    for name, text in IDF.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    example = ROOT / "examples" / "esp-idf"
    own = [path for path in (tmp_path / "src").glob("*.c") if path.name != "main.c"]
    options = "-std=gnu17 -O1 -march=rv32imc_zicsr -mabi=ilp32 -ffreestanding -Wall -Wextra -Werror -c".split()
    include = [
        "-I",
        tmp_path / "src",
        "-isystem",
        tmp_path,
        "-isystem",
        ROOT / "firmware" / "cpu" / "freestanding",
    ]
    subprocess.run(
        [GCC, *options, *include, example / "main" / "main.c", *own], cwd=tmp_path, check=True
    )


# what find_package(Zephyr) does for an application, and declarations of Zephyr, as its
# documentation gives them
ZEPHYR = {
    "ZephyrConfig.cmake": "project(Zephyr-Kernel C)\nadd_library(app STATIC)\n",
    "zephyr/kernel.h": "#include <stdint.h>\nuint32_t k_cycle_get_32(void);\nint32_t k_msleep(int32_t ms);\n",
    "zephyr/sys/printk.h": "void printk(const char *format, ...);\n",
}


def test_zephyr_application_compiles(tmp_path):
    for program in ("cmake", "make"):
        need(program, f"apt-get install {program}")
    for program in ("arm-none-eabi-gcc", "arm-none-eabi-g++"):
        need(program, "apt-get install gcc-arm-none-eabi")
    app = tmp_path / "app"
    shutil.copytree(ROOT / "examples" / "zephyr", app)
    emit(stepwell.load(MODEL), app / "motor", "motor", "cortex-m4")
    for name, text in ZEPHYR.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    include = f"-isystem {tmp_path} -isystem {ROOT / 'firmware' / 'cpu' / 'freestanding'}"
    settings = {
        "Zephyr_DIR": tmp_path,
        "CMAKE_SYSTEM_NAME": "Generic",
        "CMAKE_C_COMPILER": "arm-none-eabi-gcc",
        "CMAKE_CXX_COMPILER": "arm-none-eabi-g++",
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
        "CMAKE_C_FLAGS": f"-mcpu=cortex-m4 -mthumb -ffreestanding -Wall -Wextra -Werror {include}",
    }
    defines = [f"-D{key}={value}" for key, value in settings.items()]
    subprocess.run(
        ["cmake", "-S", app, "-B", tmp_path / "build", *defines], check=True, capture_output=True
    )
    subprocess.run(["cmake", "--build", tmp_path / "build"], check=True, capture_output=True)
    names = subprocess.run(
        ["ar", "t", tmp_path / "build" / "libapp.a"], check=True, capture_output=True, text=True
    )
    assert names.stdout.split().count("main.c.obj") == 1 and "motor.c.obj" in names.stdout


ARDUINO = Path("/usr/share/arduino/hardware/arduino/avr")
MEGA = (
    "-mmcu=atmega2560 -DF_CPU=16000000L -DARDUINO=10819 -DARDUINO_AVR_MEGA2560 -DARDUINO_ARCH_AVR"
)
# of Arduino's platform.txt; DECIMAL_DIG: Debian's avr-gcc is older than the one that Arduino ships
OPTIONS = f"-c -Os -w -ffunction-sections -fdata-sections -flto -fno-fat-lto-objects -DDECIMAL_DIG=__DECIMAL_DIG__ {MEGA}"
DIALECTS = {
    ".c": "-std=gnu11",
    ".cpp": "-std=gnu++11 -fpermissive -fno-exceptions -fno-threadsafe-statics",
}
LINK = "-w -Os -flto -fuse-linker-plugin -Wl,--gc-sections -mmcu=atmega2560"


def built_by_arduino(sketch: Path, work: Path) -> Path:
    """What the Arduino IDE makes of a sketch: its text as C++, every file below src/, and Arduino's
    core.
    """
    (work / "sketch.cpp").write_text(
        "#include <Arduino.h>\n" + next(sketch.glob("*.ino")).read_text()
    )
    core = ARDUINO / "cores" / "arduino"
    sources = [
        work / "sketch.cpp",
        *sketch.rglob("src/**/*.c"),
        *core.glob("*.c"),
        *core.glob("*.cpp"),
    ]
    include = ["-I", core, "-I", ARDUINO / "variants" / "mega", "-I", sketch]
    for source in sources:
        dialect = DIALECTS[source.suffix].split()
        out = ["-o", work / f"{source.name}.o"]
        subprocess.run(["avr-gcc", *OPTIONS.split(), *dialect, *include, source, *out], check=True)
    objects = [work / f"{source.name}.o" for source in sources]
    subprocess.run(
        ["avr-gcc", *LINK.split(), *objects, "-lm", "-o", work / "sketch.elf"], check=True
    )
    return work / "sketch.elf"


def test_arduino_sketch_prints_what_the_host_computes(tmp_path):
    need("avr-gcc", "apt-get install gcc-avr avr-libc")
    if not ARDUINO.is_dir():
        skip_for("Arduino's core is not installed: apt-get install arduino-core-avr avr-libc")
    mega = load_board("arduino-mega")
    skip_for(simavr.why_not(mega))
    shutil.copytree(ROOT / "examples" / "arduino" / "motor", tmp_path / "motor")
    model = stepwell.load(MODEL)
    emit(model, tmp_path / "motor" / "src" / "motor", "motor")
    emulator = simavr.start_simavr(mega, built_by_arduino(tmp_path / "motor", tmp_path))
    try:
        with (
            socket.create_connection(("127.0.0.1", emulator.port), 20) as line,
            line.makefile() as text,
        ):
            said = [text.readline().split() for _ in range(15)]
    finally:
        emulator.close()
    # no analogue pin is connected
    expected = model.stream().run_q(np.zeros((15, model.n_in), np.int16))
    assert [[int(word) for word in words[: model.n_out]] for words in said] == expected.tolist()
    assert all(words[-1] == "us" and 10**3 < int(words[-2]) < 10**5 for words in said)
