"""The stack of stw_step by gcc's call graph: a bound for every board, above what an emulated run has used; no recursion."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import stepwell
from click.testing import CliRunner
from conftest import ROOT
from stepwell import stack
from stepwell.boards import load_board
from stepwell.build import NAME, build, compile_image
from stepwell.build import why_not as no_compiler
from stepwell.cli import cli
from stepwell.emit import emit
from stepwell.errors import BuildError
from stepwell.link import connect, qemu

CALLED_BY_USERS = (
    "stw_init stw_init_shared stw_reset stw_step stw_step_raw stw_save stw_load stw_probe stw_blob_open".split()
)
MAY_TAKE = 1100  # bytes; the widest layer kinds of all, on any board here
GOLDEN = ROOT / "tests" / "golden"


@pytest.mark.parametrize(
    ("board", "golden"),
    [
        ("netduinoplus2", "two_lstm_three_dense"),
        ("netduinoplus2", "attention_additive"),
        ("microbit", "two_lstm_three_dense"),
        ("rv32-virt", "two_lstm_three_dense"),
    ],
)
def test_bound_is_above_what_a_run_paints(board, golden, tmp_path):
    if why := no_compiler("gcc", load_board(board)) or qemu.why_not(load_board(board)):
        pytest.skip(why)
    path = GOLDEN / f"{golden}.stw"
    model = stepwell.load(path)
    image = build(model, board, tmp_path, "gcc")
    with connect(f"qemu:{board}", image=image.elf, model=model) as link:
        link.reset()
        painted = link.bench().stack_bytes
    assert 100 < painted <= image.step_stack < MAY_TAKE
    said = CliRunner().invoke(cli, ["info", str(path), "--board", board])
    assert f"of a step: at most {image.step_stack} B" in said.output


def test_no_function_of_the_library_calls_itself(tmp_path):
    board = load_board("mps2-an386")
    if why := no_compiler("gcc", board):
        pytest.skip(why)
    emit(stepwell.load(GOLDEN / "two_lstm_three_dense.stw"), tmp_path / "model", NAME)
    compile_image(board, "gcc", tmp_path, None, *stack.FLAGS)
    graph = stack.read_call_graph(tmp_path.glob("*.ci"))
    assert len(graph.frames) > 60
    for function in CALLED_BY_USERS:
        deepest, path = graph.deepest(function)
        assert path[0] == function and deepest < MAY_TAKE


def pushed_bytes(objdump: str, function: str) -> int:
    """By every push of a function and what it takes off sp, as if nothing were popped in between."""
    body = re.search(rf"^[0-9a-f]+ <{function}>:\n(.+?)(?:\n\n|\Z)", objdump, re.MULTILINE | re.DOTALL)
    pushes = re.findall(r"\t(?:push|stmdb\tsp!,)\s+\{([^}]+)\}", body[1]) if body else []
    taken = re.findall(r"\tsub\s+sp, (?:sp, )?#(\d+)", body[1]) if body else []
    return sum(4 * len(registers.split(",")) for registers in pushes) + sum(map(int, taken))


@pytest.mark.parametrize(
    ("board", "functions"),
    [("microbit", ["stw_dot4_v6m", "__aeabi_lmul"]), ("netduinoplus2", ["stw_pairs_dsp_unit", "stw_pairs_dsp_sums"])],
)
def test_assembly_pushes_what_the_bound_counts(board, functions, tmp_path):
    if why := no_compiler("gcc", load_board(board)):
        pytest.skip(why)
    image = build(stepwell.load(GOLDEN / "gru_rnn_lstm_gru_w8a8.stw"), board, tmp_path, "gcc")
    code = subprocess.run(["arm-none-eabi-objdump", "-d", image.elf], capture_output=True, text=True, check=True).stdout
    for function in functions:
        pushed, counted = pushed_bytes(code, function), stack.ASSEMBLY[function]
        assert pushed == counted if function.startswith("stw") else 0 < pushed <= counted, function


BROKEN = {
    "is a recursion": "int f(int n) { return n ? n * f(n - 2) + g(n) : 0; }",
    "goes through a pointer": "int f(int n) { return 1 + hook(n); }",
    "has no fixed size": "int f(int n) { char room[n]; return 1 + h(room); }",
    "was not compiled with the rest": "int f(int n) { return 1 + g(n); }",
}


@pytest.mark.parametrize("reason", BROKEN)
def test_what_has_no_bound_is_refused(reason, tmp_path):
    compiler = shutil.which("arm-none-eabi-gcc")
    if not compiler:
        pytest.skip("arm-none-eabi-gcc is not installed: apt-get install gcc-arm-none-eabi")
    (tmp_path / "f.c").write_text(
        f"int g(int);\nint h(char *);\nextern int (*hook)(int);\nint f(int n);\n{BROKEN[reason]}\n"
    )
    flags = ["-mcpu=cortex-m4", "-mthumb", "-O1", *stack.FLAGS]
    subprocess.run([compiler, *flags, "-c", "f.c"], cwd=tmp_path, check=True)
    with pytest.raises(BuildError, match=reason):
        stack.read_call_graph(tmp_path.glob("*.ci")).deepest("f")
