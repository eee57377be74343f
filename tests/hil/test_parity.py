"""Reference = engine = every emulated board, equal and not close, on real data; and what a board
says about itself.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stepwell
from conftest import ROOT, full
from shapes import random_dense, random_lstm, random_sequences
from stepwell.boards import board_names, load_board
from stepwell.boards.build import COMPILERS, flash_bytes
from stepwell.errors import LinkError
from stepwell.graph import Graph
from stepwell.layers import LstmLayer, RecurrentLayer
from stepwell.link import connect, messages
from stepwell.link.emulator import wait_until
from stepwell.link.emulators import EMULATORS
from stepwell.link.hil import run_hil, snapshot_parts
from stepwell.link.messages import Error, Message
from stepwell.reference import Reference

from .conftest import BOARDS, BY_BOTH, PORTS, need


@pytest.fixture(params=full(PORTS, "qemu:mps2-an386", "sim:microbit"))
def port(request) -> str:
    need(request.param)
    return request.param


@pytest.fixture
def link(port, images, turbofan):
    with connect(port, model=turbofan, image=images(turbofan, port.partition(":")[2]).elf) as link:
        yield link


@pytest.fixture(scope="module")
def expected(turbofan, flights) -> list[np.ndarray]:
    """The NumPy reference's outputs."""
    codes = [turbofan.quantize(flight) for flight in flights]
    reference = [Reference(turbofan).run_q(x_q) for x_q in codes]
    for x_q, y_q in zip(codes, reference, strict=True):
        assert np.array_equal(turbofan.stream().run_q(x_q), y_q)
    return reference


def test_board_equals_engine_and_reference(link, turbofan, flights, expected):
    for flight, y_q in zip(flights[:2], expected[:2], strict=True):
        link.reset()
        assert np.array_equal(link.step(turbofan.quantize(flight)), y_q)
    calls = []
    report = run_hil(link, turbofan, flights, lambda done, total: calls.append((done, total)))
    assert report.ok and report.mismatches == 0 and report.first is None
    assert report.steps >= 2000 and calls[-1] == (report.steps, report.steps)
    assert report.cost_unit == "instructions" and report.cost_per_step > 5 * 1000
    assert 50 < report.stack_bytes < 700 < report.static_bytes < 2000
    as_json = report.to_json()
    assert (
        as_json["instructions_per_step"] == report.cost_per_step
        and as_json["cycles_per_step"] is None
    )
    assert {"board", "model", "steps", "mismatches", "stack_bytes", "ram_bytes"} <= set(as_json)


def test_equal_requests_are_steps_of_their_own(images, small_model):
    """Only a repeat of the very same request is answered from memory: a constant input still moves
    the state on.
    """
    need("sim:microbit")
    x_q = np.full((200, small_model.n_in), 1234, np.int16)
    with connect(
        "sim:microbit", model=small_model, image=images(small_model, "microbit").elf
    ) as link:
        link.reset()
        steps = link.stat().steps
        y_q = np.concatenate([link.step(x_q[k : k + 1]) for k in range(5)] + [link.step(x_q[5:])])
        assert link.stat().steps - steps == len(x_q)
        stream = small_model.stream()
        assert np.array_equal(y_q, stream.run_q(x_q))
        assert link.get_state() == stream.save()


@pytest.mark.parametrize("compiler", BY_BOTH)
@pytest.mark.parametrize("board", full(BOARDS, "netduinoplus2"))
@pytest.mark.parametrize(
    "golden", ["gru_rnn_lstm_gru", "two_lstm_three_dense", "tanh_sigmoid_after_lstm"]
)
def test_every_layer_kind(golden, board, compiler, images):
    """Outputs, state and the probe of every unit: GRU, RNN, LSTM, dense, activations, softmax."""
    need(f"sim:{board}", compiler)
    model = stepwell.load(ROOT / "tests" / "golden" / f"{golden}.stw")
    rng = np.random.default_rng(3)
    x_q = rng.integers(-32768, 32768, (300, model.n_in)).astype(np.int16)
    x_q[100:] //= 100
    seen: dict[tuple[int, str], np.ndarray] = {}
    reference = Reference(
        model, lambda index, name, values: seen.update({(index, name): values[-1]})
    )
    with connect(
        f"sim:{board}", model=model, image=images(model, board, compiler=compiler).elf
    ) as link:
        link.reset()
        assert np.array_equal(link.step(x_q), reference.run_q(x_q))
        reference.step_q(x_q[0])
        for index, layer in enumerate(model.layers):
            if isinstance(layer, RecurrentLayer):
                units = link.probe(index, seen[index, "x"], 0, layer.n_units)
                assert [unit.h for unit in units] == seen[index, "unit_h"].tolist()
                z = seen[index, "z"].reshape(len(layer.records), layer.n_units)
                assert [unit.z[: len(z)] for unit in units] == [
                    tuple(column) for column in z.T.tolist()
                ]


GOLDEN = sorted(path.stem for path in (ROOT / "tests" / "golden").glob("*.stw"))
OFTEN = (
    "attention_dot_product",
    "gru_before_tables",
    "layer_norm",
    "projection_w4a16",
    "two_lstm_three_dense",
)


@pytest.mark.parametrize("golden", full(GOLDEN, *OFTEN))
def test_every_golden_model_on_the_smallest_core(golden, images):
    """Every kind of layer, every cell variant and every mode. `.ci/run zig` builds them by zig."""
    golden_on_the_smallest_core(golden, None, images)


@pytest.mark.full
@pytest.mark.parametrize("golden", OFTEN)
def test_golden_models_by_zig(golden, images):
    golden_on_the_smallest_core(golden, "zig", images)


def golden_on_the_smallest_core(golden, compiler, images):
    """Outputs and the whole state are equal."""
    need("sim:microbit", compiler)
    model = stepwell.load(ROOT / "tests" / "golden" / f"{golden}.stw")
    rng = np.random.default_rng(4)
    x_q = rng.integers(-32768, 32768, (60, model.n_in)).astype(np.int16)
    x_q[20:] //= 100
    stream = model.stream()
    with connect(
        "sim:microbit", model=model, image=images(model, "microbit", compiler=compiler).elf
    ) as link:
        link.reset()
        assert np.array_equal(link.step(x_q), stream.run_q(x_q))
        assert link.get_state() == stream.save()


# M3, M7, M33, M55, RV32
OTHER_CORES = (
    "mps2-an385",
    "mps2-an500",
    "mps2-an505",
    "mps3-an547",
    "rv32-virt",
)


@pytest.mark.parametrize("golden", ["one_unit_of_each_stagger_9_3", "strided_conv_and_residual"])
def test_a_board_takes_back_the_output_that_it_holds(golden, images):
    need("sim:microbit")
    model = stepwell.load(ROOT / "tests" / "golden" / f"{golden}.stw")
    x_q = np.random.default_rng(1).integers(-9000, 9000, (24, model.n_in)).astype(np.int16)
    right = model.reference().run_q(x_q)
    with connect("sim:microbit", model=model, image=images(model, "microbit").elf) as link:
        stream = model.stream()
        for cut in range(9, 19):
            stream.reset()
            stream.run_q(x_q[:cut])
            link.reset()
            link.set_state(stream.save())
            assert np.array_equal(link.step(x_q[cut:]), right[cut:]), cut


@pytest.mark.parametrize("compiler", BY_BOTH)
@pytest.mark.parametrize("board", OTHER_CORES)
@pytest.mark.parametrize(
    "golden",
    full(
        ["two_lstm_three_dense", "gru_rnn_lstm_gru_w4a16", "coupled_peephole_clip_w8a8"],
        "two_lstm_three_dense",
    ),
)
def test_other_cores(golden, board, compiler, images):
    assert_same_on(
        f"qemu:{board}",
        stepwell.load(ROOT / "tests" / "golden" / f"{golden}.stw"),
        images,
        compiler,
    )


AVR = ("arduino-uno", "arduino-mega")
AVR_GOLDENS = [
    "two_lstm_three_dense",
    "gru_rnn_lstm_gru_w4a16",
    "coupled_peephole_clip_w8a8",
    "attention_additive",
    "layer_norm",
]


@pytest.mark.parametrize(
    ("board", "golden"),
    [
        ("arduino-uno", "lstm"),
        *full([("arduino-mega", golden) for golden in AVR_GOLDENS], ("arduino-mega", "layer_norm")),
    ],
)
def test_avr(golden, board, images):
    """int has 16 bits there, and constants stand in an address space of their own."""
    model = stepwell.load(ROOT / "tests" / "golden" / f"{golden}.stw")
    assert_same_on(f"simavr:{board}", model, images)
    with connect(f"simavr:{board}", model=model, image=images(model, board).elf) as link:
        link.reset()
        link.step(np.zeros((10, model.n_in), np.int16))
        memory, bench = link.mem(), link.bench()
        assert link.cost_unit == "cycles"
        # attention fills up first
        assert "attention" in golden or abs(bench.cost / link.cost_per_step - 1) < 0.02
        assert 0 < bench.stack_bytes < memory.stack_used < memory.stack_size


SIZED = [f"qemu:{board}" for board in (*OTHER_CORES, "microbit")] + ["simavr:arduino-mega"]


@pytest.mark.full
@pytest.mark.parametrize("compiler", [None, "zig"])
@pytest.mark.parametrize("port", SIZED)
@pytest.mark.parametrize(
    ("n_in", "n_units", "precision", "gain"),
    [  # odd, narrow, saturating, long
        (3, 7, "w8a16", 2.0),
        (17, 22, "w8x16h8", 2.0),
        (5, 16, "w8a16", 60.0),
        (67, 35, "w8a16", 2.0),
    ],
)
def test_lstm_sizes_on_other_cores(n_in, n_units, precision, gain, port, compiler, images):
    """What is vectorised or in assembly, with and without a rest."""
    rng = np.random.default_rng(n_in)
    graph = Graph((random_lstm(rng, n_in, n_units, gain), random_dense(rng, n_units, 2)))
    model = stepwell.convert(graph, random_sequences(rng, 2, 30, n_in), precision=precision)
    assert_same_on(port, model, images, compiler)


# cores that others stand for: their clocks and peripherals are what is to be tried
OWN_PERIPHERALS = {
    "stm32vldiscovery": "qemu",
    "nrf52840dk": "sim",
    "nucleo-f446re": "sim",
    "nucleo-g071rb": "sim",
    "rp-pico": "rp2040js",
}


@pytest.mark.parametrize("board", OWN_PERIPHERALS)
def test_one_model_on_other_peripherals(board, images):
    model = stepwell.load(ROOT / "tests" / "golden" / "gru_rnn_lstm_gru_w4a16.stw")
    assert_same_on(f"{OWN_PERIPHERALS[board]}:{board}", model, images)


def test_a_boot_block_that_the_rom_would_refuse(images, small_model, tmp_path):
    need("rp2040js:rp-pico")
    elf = images(small_model, "rp-pico").elf.read_bytes()
    boot = flash_bytes(images(small_model, "rp-pico").elf)[:256]
    damaged = tmp_path / "damaged.elf"
    damaged.write_bytes(elf.replace(boot, boot[:100] + bytes([boot[100] ^ 1]) + boot[101:]))
    with pytest.raises(LinkError, match="boot block's CRC is wrong"):
        connect("rp2040js:rp-pico", image=damaged)


def test_a_uart_at_another_rate(images, small_model):
    """rp2040js knows the chip's clocks: what the program makes of PLL and dividers must be the
    board's baud rate.
    """
    need("rp2040js:rp-pico")
    pico = load_board("rp-pico")
    slower = replace(pico, facts=pico.facts | {"UART_BAUD": "57600"})
    emulator = EMULATORS["rp2040js"].start(slower, images(small_model, "rp-pico").elf)
    try:
        with pytest.raises(LinkError):
            connect(emulator.url)
        assert "sets its UART to 115207 baud, not to 57600" in emulator.last_words()
    finally:
        emulator.close()


def assert_same_on(port: str, model: stepwell.Model, images, compiler: str | None = None) -> None:
    """Outputs of extreme and of ordinary codes, and the state after them."""
    need(port, compiler)
    rng = np.random.default_rng(6)
    x_q = rng.integers(-32768, 32768, (60, model.n_in)).astype(np.int16)
    x_q[20:] //= 100
    stream = model.stream()
    image = images(model, port.partition(":")[2], compiler=compiler)
    with connect(port, model=model, image=image.elf) as link:
        link.reset()
        assert np.array_equal(link.step(x_q), stream.run_q(x_q))
        assert link.get_state() == stream.save()


def costs_of(link, x_q: np.ndarray) -> set[int]:
    """What the steps cost, each by itself."""
    link.reset()
    costs = set()
    for row in x_q:
        before = link.cost_ticks
        link.step(row[None])
        costs.add(link.cost_ticks - before)
    return costs


def extremes(n_in: int) -> np.ndarray:
    """Noise at full scale, small noise, silence, and codes that stay at a rail, so that cells
    saturate.
    """
    wild = np.random.default_rng(0).integers(-32768, 32768, (40, n_in))
    silence = np.zeros((10, n_in), int)
    return np.concatenate([wild, wild // 1000, silence, silence + 32767, silence - 32768]).astype(
        np.int16
    )


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("board", full(BOARDS, "microbit", "netduinoplus2"))
def test_every_step_takes_the_same_instructions(board, compiler, images, turbofan, flights):
    """Whatever the data, and whichever compiler: no branch depends on it."""
    need(f"sim:{board}", compiler)
    x_q = np.concatenate([turbofan.quantize(flights[0]), extremes(turbofan.n_in)])
    with connect(
        f"sim:{board}", model=turbofan, image=images(turbofan, board, compiler=compiler).elf
    ) as link:
        costs = costs_of(link, x_q)
    assert len(costs) == 1, costs


# layers whose steps are all alike (csrc/stepwell.h): cells in every variant, dense layers, tables,
# sums, moves
STEADY = [
    "arg_max",
    "coupled_peephole_clip_w8a8",
    "gru_before_variants",
    "gru_variants",
    "lstm_tables",
]
STEADY += [
    "max_pool_at_the_end",
    "projection_of_everything",
    "residual",
    "rnn_variants",
    "table_in_a_dense",
]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("golden", full(STEADY, "arg_max"))
def test_every_step_of_any_layer_takes_the_same_instructions(golden, compiler, images):
    need("sim:microbit", compiler)
    model = stepwell.load(ROOT / "tests" / "golden" / f"{golden}.stw")
    with connect(
        "sim:microbit", model=model, image=images(model, "microbit", compiler=compiler).elf
    ) as link:
        costs = costs_of(link, extremes(model.n_in))
    assert len(costs) == 1, costs


@pytest.mark.full
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("board", OTHER_CORES)
@pytest.mark.parametrize("golden", ["two_lstm_three_dense", "gru_variants"])
def test_every_step_takes_the_same_instructions_on_other_cores(golden, board, compiler, images):
    """By QEMU's clock, which counts in ticks: one more or less is none."""
    need(f"qemu:{board}", compiler)
    model = stepwell.load(ROOT / "tests" / "golden" / f"{golden}.stw")
    with connect(
        f"qemu:{board}", model=model, image=images(model, board, compiler=compiler).elf
    ) as link:
        costs = costs_of(link, extremes(model.n_in))
    assert max(costs) - min(costs) <= 1, costs


@pytest.mark.parametrize("board", full(BOARDS, "microbit"))
def test_both_emulators_count_the_same_instructions(board, images, turbofan, flights):
    """Two independent counters: QEMU's virtual clock and the hook in unicorn."""
    costs = []
    for emulator in ("qemu", "sim"):
        need(f"{emulator}:{board}")
        with connect(
            f"{emulator}:{board}", model=turbofan, image=images(turbofan, board).elf
        ) as link:
            link.reset()
            link.step(turbofan.quantize(flights[0]))
            costs += [link.cost_per_step, link.bench().cost]
    assert costs[:2] == pytest.approx(costs[2:], abs=0.2)


@pytest.mark.parametrize("board", full(BOARDS, "mps2-an386"))
def test_image_by_zig(board, images, turbofan, flights):
    need(f"sim:{board}", "zig")
    with connect(
        f"sim:{board}", model=turbofan, image=images(turbofan, board, compiler="zig").elf
    ) as link:
        assert run_hil(link, turbofan, flights[:10]).ok


def test_state_probe_bench_and_memory(link, turbofan, flights):
    codes, stream = turbofan.quantize(flights[0]), turbofan.stream()
    link.reset()
    assert np.array_equal(link.step(codes[:20]), stream.run_q(codes[:20]))
    state = link.get_state()
    assert state == stream.save()
    first, second = link.bench(), link.bench()
    assert first == second and link.get_state() == state
    memory = link.mem()
    assert (
        first.stack_bytes < memory.stack_used < memory.stack_size
        and memory.ram_bytes < memory.static_bytes
    )
    lstm = next(k for k, layer in enumerate(turbofan.layers) if isinstance(layer, LstmLayer))
    n = turbofan.layers[lstm].n_out
    units = link.probe(lstm, codes[20], 0, n)
    for unit, seen in enumerate(units):
        assert seen.__dict__ == {
            k: tuple(v) if isinstance(v, list) else v
            for k, v in stream.probe(lstm, codes[20], unit).items()
        }
    link.step(codes[20:21])
    c, h = next((p.c, p.h) for p in snapshot_parts(turbofan, link.get_state()) if p.n_cells)
    assert [u.c for u in units] == c.tolist() and [u.h for u in units] == h.tolist()
    link.set_state(state)
    assert link.get_state() == state
    damaged = bytearray(state)
    damaged[12] ^= 1
    with pytest.raises(LinkError, match="refused the snapshot: checksum mismatch"):
        link.set_state(bytes(damaged))
    assert link.get_state() == state
    assert link.echo(bytes(messages.PAYLOAD_BYTES)) == bytes(messages.PAYLOAD_BYTES)
    assert link.stat().damaged == 0


def test_board_runs_another_model(images, turbofan, small_model):
    need("sim:microbit")
    image = images(small_model, "microbit").elf
    with pytest.raises(
        LinkError, match=f"board runs model {small_model.id:08x}, test expects {turbofan.id:08x}"
    ):
        connect("sim:microbit", model=turbofan, image=image)


def test_steps_need_a_session(raw_board, small_model):
    step = messages.STEP_REQUEST.pack(5, 1) + bytes(2 * small_model.n_in)
    refused = raw_board.ask(Message.STEP, step)
    assert refused.type == messages.ERROR and refused.payload[0] == Error.SESSION
    assert raw_board.ask(Message.RESET, messages.SESSION.pack(5), seq=2).payload == b""
    done = raw_board.ask(Message.STEP, step, seq=3)
    assert raw_board.ask(Message.STEP, step, seq=3) == done  # repeated: answered, not done again
    assert messages.STAT_REPLY.unpack(raw_board.ask(Message.STAT, seq=4).payload)[2:] == (1, 1)
    raw_board.ask(Message.RESET, messages.SESSION.pack(6), seq=5)
    assert raw_board.ask(Message.STEP, step, seq=6).payload[0] == Error.SESSION


def test_any_request_is_answered(raw_board, small_model):
    """Wild types, lengths, offsets and counts: always an answer, and the board still works
    afterwards.
    """
    rng = random.Random(4)
    raw_board.ask(Message.RESET, messages.SESSION.pack(5), seq=255)
    number = 256 * 6  # of the request whose turn it is: session and seq
    for _ in range(300):
        type_ = rng.choice([*Message, rng.randrange(1, 128)])
        if type_ == Message.RESET:
            continue
        session = messages.SESSION.pack(number // 256)
        extreme = bytes(rng.choice([0, 1, 2, 127, 128, 254, 255]) for _ in range(rng.randrange(12)))
        payload = (
            session[: rng.choice([0, 3, 4, 4, 4, 4])]
            + extreme
            + rng.randbytes(rng.choice([0, 0, 1, 30, 200]))
        )
        answer = raw_board.ask(type_, payload, seq=number % 256)
        assert answer.type in (type_ | messages.REPLY, messages.ERROR)
        had_its_turn = True
        if answer.type == messages.ERROR:
            assert answer.payload[0] in list(Error) and answer.payload[2] == type_
            out_of_turn = len(answer.payload) > messages.ERROR_REPLY.size
            had_its_turn = not out_of_turn or answer.payload[0] == Error.TYPE
        number += had_its_turn
    assert number > 256 * 6 + 200
    raw_board.ask(Message.RESET, messages.SESSION.pack(9), seq=7)
    x_q = np.arange(small_model.n_in, dtype="<i2")
    done = raw_board.ask(Message.STEP, messages.STEP_REQUEST.pack(9, 1) + x_q.tobytes(), seq=8)
    y_q = np.frombuffer(done.payload, "<i4", offset=messages.STEP_REPLY.size)
    assert np.array_equal(y_q, small_model.stream().step_q(x_q))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the emulator in /proc")
@pytest.mark.parametrize("port", ["sim:microbit", "qemu:microbit"])
@pytest.mark.parametrize(
    "end", full(["os.kill(os.getpid(), 9)", "sys.exit(3)", "raise RuntimeError"], "sys.exit(3)")
)
def test_emulators_end_with_their_parent(port, end, images, small_model):
    need(port)
    image = str(images(small_model, "microbit").elf)
    count = "print(link.info().board, flush=True)"
    code = f"import os, sys; from stepwell.link import connect; link = connect({port!r}, image={image!r}); {count}; {end}"
    environment = os.environ | {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "microbit", "the emulator was never there"
    deadline = time.monotonic() + 5
    while (left := processes_with(image)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for QEMU in /proc")
def test_qemu_ends_with_its_leash(images, small_model):
    need("qemu:microbit")
    image = images(small_model, "microbit").elf
    emulator = EMULATORS["qemu"].start(load_board("microbit"), image)
    assert len(processes_with(str(image))) == 2
    emulator._process.terminate()
    emulator.wait(5)
    try:
        assert wait_until(lambda: not processes_with(str(image)), 5)
    finally:
        emulator.close()


def test_avr_boards_side_by_side(images, small_model, turbofan):
    """Each runs its own image, and nothing is left behind."""
    need("simavr:arduino-mega")
    before = set(Path(tempfile.gettempdir()).glob("stepwell-flash-*"))
    models = [small_model, turbofan] * 2

    def run(model):
        with connect(
            "simavr:arduino-mega", model=model, image=images(model, "arduino-mega").elf
        ) as link:
            return link.info().model_id

    for model in models[:2]:
        images(model, "arduino-mega")
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(run, models)) == [model.id for model in models]
    assert set(Path(tempfile.gettempdir()).glob("stepwell-flash-*")) <= before


def processes_with(argument: str) -> list[str]:
    """Running processes that have ``argument`` on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if argument in words:
            found.append(" ".join(words))
    return found


def test_board_list_is_complete():
    """Whatever is labelled emulated is emulated here."""
    emulated = {board.name for board in map(load_board, board_names()) if board.label == "emulated"}
    assert {*BOARDS, *OTHER_CORES, *OWN_PERIPHERALS, *AVR} == emulated
