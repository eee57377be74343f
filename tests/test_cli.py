"""The command line as a person or a script uses it: output, --json, exit codes, bad input, whole
files.
"""

import fcntl
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import stepwell
from conftest import DEMO, skip_for
from stepwell.boards import load_board
from stepwell.boards.build import why_not
from stepwell.files import TEMPORARIES, write_whole

ONNX, CALIB, TEST = DEMO / "turbofan.onnx", DEMO / "turbofan_calib.npz", DEMO / "turbofan_test.npz"


def run(*args, stdin: str | None = None, cwd=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "stepwell", *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def stw(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "turbofan.stw"
    done = run("convert", ONNX, "--calib", CALIB, "-o", path)
    assert done.returncode == 0, done.stderr
    assert "stream = source" in done.stdout
    return path


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.load(TEST)["x"][0, :12].astype(np.float64)


def csv_of(rows: np.ndarray) -> str:
    return "\n".join(",".join(repr(float(v)) for v in row) for row in rows) + "\n"


COMMANDS = [
    "convert",
    "check",
    "report",
    "info",
    "emit",
    "run",
    "boards",
    "build",
    "flash",
    "hil",
    "demo",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command):
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"stepwell {command}" in done.stdout.split("Examples:")[1]
    assert "--json" in done.stdout


def test_wrong_use_exits_with_2(stw):
    for args in (["convert"], ["frobnicate"], ["info", stw, "--no-such-option"], ["check", stw]):
        done = run(*args)
        assert done.returncode == 2 and done.stderr, args


CONVERT = ["convert", ONNX, "--calib", CALIB]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([*CONVERT, "--precision", "w9a16"], "precision 'w9a16' is not one of w8a16"),
        (
            [*CONVERT, "--precision", "w8a16,nope:w4a16"],
            "'nope' is no recurrent layer of the model",
        ),
        ([*CONVERT, "--mode", "slid:30"], "mode 'slid:30' is not one of carry"),
        (
            [*CONVERT, "--calibration", "percentile:200"],
            "calibration 'percentile:200' is not one of",
        ),
        ([*CONVERT, "--precision", "auto"], "--precision auto needs test sequences: --data FILE"),
        (
            [*CONVERT, "--precision", "auto", "--data", TEST, "--max-drop", "lots"],
            "--max-drop lots: expected a percentage",
        ),
        (
            [*CONVERT, "--precision", "auto", "--data", TEST, "--metric", "blah"],
            "metric 'blah' is not one of accuracy",
        ),
        *(
            ([*CONVERT, option, value], f"{option} does something with --precision auto only")
            for option, value in (
                ("--data", TEST),
                ("--max-drop", "1%"),
                ("--max-flash", "9"),
                ("--metric", "mae"),
            )
        ),
        (
            ["check", "MODEL", "--data", TEST, "--metric", "blah"],
            "metric 'blah' is not one of accuracy",
        ),
        (
            ["check", "MODEL", "--data", TEST, "--float", ONNX, "--modes", "carry,x"],
            "mode 'x' is not one of carry",
        ),
        (
            ["report", "MODEL", "--data", TEST, "--metric", "blah", "--json"],
            "metric 'blah' is not one of accuracy",
        ),
        (
            ["build", "MODEL", "--board", "microbit", "--mlperf", "--updates"],
            "--mlperf and --updates do not go together",
        ),
    ],
)
def test_words_that_are_wrong_use(stw, tmp_path, args, said):
    done = run(*(stw if arg == "MODEL" else arg for arg in args), cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("stepwell: ") and said in done.stderr, (
        done.stderr
    )
    assert len(done.stderr.splitlines()) == 1 and not done.stdout and not list(tmp_path.iterdir())


def test_info_json(stw):
    facts = json.loads(run("info", stw, "--json").stdout)
    model = stepwell.load(stw)
    assert facts == json.loads(json.dumps(model.info()))
    assert facts["id"] == f"{model.id:08x}" and facts["ram_bytes"] == 192 + 64


def test_the_ram_of_a_stream_is_one_figure_everywhere(stw, tmp_path):
    """256 B for stw_init; the struct of 16 B is said to come on top."""
    line = (
        "  RAM         256 B a stream (192 state + 64 scratch), 272 B with its struct stw_stream\n"
    )
    assert (
        line in run("info", stw).stdout and line in run("emit", stw, "-o", tmp_path / "out").stdout
    )
    modes = run("check", stw, "--data", TEST, "--float", ONNX, "--modes", "carry").stdout
    assert re.search(r"  mode carry .* RAM 256 B a stream\n", modes)
    skip_for(why_not("gcc", load_board("microbit")))
    assert ", of which the stream 256 B; " in run("info", stw, "--board", "microbit").stdout


def test_check_prints_the_metric(stw):
    done = run("check", stw, "--data", TEST, "--float", ONNX)
    assert done.returncode == 0, done.stderr
    assert "rmse (last step)" in done.stdout and "0 mismatches" in done.stdout
    result = json.loads(run("check", stw, "--data", TEST, "--float", ONNX, "--json").stdout)
    assert abs(result["metric"]["change_percent"]) < 1 and result["sqnr_db"] > 50
    assert result["engine_mismatches"] == 0 and result["steps"] > 4000


def test_check_finds_the_source_beside_the_model(stw, tmp_path):
    done = run("check", stw, "--data", TEST)
    assert done.returncode == 1 and "name it with --float" in done.stderr
    (tmp_path / "turbofan.onnx").write_bytes(ONNX.read_bytes())
    (tmp_path / "m.stw").write_bytes(stw.read_bytes())
    assert run("check", tmp_path / "m.stw", "--data", TEST).returncode == 0
    (tmp_path / "turbofan.onnx").write_bytes(ONNX.read_bytes() + b"\n")
    assert run("check", tmp_path / "m.stw", "--data", TEST).returncode == 1


def test_check_counts_saturation(stw, tmp_path):
    x = np.load(TEST)["x"][:2].astype(np.float64)
    x[0, 3, 5] = 1000
    np.savez(tmp_path / "wild.npz", x=x)
    result = json.loads(
        run("check", stw, "--data", tmp_path / "wild.npz", "--float", ONNX, "--json").stdout
    )
    assert result["saturation"]["input"]["saturated"] == 1


def test_emit(stw, tmp_path):
    result = json.loads(run("emit", stw, "-o", tmp_path / "out", "--name", "pump", "--json").stdout)
    assert {"pump.h", "pump.c", "stepwell.c", "README.md"} <= set(result["files"])
    done = run("emit", stw, "-o", tmp_path / "bad", "--name", "1pump")
    assert (
        done.returncode == 2
        and "cannot name a C object" in done.stderr
        and not (tmp_path / "bad").exists()
    )


def test_run_file_and_stdin(stw, rows, tmp_path):
    expected = stepwell.load(stw).stream().run(rows)[:, 0]
    (tmp_path / "x.csv").write_text(csv_of(rows))
    for done in (
        run("run", stw, tmp_path / "x.csv"),
        run("run", stw, "-", stdin=csv_of(rows)),
        run("run", stw, stdin=csv_of(rows)),
    ):
        assert done.returncode == 0, done.stderr
        assert np.allclose([float(line) for line in done.stdout.split()], expected, rtol=1e-8)
    lines = run("run", stw, "--json", stdin=csv_of(rows)).stdout.splitlines()
    assert [json.loads(line)["y"][0] for line in lines] == expected.tolist()
    codes = run("run", stw, "--codes", stdin=csv_of(rows)).stdout.split()
    model = stepwell.load(stw)
    assert [int(code) for code in codes] == model.stream().run_q(model.quantize(rows))[
        :, 0
    ].tolist()


def test_run_names_the_row_that_is_no_text(stw, rows, tmp_path):
    (tmp_path / "x.csv").write_bytes(csv_of(rows[:1]).encode() + b"\xff\xfe\x00,1\n")
    done = run("run", stw, tmp_path / "x.csv")
    assert done.returncode == 1 and "line 2" in done.stderr and "Traceback" not in done.stderr


def test_run_says_when_it_clips_and_when_there_is_nothing(stw, rows, tmp_path):
    done = run("run", stw, stdin=csv_of(rows[:2]) + csv_of(rows[:3] * 1000))
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5
    assert (
        len(done.stderr.splitlines()) == 1
        and "line 3: input 0 is outside" in done.stderr
        and "scaled as in training?" in done.stderr
    )
    done = run("run", stw, stdin="")
    assert done.returncode == 1 and "stdin: no rows" in done.stderr
    done = run("run", stw, stdin="# a comment\n" + csv_of(rows[:1]))
    assert done.returncode == 1 and "line 1: 1 values, the model takes 14" in done.stderr


def test_convert_does_not_overwrite_its_source(tmp_path):
    source = tmp_path / "m.onnx"
    source.write_bytes(ONNX.read_bytes())
    done = run("convert", source, "--calib", CALIB, "-o", source)
    assert done.returncode == 1 and "is no .stw file" in done.stderr
    assert source.read_bytes() == ONNX.read_bytes()


def test_run_answers_every_line_at_once(stw, rows):
    """What `tail -f sensor.csv | stepwell run m.stw -` needs."""
    command = [sys.executable, "-m", "stepwell", "run", str(stw), "-"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in csv_of(rows[:3]).splitlines():
            process.stdin.write(line + "\n")
            process.stdin.flush()
            start = time.monotonic()
            assert process.stdout.readline().strip()
            assert time.monotonic() - start < 30
        process.stdin.close()
    assert process.returncode == 0


def test_run_with_header_and_columns(stw, rows):
    names = [f"c{k}" for k in range(14)]
    shuffled = csv_of(np.hstack([np.zeros((len(rows), 1)), rows[:, ::-1]]))
    text = ",".join(["time", *names[::-1]]) + "\n" + shuffled
    done = run("run", stw, "--columns", ",".join(names), stdin=text)
    assert done.stdout == run("run", stw, stdin=csv_of(rows)).stdout
    done = run("run", stw, "--columns", "c0,nope", stdin=text)
    assert done.returncode == 1 and "no column 'nope'" in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("," * 13, "line 3: empty row"),
        (",".join(["1"] * 13), "line 3: 13 values, the model takes 14"),
        (",".join(["1"] * 15), "line 3: 15 values"),
        (",".join(["1"] * 13 + ["warm"]), "line 3, column 14: 'warm' is not a number"),
        (",".join(["1"] * 13 + ["nan"]), "line 3, column 14: nan"),
        (",".join(["1"] * 13 + [""]), "line 3, column 14: missing value"),
    ],
)
def test_run_names_the_bad_row(stw, rows, line, message):
    text = csv_of(rows[:2]) + line + "\n" + csv_of(rows[2:3])
    done = run("run", stw, stdin=text)
    assert done.returncode == 1 and message in done.stderr and len(done.stdout.splitlines()) == 2
    done = run("run", stw, "--skip-bad", stdin=text)
    assert done.returncode == 0 and message in done.stderr
    assert done.stdout == run("run", stw, stdin=csv_of(rows[:3])).stdout


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.csv", "a,b\n1,2\n3,x\n", "'x' is not a number"),
        ("empty.csv", "", "no rows"),
        ("data.xlsx", "", "unknown kind of file"),
        ("broken.npz", "PK garbage", "not a readable array file"),
        ("absent.npz", None, "cannot be read"),
    ],
)
def test_bad_calibration_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    done = run("convert", ONNX, "--calib", tmp_path / name, "-o", tmp_path / "out.stw")
    assert (
        done.returncode == 1 and message in done.stderr
    ) or "values, the model takes 14" in done.stderr
    assert name in done.stderr and not (tmp_path / "out.stw").exists()
    assert "Traceback" not in done.stderr


def test_calibration_of_the_wrong_width(tmp_path):
    np.savez(tmp_path / "narrow.npz", x=np.zeros((4, 10, 3)))
    done = run("convert", ONNX, "--calib", tmp_path / "narrow.npz", "-o", tmp_path / "out.stw")
    assert done.returncode == 1 and "the model takes 14 inputs" in done.stderr


def test_nothing_is_half_written(tmp_path):
    target = tmp_path / "no" / "such" / "folder.stw"
    done = run("convert", ONNX, "--calib", CALIB, "-o", target)
    assert done.returncode == 1 and "folder" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def files_below(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_is_named_and_leaves_what_was_there(stw, tmp_path):
    """A limit of the size of files stands for it: the write fails in the middle, and the system's
    error names no file.
    """
    resource = pytest.importorskip("resource")

    def with_room_for(n_bytes: int, *args) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "stepwell", *map(str, args)]
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
        return subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)

    assert run("emit", stw, "-o", tmp_path / "old", "--name", "m").returncode == 0
    before = files_below(tmp_path)
    (tmp_path / "was_empty").mkdir()
    for folder in ("old", "new/and/deep", "was_empty"):
        done = with_room_for(
            10000, "emit", stw, "-o", tmp_path / folder, "--name", "m", "--target", "cortex-m4"
        )
        assert (
            done.returncode == 1
            and f"stepwell: {tmp_path / folder}/m.c: File too large\n" == done.stderr
        )
        assert (
            files_below(tmp_path) == before
            and not (tmp_path / "new").exists()
            and (tmp_path / "was_empty").is_dir()
        )
    done = with_room_for(100, *CONVERT, "-o", tmp_path / "m.stw")
    assert (
        done.returncode == 1 and done.stderr == f"stepwell: {tmp_path / 'm.stw'}: File too large\n"
    )
    assert files_below(tmp_path) == before


def special(kind: str, path: Path) -> Path:
    """Something that exists and is no regular file."""
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(os.devnull)
    return path


OUTPUTS = {  # commands that write a file; "@" becomes what -o or --html names
    "convert": [*CONVERT, "-o", "@"],
    "report": ["report", "MODEL", "--data", TEST, "-o", "@"],
    "hil": ["hil", "MODEL", "--port", "host:", "--data", TEST, "--html", "@"],
}


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "folder"])
@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_that_is_no_regular_file_is_refused_before_any_work(command, kind, stw, tmp_path):
    place = special(kind, tmp_path / "out")
    done = run(*(str(stw) if a == "MODEL" else place if a == "@" else a for a in OUTPUTS[command]))
    assert done.returncode == 1 and f"{place}: is a {kind}" in done.stderr and done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not stat.S_ISREG(
        place.stat().st_mode
    )


@pytest.mark.parametrize("kind", ["FIFO", "device"])
@pytest.mark.parametrize("command", ["emit", "build --board microbit", "demo"])
def test_an_output_folder_that_is_none_is_refused_before_any_work(command, kind, stw, tmp_path):
    place = special(kind, tmp_path / "out")
    model = [] if command == "demo" else [stw]
    for there in (place, place / "below"):
        done = run(*command.split(), *model, "-o", there)
        assert (
            done.returncode == 1
            and f"is a {kind}: give a folder" in done.stderr
            and done.stdout == ""
        )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_in_an_output_folder_that_are_none(stw, tmp_path):
    special("FIFO", tmp_path / "m.h")
    done = run("emit", stw, "-o", tmp_path, "--name", "m")
    assert done.returncode == 1 and f"{tmp_path / 'm.h'}: is a FIFO" in done.stderr
    special("FIFO", tmp_path / "microbit.hex")
    done = run("build", "--board", "microbit", stw, "-o", tmp_path)
    assert done.returncode == 1 and f"{tmp_path / 'microbit.hex'}: is a FIFO" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.h", "microbit.hex"]


def test_links_are_followed(stw, tmp_path):
    """The file behind a link is replaced, or made; the link stays."""
    (tmp_path / "far").mkdir()
    for name, target in (("to_file", "far/a.stw"), ("dangling", "far/b.stw"), ("chain", "to_file")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "far" / "a.stw").write_bytes(stw.read_bytes()[:100])
    (tmp_path / "far" / "a.stw").chmod(0o640)
    for name in ("to_file", "dangling", "chain"):
        stepwell.load(stw).save(tmp_path / name)
        assert (tmp_path / name).is_symlink() and (tmp_path / name).read_bytes() == stw.read_bytes()
    assert (tmp_path / "far" / "a.stw").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["a.stw", "b.stw"]
    (tmp_path / "folder").symlink_to("far/c")
    (tmp_path / "loop").symlink_to("loop")
    assert run("emit", stw, "-o", tmp_path / "folder", "--name", "m").returncode == 0
    assert (tmp_path / "folder").is_symlink() and (tmp_path / "far" / "c" / "m.h").is_file()
    done = run(*CONVERT, "-o", tmp_path / "loop")
    assert done.returncode == 1 and f"{tmp_path / 'loop'}: " in done.stderr


def test_emit_keeps_files_that_were_changed_and_replaces_them_with_force(stw, tmp_path):
    emit = ["emit", stw, "-o", tmp_path, "--name", "m"]
    assert run(*emit).returncode == 0
    (tmp_path / "main.c").write_text('/* mine */\n#include "stepwell.h"\n')
    done = run(*emit, "--target", "cortex-m4")
    assert (
        done.returncode == 1 and f"{tmp_path / 'main.c'} exists and was not written" in done.stderr
    )
    assert (tmp_path / "main.c").read_text().startswith("/* mine */")
    assert run(*emit, "--force").returncode == 0
    assert "mine" not in (tmp_path / "main.c").read_text()


def test_what_killed_writers_leave_is_taken_away(tmp_path):
    """A writer that lives is left alone."""
    left, alive = tmp_path / f"{TEMPORARIES}dead", tmp_path / f"{TEMPORARIES}alive"
    for folder in (left, alive):
        folder.mkdir()
        (folder / "new0").write_text("x")
    handle = os.open(alive, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    write_whole(tmp_path / "file", "text")
    os.close(handle)
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, "file"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["convert", "absent.onnx", "--calib", CALIB], "absent.onnx: no such file"),
        (["convert", ".", "--calib", CALIB], ".: is a folder: give the file in it"),
        (["convert", CALIB, "--calib", CALIB], "not an ONNX file"),
        (["convert", ONNX, "--calib", ONNX], "unknown kind of file"),
        (["run", "MODEL", "absent.csv"], "absent.csv: No such file"),
        (["emit", "MODEL", "-o", "a_file"], "a_file is a file"),
        (["demo", "-o", "a_file"], "a_file: File exists"),
        (
            ["hil", "--port", "sim:microbit", "MODEL", "--data", TEST, "--image", "a_file"],
            "a_file is no ELF file",
        ),
        (["hil", "--port", "/dev/absent", "MODEL", "--data", TEST], "cannot be opened"),
    ],
)
def test_wrong_files_everywhere(stw, tmp_path, args, message):
    (tmp_path / "a_file").write_text("text")
    done = run(*(stw if arg == "MODEL" else arg for arg in args), cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


def test_model_that_is_no_model(tmp_path):
    (tmp_path / "x.stw").write_text("no model")
    for command in (["info"], ["emit"], ["run"], ["check", "--data", TEST]):
        done = run(command[0], tmp_path / "x.stw", *command[1:])
        assert done.returncode == 1 and "x.stw: not a stepwell model" in done.stderr


INTERRUPT = """
import signal, sys

MODULE = sys.argv.pop(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:  # in an exec, as the code of a dataclass is
            exec("signal.raise_signal(signal.SIGINT)", {"signal": signal})

sys.meta_path.insert(0, Interrupt())
from stepwell.cli import main
main()
"""


@pytest.mark.parametrize(
    "module", ["click", "numpy", "stepwell.graph", "stepwell.cli.model_commands", "onnx"]
)
def test_an_interrupt_is_a_message_from_the_first_import_on(tmp_path, module):
    command = [
        sys.executable,
        "-c",
        INTERRUPT,
        module,
        "convert",
        ONNX,
        "--calib",
        CALIB,
        "-o",
        tmp_path / "m.stw",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (130, "stepwell: interrupted") and not list(
        tmp_path.iterdir()
    )


def test_the_package_shows_its_names_before_they_are_imported():
    code = "import stepwell, sys; assert 'numpy' not in sys.modules; print(set(stepwell.__all__) - set(dir(stepwell)))"
    code += "\nfrom stepwell import *; print(convert.__module__, Model.__name__); stepwell.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["set()", "stepwell.api Model"]
    assert "AttributeError: module 'stepwell' has no attribute 'nothing'" in done.stderr
