"""The stack of stw_step by gcc's frames and calls: a bound for every board, above what an emulated
run has used; no recursion.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import stepwell
from click.testing import CliRunner
from conftest import ROOT, need, skip_for
from stepwell.boards import load_board, stack
from stepwell.boards.build import NAME, build, call_graph, compile_image, graph_flags
from stepwell.boards.build import why_not as no_compiler
from stepwell.cli.commands import cli
from stepwell.emit import emit
from stepwell.errors import BuildError, LinkError
from stepwell.link import connect, qemu, sim
from stepwell.link.emulators import EMULATORS
from stepwell.link.hil import run_hil

CALLED_BY_USERS = "stw_init stw_init_shared stw_reset stw_step stw_step_raw stw_save stw_load stw_probe stw_blob_open".split()
MAY_TAKE = 1150  # bytes; the widest layer kinds of all, on any board here
GOLDEN = ROOT / "tests" / "golden"


@pytest.mark.parametrize(
    ("port", "golden"),
    [
        ("qemu:netduinoplus2", "two_lstm_three_dense"),
        ("qemu:microbit", "two_lstm_three_dense"),
        ("simavr:arduino-uno", "two_lstm_three_dense"),
        pytest.param("qemu:netduinoplus2", "attention_additive", marks=pytest.mark.full),
        pytest.param("qemu:rv32-virt", "two_lstm_three_dense", marks=pytest.mark.full),
        pytest.param("simavr:arduino-uno", "one_unit_of_each", marks=pytest.mark.full),
        pytest.param("simavr:arduino-mega", "coupled_peephole_clip_w4a16", marks=pytest.mark.full),
    ],
)
def test_bounds_are_above_what_a_run_paints(port, golden, tmp_path):
    """Of a step and of the program, whose deepest requests are made; on an AVR with the clock's
    interrupt, at any moment.
    """
    emulator, _, board = port.partition(":")
    skip_for(
        no_compiler("gcc", load_board(board)) or EMULATORS[emulator].why_not(load_board(board))
    )
    path = GOLDEN / f"{golden}.stw"
    model = stepwell.load(path)
    image = build(model, board, tmp_path, "gcc")
    with connect(port, image=image.elf, model=model) as link:
        link.reset()
        link.step(np.zeros((20, model.n_in), np.int16))
        link.set_state(link.get_state())
        painted, used = max(link.bench().stack_bytes for _ in range(3)), link.mem().stack_used
    assert 100 < painted <= image.step_stack < MAY_TAKE
    assert painted < used <= image.program_stack < used + painted
    said = CliRunner().invoke(cli, ["info", str(path), "--board", board])
    assert f"of a step: at most {image.step_stack} B, by gcc's frames" in said.output
    assert f"of the whole program: {image.program_stack} B" in said.output


def test_bound_of_a_program_that_takes_updates(small_model, tmp_path):
    """Checking a model that has come goes deepest."""
    facts = load_board("mps2-an386")
    skip_for(no_compiler("gcc", facts) or qemu.why_not(facts))
    image = build(small_model, facts, tmp_path, "gcc", updates=True)
    with connect("qemu:mps2-an386", image=image.elf) as link:
        link.update(stepwell.load(GOLDEN / "lstm.stw"))
        used = link.mem().stack_used
    assert 400 < used <= image.program_stack < 1500


def test_a_stack_that_is_too_small(small_model, tmp_path):
    """Refused where the bound tells, and by the run where it does not: zig tells no frames."""
    facts = load_board("microbit")
    skip_for(no_compiler("gcc", facts) or no_compiler("zig", facts) or sim.why_not(facts))
    needs = build(small_model, facts, tmp_path, "gcc").program_stack
    small = replace(facts, facts=facts.facts | {"STACK_BYTES": str(needs - 4)})
    with pytest.raises(
        BuildError,
        match=f"the program with this model takes up to {needs} B of stack, and STACK_BYTES = {needs - 4}",
    ):
        build(small_model, small, tmp_path, "gcc")
    tight = replace(facts, facts=facts.facts | {"STACK_BYTES": "200"})
    image = build(small_model, tight, tmp_path, "zig")
    used_up = pytest.raises(
        LinkError, match="all 200 B that microbit reserves for the stack were used"
    )
    with connect("sim:microbit", image=image.elf, model=small_model) as link, used_up:
        run_hil(link, small_model, [np.zeros((3, small_model.n_in))])


@pytest.mark.parametrize(
    ("board", "not_linked"),
    [
        ("mps2-an386", []),
        ("arduino-mega", ["stw_init_shared", "stw_step_raw", "stw_blob_open"]),
    ],  # code alone tells of AVR
)
def test_no_function_of_the_library_calls_itself(board, not_linked, tmp_path):
    facts = load_board(board)
    skip_for(no_compiler("gcc", facts))
    emit(stepwell.load(GOLDEN / "two_lstm_three_dense.stw"), tmp_path / "model", NAME)
    compile_image(facts, "gcc", tmp_path, None, *graph_flags("gcc", facts))
    graph = call_graph("gcc", facts, tmp_path)
    assert len(graph.frames) > 60
    for function in [function for function in CALLED_BY_USERS if function not in not_linked]:
        deepest, path = graph.deepest(function)
        assert path[0] == function and deepest < MAY_TAKE


def pushed_bytes(objdump: str, function: str) -> int:
    """By every push of a function and what it takes off sp, as if nothing were popped in between."""
    body = re.search(
        rf"^[0-9a-f]+ <{function}>:\n(.+?)(?:\n\n|\Z)", objdump, re.MULTILINE | re.DOTALL
    )
    pushes = re.findall(r"\t(?:push|stmdb\tsp!,)\s+\{([^}]+)\}", body[1]) if body else []
    taken = re.findall(r"\tsub\s+sp, (?:sp, )?#(\d+)", body[1]) if body else []
    return sum(4 * len(registers.split(",")) for registers in pushes) + sum(map(int, taken))


@pytest.mark.parametrize(
    ("board", "functions"),
    [
        ("microbit", ["stw_dot4_v6m", "__aeabi_lmul"]),
        ("netduinoplus2", ["stw_pairs_dsp_unit", "stw_pairs_dsp_sums"]),
    ],
)
def test_assembly_pushes_what_the_bound_counts(board, functions, tmp_path):
    skip_for(no_compiler("gcc", load_board(board)))
    image = build(stepwell.load(GOLDEN / "gru_rnn_lstm_gru_w8a8.stw"), board, tmp_path, "gcc")
    code = subprocess.run(
        ["arm-none-eabi-objdump", "-d", image.elf], capture_output=True, text=True, check=True
    ).stdout
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
    need("arm-none-eabi-gcc", "apt-get install gcc-arm-none-eabi")
    (tmp_path / "f.c").write_text(
        f"int g(int);\nint h(char *);\nextern int (*hook)(int);\nint f(int n);\n{BROKEN[reason]}\n"
    )
    flags = ["-mcpu=cortex-m4", "-mthumb", "-O1", *stack.FLAGS]
    subprocess.run(["arm-none-eabi-gcc", *flags, "-c", "f.c"], cwd=tmp_path, check=True)
    with pytest.raises(BuildError, match=reason):
        stack.read_call_graph(tmp_path.glob("*.ci")).deepest("f")


AVR_CODE = {  # as objdump writes it, from address 0 on
    "is a recursion": """<f>:
   0:\tcall\t0x4\t; 0x4 <g>
   2:\tret

00000004 <g>:
   4:\trcall\t.-6\t; 0x0 <f>
   6:\tret
""",
    "goes through a pointer": "<f>:\n   0:\teicall\n   2:\tret\n",
    "was not compiled": "<f>:\n   0:\tjmp\t0x10\t; 0x10 <g+0x4>\n",
    "has no fixed size": "<room>:\n   0:\tret\n\n00000002 <f>:\n   2:\tbreq\t.-4\t; 0x0 <room>\n   4:\tret\n",
}


@pytest.mark.parametrize("reason", AVR_CODE)
def test_avr_code_without_a_bound_is_refused(reason, tmp_path):
    (tmp_path / "f.su").write_text("f.c:3:5:room\t12\tdynamic\n")
    graph = stack.read_avr_graph(tmp_path.glob("*.su"), f"00000000 {AVR_CODE[reason]}")
    with pytest.raises(BuildError, match=reason):
        graph.deepest("f")


def test_avr_code_that_runs_on_into_the_next_function_takes_its_stack(tmp_path):
    (tmp_path / "g.su").write_text("g.c:9:5:g.part.3\t7\tstatic\nother.c:2:1:g.part.3\t5\tstatic\n")
    code = "00000000 <f>:\n   0:\tpush\tr28\n   2:\tpush\tr29\n\n00000004 <g.part.3>:\n   4:\tret\n"
    assert stack.read_avr_graph(tmp_path.glob("*.su"), code).deepest("f") == (2 + 3 + 7, ["f", "g"])
