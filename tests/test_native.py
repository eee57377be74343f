"""The emitted folder, compiled by the compilers at hand, equals the reference; sanitisers and
checked operations stay silent.
"""

import itertools
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import stepwell
from conftest import ROOT, full, need
from shapes import random_dense, random_lstm, random_sequences
from stepwell._engine import ffi, lib
from stepwell.blob import HEADER, LAYER
from stepwell.emit import (
    C_KEYWORDS,
    INTERRUPTED,
    KNOBS,
    _marked,
    c_name,
    copy_engine,
    emit,
    lean_flags,
)
from stepwell.engine import OpenModel
from stepwell.errors import StepwellError
from stepwell.graph import Graph
from stepwell.network import FORMAT
from test_blob import forged

COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
WARNINGS = "-std=c99 -Wall -Wextra -Wconversion -Wsign-conversion -Wpedantic -Wshadow -Wundef -Werror".split()
BUILDS = {
    "O2": ["-O2"],
    "O3": ["-O3", "-funsigned-char"],
    "checked": ["-O1", "-g", "-DSTW_CHECKED"],
}
SANITIZERS = {
    "gcc": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "clang": [
        "-fsanitize=undefined",
        "-fsanitize-trap=all",
    ],  # needs no runtime library, which many machines lack
}


# every layer kind, cell variant and mode
GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.stw"))
C_HEADERS = [
    "assert",
    "errno",
    "inttypes",
    "limits",
    "math",
    "stdbool",
    "stddef",
    "stdint",
    "stdio",
    "stdlib",
    "string",
]
STEMS = [path.stem for path in GOLDEN]
EMITTED = ["turbofan", "raw counts", "a window and missing samples", "clamped"]


def golden_model(stem: str) -> stepwell.Model:
    return stepwell.load(ROOT / "tests" / "golden" / f"{stem}.stw")


def run_built(command: list, folder: Path) -> None:
    subprocess.run([str(part) for part in command], cwd=folder, check=True)


def compiled(folder: Path, compiler: str, flags: list[str], *sources: str) -> Path:
    """A program of the folder's C files, without its example, and of ``sources``."""
    program = folder / f"{compiler}_{'_'.join(sources).replace('/', '_')}_{abs(hash(tuple(flags)))}"
    c_files = [path for path in sorted(folder.glob("*.c")) if path.name != "main.c"]
    run_built(
        [compiler, *WARNINGS, *flags, f"-I{folder}", "-o", program, *c_files, *sources], folder
    )
    return program


BUILT = [f"{compiler}-{build}" for compiler in COMPILERS for build in BUILDS]


@pytest.fixture(
    params=full(BUILT, *[name for name in BUILT if "checked" in name][:1]), scope="session"
)
def engine(request, tmp_path_factory) -> tuple[str, list[str], Path]:
    """A compiler, its flags, and the engine's objects, compiled once for all models."""
    compiler, build = request.param.split("-")
    flags = BUILDS[build] + (SANITIZERS[compiler] if build == "checked" else [])
    folder = tmp_path_factory.mktemp("engine")
    sources = [path for path in copy_engine(folder) if path.suffix == ".c"]
    run_built([compiler, *WARNINGS, *flags, "-c", *sources], folder)
    return compiler, flags, folder


@pytest.mark.skipif(not COMPILERS, reason="no C compiler: apt-get install gcc")
@pytest.mark.parametrize("golden", STEMS)
def test_native_equals_reference(golden, engine, tmp_path):
    model, (compiler, flags, objects) = golden_model(golden), engine
    emit(model, tmp_path, "model")
    parts = ["model.c", ROOT / "tests" / "c" / "replay.c", *sorted(objects.glob("*.o"))]
    run_built([compiler, *WARNINGS, *flags, "-I.", "-o", "program", *parts], tmp_path)
    rng = np.random.default_rng(11)
    x_q = rng.integers(-32768, 32768, (80, model.n_in)).astype("<i2")
    x_q[40:] //= 100
    x_q[:4] = rng.choice([-32768, 32767], (4, model.n_in))
    done = subprocess.run([tmp_path / "program"], input=x_q.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    y_q = np.frombuffer(done.stdout, "<i4").reshape(-1, model.n_out)
    assert np.array_equal(y_q, model.reference().run_q(x_q))
    stream = model.stream()
    stream.run_q(x_q)
    assert done.stderr.decode() == f"{stream.digest():08x}"


LEAN = {
    tuple(lean_flags(stepwell.load(path))): path.stem for path in GOLDEN
}  # one model for each set of knobs


@pytest.mark.skipif(not COMPILERS, reason="no C compiler: apt-get install gcc")
@pytest.mark.parametrize("golden", full(LEAN.values(), *list(LEAN.values())[::10]))
def test_smallest_engine(golden, tmp_path):
    """What is left out is not missed: each model with the files and knobs that its README names."""
    model = golden_model(golden)
    emit(model, tmp_path, "model")
    sources = re.search(
        r"the smallest engine is: (.*?), compiled with", (tmp_path / "README.md").read_text()
    )[1]
    files = [
        "model.c",
        *sources.split(", "),
        "stw_state.c",
        "stw_crc.c",
        ROOT / "tests" / "c" / "replay.c",
    ]
    flags = lean_flags(model)
    run_built([COMPILERS[0], *WARNINGS, "-O1", *flags, "-I.", "-o", "program", *files], tmp_path)
    x_q = np.random.default_rng(3).integers(-32768, 32768, (20, model.n_in)).astype("<i2")
    done = subprocess.run(
        [tmp_path / "program"], input=x_q.tobytes(), capture_output=True, check=True
    )
    assert np.array_equal(
        np.frombuffer(done.stdout, "<i4").reshape(-1, model.n_out), model.stream().run_q(x_q)
    )


def to_emit(kind: str, turbofan) -> tuple[stepwell.Model, np.ndarray]:
    """A model and input for it, in the user's units."""
    rng = np.random.default_rng(0)
    if kind == "turbofan":
        return turbofan, rng.normal(size=(40, turbofan.n_in)).round(4)
    mean, std = np.array([500, -2000.3, 0.25]), np.array([100, 3000, 5.0])
    scaler = {"mean": mean, "std": std, "y_mean": [7.0, 0.0], "y_std": [3.0, 2.0]} | {
        "raw counts": {"raw": "int32", "missing": "hold"},
        "a window and missing samples": {"missing": "fill"},
        "clamped": {"low": [300, -9000, -20], "high": [700, 9000, 20]},
    }[kind]
    graph = Graph((random_lstm(rng, 3, 6), random_dense(rng, 6, 2)))
    mode = "slide:6/2" if "window" in kind else "carry"
    calib = random_sequences(rng, 16, 60, 3) * std + mean
    x = random_sequences(rng, 1, 40, 3)[0] * std + mean
    return stepwell.convert(graph, calib, scaler=scaler, mode=mode), np.round(
        x
    ) if "raw" in kind else x.round(4)


@pytest.mark.parametrize("kind", EMITTED)
def test_commands_of_the_emitted_readme(kind, turbofan, tmp_path):
    """All files, and the smallest engine: both give what the host's stream gives."""
    model, x = to_emit(kind, turbofan)
    emit(model, tmp_path, "pump")
    readme = (tmp_path / "README.md").read_text()
    sources = re.search(r"the smallest engine is: (.*?), compiled with", readme)[1].split(", ")
    flags = re.search(r"compiled with\n\n    (.*)\n", readme)[1].split()
    assert "stw_gru.c" not in sources and "-DSTW_WITH_GRU=0" in flags
    whole = next(line.split() for line in readme.splitlines() if line.startswith("    cc "))
    text = "\n".join(",".join(map(repr, map(float, row))) for row in x)
    expected = model.stream().run(x)
    for command in (
        whole,
        ["cc", *WARNINGS, *flags, "-o", "pump_demo", "main.c", "pump.c", *sources],
    ):
        run_built(command, tmp_path)
        out = subprocess.run(
            [tmp_path / "pump_demo"], input=text, capture_output=True, text=True, check=True
        ).stdout
        printed = np.array([[float(v) for v in line.split(",")] for line in out.splitlines()])
        assert np.allclose(printed, expected, rtol=1e-6, atol=6e-7)


def test_input_codes_in_c_are_those_of_the_host(turbofan, tmp_path):
    """Ties, one unit in the last place beside them, rails and beyond."""
    emit(turbofan, tmp_path, "pump")
    (tmp_path / "codes.c").write_text(
        '#include <stdio.h>\n#include "pump.h"\nint main(void)\n{\n    double v;\n'
        "    while (fread(&v, sizeof v, 1, stdin) == 1) {\n        int16_t code = pump_x_code(v);\n"
        "        fwrite(&code, sizeof code, 1, stdout);\n    }\n    return 0;\n}\n"
    )
    subprocess.run(
        ["cc", *WARNINGS, "-O2", "-o", "codes", "codes.c", "pump.c"], cwd=tmp_path, check=True
    )
    ties = (np.arange(-32770, 32770) + 0.5) * turbofan.x_scale
    x = np.concatenate(
        [ties, np.nextafter(ties, 1e9), np.nextafter(ties, -1e9), [0.0, -0.0, 1e300, -1e300]]
    )
    done = subprocess.run([tmp_path / "codes"], input=x.tobytes(), capture_output=True, check=True)
    assert np.array_equal(np.frombuffer(done.stdout, "<i2"), turbofan.quantize(x))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


OWN = '/* main.c */\n#include "stepwell.h"\n#include "pump.h"\nint main(void) { return pump.n_in != PUMP_N_IN; }\n'


@pytest.mark.parametrize(
    "name", ["main.c", "stw_fix.h", "pump.h", "pump.c", "README.md", "stepwell.h"]
)
@pytest.mark.parametrize("change", ["own", "edited", "cut", "mark kept", "empty"])
def test_files_of_the_user_are_not_overwritten(name, change, small_model, turbofan, tmp_path):
    emit(small_model, tmp_path, "pump")
    written = (tmp_path / name).read_text()
    lines = written.splitlines(keepends=True)
    (tmp_path / name).write_text(
        {
            "own": OWN,
            "edited": written.replace("stepwell", "STEPWELL", 1),
            "cut": "".join(lines[: len(lines) // 2]),
            "mark kept": OWN + lines[-1],
            "empty": "",
        }[change]
    )
    before = contents(tmp_path)
    with pytest.raises(StepwellError, match=f"{name} exists and was not written by stepwell"):
        emit(turbofan, tmp_path, "pump")
    assert contents(tmp_path) == before, "nothing was written"
    emit(turbofan, tmp_path, "pump", force=True)
    emit(turbofan, tmp_path / "fresh", "pump")
    fresh = contents(tmp_path / "fresh")
    assert contents_of_files(tmp_path) == fresh


def contents_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_files_of_the_user_beside_them_stay(small_model, turbofan, tmp_path):
    (tmp_path / "app.c").write_text(OWN)
    for model in (small_model, turbofan):
        emit(model, tmp_path, "pump")
    assert (tmp_path / "app.c").read_text() == OWN
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_own_files_are_known_after_a_checkout_with_other_line_ends(small_model, turbofan, tmp_path):
    for path in emit(small_model, tmp_path, "pump"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    emit(turbofan, tmp_path, "pump")
    assert b"\r" not in (tmp_path / "pump.c").read_bytes()


def test_unmarked_files_of_an_older_stepwell(small_model, turbofan, tmp_path):
    """Equal to what is written now they are replaced, else they are named."""
    files = emit(small_model, tmp_path, "pump")
    for path in files:
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        StepwellError,
        match=r"pump\.c and .*pump\.h and .*exist and were not written by stepwell.*--force",
    ):
        emit(turbofan, tmp_path, "pump")
    emit(small_model, tmp_path, "pump")
    assert all(b"stepwell emit wrote the lines above" in path.read_bytes() for path in files)


def test_what_has_not_changed_is_not_written_again(small_model, turbofan, tmp_path):
    """A build tool compiles the model anew, and not the engine, but for the guard that is exchanged
    twice.
    """
    files = emit(small_model, tmp_path, "pump")
    for path in files:
        os.utime(path, (0, 0))
    emit(small_model, tmp_path, "pump")
    assert all(path.stat().st_mtime == 0 for path in files)
    emit(turbofan, tmp_path, "pump")
    written = {path.name for path in files if path.stat().st_mtime}
    assert written == {"pump.c", "pump.h", "main.c", "README.md", "stepwell.h"}


@pytest.mark.parametrize("stale", ["m.h", "m.c"])
def test_a_header_and_a_source_of_two_models_do_not_compile(stale, small_model, turbofan, tmp_path):
    emit(small_model, tmp_path / "old", "m")
    emit(turbofan, tmp_path, "m")
    shutil.copy(tmp_path / "old" / stale, tmp_path)
    done = subprocess.run(
        ["cc", "-c", "m.c", "-o", "m.o"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0 and "is of another model than" in done.stderr


def test_a_header_of_an_older_stepwell_is_refused_by_the_source(small_model, turbofan, tmp_path):
    """It does not compare the ids."""
    emit(small_model, tmp_path / "old", "m")
    emit(turbofan, tmp_path, "m")
    header = (tmp_path / "old" / "m.h").read_text()
    (tmp_path / "m.h").write_text(
        re.sub(r"#if defined\(M_C_ID\).*?#endif\n", "", header, flags=re.S)
    )
    done = subprocess.run(
        ["cc", "-c", "m.c", "-o", "m.o"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0 and "m.h is of another model than m.c" in done.stderr


def killed(call: Callable[[], object], after: float | None = None) -> None:
    """``call`` in a process of its own, which is killed after so many seconds, or ends itself."""
    child = os.fork()
    if child == 0:
        try:
            call()
        finally:
            os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def dies_at(rename: int, call: Callable[[], object]) -> None:
    """``call``, and a kill -9 before that rename."""
    real, done = os.replace, itertools.count()

    def replace(*args):
        if next(done) == rename:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args)

    os.replace = replace
    call()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_at_any_instant_leaves_old_or_new_or_what_does_not_compile(
    small_model, turbofan, tmp_path
):
    """Over the files of another stepwell, so that the engine's files change, too."""
    folder, old, new = tmp_path / "c", tmp_path / "old", tmp_path / "new"
    emit(turbofan, new, "m")
    for path in emit(small_model, old, "m"):
        text = b"".join(path.read_bytes().splitlines(keepends=True)[:-1])
        path.write_bytes(_marked(path.name, b"\n" + text))
    old_files, new_files = contents(old), contents(new)

    def write() -> None:
        emit(turbofan, folder, "m")

    shutil.copytree(old, folder)
    start = time.perf_counter()
    killed(write)
    seconds = time.perf_counter() - start
    assert contents(folder) == new_files
    n_renames = len(new_files) + 1
    instants = [*range(0, n_renames + 1, 4), *(seconds * k / 24 for k in range(24))]
    seen = set()
    for instant in instants:
        shutil.rmtree(folder)
        shutil.copytree(old, folder)
        if isinstance(instant, int):
            killed(partial(dies_at, instant, write))
        else:
            killed(write, instant)
        found = contents_of_files(folder)
        if found in (old_files, new_files):
            seen.add("old" if found == old_files else "new")
        else:
            seen.add("refused")
            for source in ("m.c", "stw_crc.c"):  # all others: below
                done = subprocess.run(
                    ["cc", "-fsyntax-only", source], cwd=folder, capture_output=True, text=True
                )
                assert done.returncode != 0 and "#error" in done.stderr, (instant, source)
        write()
        assert contents(folder) == new_files, "the next run mends it, and takes temporaries away"
    assert seen == {"old", "new", "refused"}


def test_no_file_of_an_interrupted_folder_compiles(small_model, tmp_path):
    files = emit(small_model, tmp_path, "m")
    (tmp_path / "stepwell.h").write_text(INTERRUPTED)
    for path in files:
        if path.suffix == ".c":
            done = subprocess.run(
                ["cc", "-fsyntax-only", path.name], cwd=tmp_path, capture_output=True, text=True
            )
            assert done.returncode != 0 and "run it again" in done.stderr, path.name


def test_an_error_between_the_renames_undoes_them(small_model, turbofan, tmp_path, monkeypatch):
    emit(small_model, tmp_path, "m")
    before, real, done = contents(tmp_path), os.replace, itertools.count()

    def replace(*args):
        if next(done) == 3:
            raise PermissionError(13, "Permission denied")
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        emit(turbofan, tmp_path, "m")
    assert contents(tmp_path) == before


def test_names_in_a_model_cannot_become_code(small_model, tmp_path):
    source = {"file": "a*/\n#error pwned\n/*", "sha256": "", "producer": ""}
    evil = small_model.replace(notes={"name": "a*/ int evil; /*", "source": source})
    emit(evil, tmp_path, "m")
    text = (tmp_path / "m.h").read_text() + (tmp_path / "m.c").read_text()
    assert "*/ int" not in text and "\n#error pwned" not in text
    subprocess.run(["cc", *WARNINGS, "-fsyntax-only", "m.c"], cwd=tmp_path, check=True)


def test_emitting_is_deterministic(model, tmp_path):
    first, second = (emit(model, tmp_path / name, "m") for name in ("a", "b"))
    assert [p.name for p in first] == [p.name for p in second]
    assert all(p.read_bytes() == q.read_bytes() for p, q in zip(first, second, strict=True))
    assert str(tmp_path) not in "".join(p.read_text() for p in first)


def test_other_format_is_an_error_when_compiled(small_model, tmp_path):
    emit(small_model, tmp_path, "m")
    header = tmp_path / "stepwell.h"
    header.write_text(
        header.read_text().replace(
            f"#define STW_MODEL_FORMAT {FORMAT}", "#define STW_MODEL_FORMAT 99"
        )
    )
    done = subprocess.run(
        ["cc", "-c", "m.c", "-o", "m.o"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0 and "run stepwell emit again" in done.stderr


def test_headers_compile_as_cpp(small_model, tmp_path):
    emit(small_model, tmp_path, "m")
    (tmp_path / "use.cpp").write_text(
        '#include "m.h"\nint main() { return m.n_in == M_N_IN ? 0 : 1; }\n'
    )
    need("g++", "apt-get install g++")
    flags = ["-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    subprocess.run(["g++", *flags, "use.cpp"], cwd=tmp_path, check=True)


@pytest.mark.parametrize("knob", full([*KNOBS, "STRINGS"], "LSTM", "STRINGS"))
def test_knobs_compile(tmp_path, knob):
    sources = [path for path in copy_engine(tmp_path) if path.suffix == ".c"]
    run_built(["cc", *WARNINGS, f"-DSTW_WITH_{knob}=0", "-c", *sources], tmp_path)


@pytest.mark.parametrize("kind", full(["LSTM", "GRU", "RNN"], "GRU"))
def test_an_engine_of_one_layer_kind_links(tmp_path, kind):
    sources = [path for path in copy_engine(tmp_path) if path.suffix == ".c"]
    (tmp_path / "use.c").write_text(
        '#include "stepwell.h"\nint main(void)\n{\n    return stw_step(0, 0, 0) == STW_E_ARG ? 0 : '
        "1;\n}\n"
    )
    run_built(
        [
            "cc",
            *WARNINGS,
            *(f"-DSTW_WITH_{knob}=0" for knob in KNOBS if knob != kind),
            "-o",
            "use",
            "use.c",
            *sources,
        ],
        tmp_path,
    )
    run_built([tmp_path / "use"], tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "1st",
            "a b",
            "int",
            "stw_model",
            "x-y",
            "",
            "stepwell",
            "Main",
            "README",
            "int32_t",
            "NULL",
            "_x",
            "x" * 300,
        ),
        *(
            "stdint",
            "stddef",
            "string",
            "errno",
            "Math",
            "bool",
            "true",
            "namespace",
            "log",
            "sinf",
            "memcpy",
            "unix",
            "CON",
        ),
    ],
)
def test_names_that_are_no_identifiers(small_model, tmp_path, name):
    if name and len(name) < 100:
        with pytest.raises(StepwellError, match="cannot name a C object"):
            emit(small_model, tmp_path / "out", name)
        assert not (tmp_path / "out").exists()
    cleaned = c_name(name)
    assert cleaned.isidentifier() and cleaned not in C_KEYWORDS and len(cleaned) < 64
    emit(small_model, tmp_path / "out", cleaned)
    (tmp_path / "out" / "use.c").write_text(
        "".join(f"#include <{name}.h>\n" for name in C_HEADERS) + f'#include "{cleaned}.h"\n'
    )
    subprocess.run(
        ["cc", *WARNINGS, "-I.", "-fsyntax-only", f"{cleaned}.c", "main.c", "use.c"],
        cwd=tmp_path / "out",
        check=True,
    )


def test_misuse_of_the_c_api(small_model):
    opened = OpenModel(small_model.blob)
    model, n = opened.model, lib.stw_ram_bytes(opened.model)
    ram, stream = ffi.new("int32_t[]", n // 4 + 2), ffi.new("stw_stream *")
    x, y = ffi.new("int16_t[2]"), ffi.new("int32_t[2]")
    assert lib.stw_init(stream, ffi.NULL, ram, n) == lib.STW_E_ARG
    assert lib.stw_init(stream, model, ffi.NULL, n) == lib.STW_E_ARG
    assert lib.stw_init(ffi.NULL, model, ram, n) == lib.STW_E_ARG
    assert lib.stw_init(stream, model, ffi.cast("char *", ram) + 2, n) == lib.STW_E_ALIGN
    assert lib.stw_init(stream, model, ram, n - 1) == lib.STW_E_SPACE
    assert lib.stw_init(stream, model, ram, 0) == lib.STW_E_SPACE
    assert stream.model == ffi.NULL, "an error leaves the stream as it was"
    assert lib.stw_step(stream, x, y) == lib.STW_E_ARG
    assert lib.stw_init(stream, model, ram, n) == lib.STW_OK
    assert lib.stw_step(stream, ffi.NULL, y) == lib.STW_E_ARG
    assert lib.stw_step(stream, x, ffi.NULL) == lib.STW_E_ARG
    assert lib.stw_step(stream, x, y) == lib.STW_OK
    assert lib.stw_save(stream, ram, 3) == lib.STW_E_SPACE
    layers = ffi.new("stw_layer[1]")
    blob = ffi.new("int32_t[]", len(small_model.blob) // 4 + 1)
    ffi.memmove(blob, small_model.blob, len(small_model.blob))
    assert (
        lib.stw_blob_open(ffi.new("stw_model *"), layers, 1, blob, len(small_model.blob))
        == lib.STW_E_SPACE
    )
    shifted = ffi.cast("char *", blob) + 1
    assert lib.stw_blob_open(ffi.new("stw_model *"), layers, 1, shifted, 40) == lib.STW_E_ALIGN
    for status in range(1, -11, -1):
        assert ffi.string(lib.stw_strerror(status))


def mutants(content: bytes, n: int) -> list[bytes]:
    """Blobs with a few bytes changed, cut or repeated, checksums made right: what a careful
    attacker would send.
    """
    rng = np.random.default_rng(len(content))
    device_bytes = struct.unpack_from("<I", content, 12)[0]
    arrays = HEADER.size + LAYER.size * struct.unpack_from("<H", content, 6)[0]
    made = [content]
    for _ in range(n):
        mutant = bytearray(content)
        for _ in range(rng.integers(1, 5)):
            at = int(
                rng.choice(
                    [rng.integers(4, 40), rng.integers(40, arrays), rng.integers(4, device_bytes)]
                )
            )
            mutant[at] = int(rng.choice([0, 1, 2, 3, 4, 0x7F, 0x80, 0xFF, rng.integers(256)]))
        if rng.random() < 0.2:
            mutant = mutant[: rng.integers(44, len(mutant))]
        made.append(forged(bytes(mutant)))
    return made


@pytest.fixture(scope="session")
def hostile(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    copy_engine(folder)
    return compiled(
        folder,
        "gcc",
        [*BUILDS["checked"], *SANITIZERS["gcc"]],
        str(ROOT / "tests" / "c" / "hostile.c"),
    )


@pytest.mark.skipif("gcc" not in COMPILERS, reason="no gcc: apt-get install gcc")
@pytest.mark.parametrize("golden", full(STEMS, *STEMS[::9]))
def test_hostile_blobs_under_sanitizers(golden, hostile):
    blobs = mutants((ROOT / "tests" / "golden" / f"{golden}.stw").read_bytes(), 1500)
    pack = b"".join(struct.pack("<I", len(blob)) + blob for blob in blobs)
    done = subprocess.run([hostile], input=pack, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert len(done.stdout) == len(blobs)
    assert 5 < done.stdout.count(b"+") < 0.7 * len(blobs), (
        "the mutants should be neither all harmless nor all refused"
    )
