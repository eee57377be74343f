"""Injected faults: the report must name the layer, gate and unit that is wrong."""

from __future__ import annotations

import dataclasses
import shutil
import zlib

import numpy as np
import pytest
import stepwell
from conftest import ROOT
from elftools.elf.elffile import ELFFile
from shapes import random_sequences
from stepwell.boards.build import build
from stepwell.layers import LstmLayer
from stepwell.link import HostLink, connect
from stepwell.link.hil import run_hil
from stepwell.reference import Reference

from .conftest import need

GATES = LstmLayer.gates

BIT = 6  # of the weight's byte: 64 of 127


@pytest.fixture(scope="module")
def deep_model() -> stepwell.Model:
    """Two LSTM layers and three dense ones."""
    return stepwell.load(ROOT / "tests" / "golden" / "two_lstm_three_dense.stw")


@pytest.fixture(scope="module")
def data(deep_model) -> list[np.ndarray]:
    scale = deep_model.x_scale * 8000
    return [x * scale for x in random_sequences(np.random.default_rng(5), 2, 60, deep_model.n_in)]


def with_bit_flipped(elf, target, symbol: str, offset: int, bit: int = BIT):
    """A copy of an ELF with one bit of a constant changed."""
    shutil.copyfile(elf, target)
    with open(target, "r+b") as file:
        parsed = ELFFile(file)
        found = parsed.get_section_by_name(".symtab").get_symbol_by_name(symbol)[0]
        assert offset < found["st_size"]
        address = found["st_value"] + offset
        position = next(iter(parsed.address_offsets(address)))
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))
    return target


def paired_place(n: int, unit: int, gate: int, column: int) -> int:
    """Where the byte of a weight stands in rows packed in pairs; its bits but the highest are those
    of the weight.
    """
    last_odd = n % 2 == 1 and column == n - 1
    halfword = column // 2 * 4 + (gate // 2 if last_odd else gate // 2 * 2 + column % 2)
    return unit * 4 * n + 2 * halfword + (gate % 2 == 0)


def tampered(model, layer: int, array: str, row: int, column: int) -> stepwell.Model:
    """The model with the same bit flipped in Python."""
    weights = getattr(model.layers[layer], array).copy()
    weights.view(np.uint8)[row, column] ^= 1 << BIT
    changed = dataclasses.replace(model.layers[layer], **{array: weights})
    return model.replace(layers=(*model.layers[:layer], changed, *model.layers[layer + 1 :]))


def first_effect(good, bad, x, layer: int, row: int) -> tuple[int, int, int]:
    """(step, z of the good model, z of the bad one) where it first has an effect, by two references
    side by side.
    """
    seen: dict[object, int] = {}

    def watch(model):
        def observe(index, name, values):
            if index == layer and name == "z":
                seen[model] = int(values[-1, row])

        return Reference(model, observe)

    pair = watch(good), watch(bad)
    for step, x_q in enumerate(good.quantize(x)):
        for reference in pair:
            reference.step_q(x_q)
        states = [np.concatenate([*reference.state[layer]]) for reference in pair]
        if not np.array_equal(*states):  # a wrong forget gate does nothing while c is 0
            return step, seen[good], seen[bad]
    raise AssertionError("the fault has no effect on this data")


def report_on(port, model, data, image):
    with connect(port, model=model, image=image) as link:
        return run_hil(link, model, data)


@pytest.mark.parametrize(
    ("symbol", "layer", "gate", "unit", "column"),
    [
        ("app_model_w0", 0, 0, 3, 2),
        ("app_model_r0", 0, 3, 11, 0),
        ("app_model_w1", 1, 1, 8, 5),
        ("app_model_r1", 1, 2, 0, 8),
    ],
)
def test_flipped_weight_is_found(
    symbol, layer, gate, unit, column, images, deep_model, data, tmp_path
):
    need("sim:netduinoplus2")
    lstm = deep_model.layers[layer]
    width = lstm.n_in if symbol[-2] == "w" else lstm.n_out
    good = images(deep_model, "netduinoplus2").elf
    bad = with_bit_flipped(
        good, tmp_path / "bad.elf", symbol, paired_place(width, unit, gate, column)
    )
    report = report_on("sim:netduinoplus2", deep_model, data, bad)
    assert not report.ok and report.mismatches > 0
    first = report.first
    assert (first.layer, first.quantity, first.gate, first.unit) == (
        lstm.name,
        "z",
        GATES[gate],
        unit,
    )
    sick = tampered(
        deep_model, layer, "w_x" if symbol[-2] == "w" else "w_h", gate * lstm.n_out + unit, column
    )
    truth = first_effect(deep_model, sick, data[0], layer, gate * lstm.n_out + unit)
    assert not first.before and (first.sequence, first.step, first.expected, first.board) == (
        0,
        *truth,
    )
    assert f"layer {lstm.name}, unit {unit}, z of gate {GATES[gate]}: board {first.board}" in str(
        first
    )


def test_flipped_table_entry_is_found_behind_z(images, deep_model, data, tmp_path):
    """z is right; a gate made of it, or h made of tanh(c), is not."""
    need("sim:netduinoplus2")
    good = images(deep_model, "netduinoplus2").elf
    bad = with_bit_flipped(good, tmp_path / "bad.elf", "stw_sigmoid_table", 2 * 3 + 1)
    first = report_on("sim:netduinoplus2", deep_model, data, bad).first
    assert (first.quantity, first.gate in GATES) in (("gate", True), ("h", False))


def test_flipped_dense_weight_is_found_in_the_outputs(images, deep_model, data, tmp_path):
    need("qemu:microbit")
    good = images(deep_model, "microbit").elf
    bad = with_bit_flipped(good, tmp_path / "bad.elf", "app_model_w4", 1)
    first = report_on("qemu:microbit", deep_model, data, bad).first
    assert (first.layer, first.quantity, first.note) == (
        deep_model.layers[-1].name,
        "y",
        "all recurrent units are right",
    )


def with_code_changed(elf, target, function: str, change):
    """A copy of an ELF; ``change`` gets the instructions of ``function``, Thumb halfwords, and
    gives others.
    """
    shutil.copyfile(elf, target)
    with open(target, "r+b") as file:
        parsed = ELFFile(file)
        found = parsed.get_section_by_name(".symtab").get_symbol_by_name(function)[0]
        position = next(iter(parsed.address_offsets(found["st_value"] & ~1)))
        file.seek(position)
        code = np.frombuffer(file.read(found["st_size"]), "<u2")
        file.seek(position)
        file.write(change(code.copy()).astype("<u2").tobytes())
    return target


def test_skipped_reset_is_found(images, deep_model, data, tmp_path):
    """In the device's code: stw_reset returns at once, so the second sequence begins where the
    first one ended.
    """
    need("sim:microbit")

    def return_at_once(code):
        code[0] = 0x4770  # bx lr
        return code

    bad = with_code_changed(
        images(deep_model, "microbit").elf, tmp_path / "bad.elf", "stw_reset", return_at_once
    )
    report = report_on("sim:microbit", deep_model, data, bad)
    first = report.first
    assert (first.sequence, first.step, first.before) == (
        1,
        0,
        True,
    ) and "right after the reset" in first.note
    assert (first.layer, first.quantity) == (deep_model.layers[0].name, "c") and first.expected == 0
    assert report.mismatches > 0


def test_broken_multiplier_is_found(images, deep_model, data, tmp_path):
    """In the device's code: a multiplication of the dot products adds instead. Every unit suffers,
    the first is named.
    """
    need("sim:microbit")
    gate = 2

    def add_instead(code):
        # muls Rd, Rm; the last four: a column's weights of each gate
        (products,) = np.nonzero(code & 0xFFC0 == 0x4340)
        at = products[gate - 4]
        rd, rm = code[at] & 7, code[at] >> 3 & 7
        code[at] = 0x1800 | rm << 6 | rd << 3 | rd  # adds Rd, Rd, Rm
        return code

    good = images(deep_model, "microbit").elf
    bad = with_code_changed(good, tmp_path / "bad.elf", "stw_dot4_v6m", add_instead)
    first = report_on("sim:microbit", deep_model, data, bad).first
    assert (first.sequence, first.step, first.layer) == (0, 0, deep_model.layers[0].name)
    assert (first.quantity, first.gate, first.unit) == ("z", GATES[gate], 0) and not first.before


def test_wrong_scale_of_one_row_is_found(images, deep_model, data, tmp_path):
    """A bit of the multiplier that scales one gate of one unit."""
    need("sim:microbit")
    unit, gate, row_bytes, mult_at = 7, 2, 8, 4
    offset = (4 * unit + gate) * row_bytes + mult_at
    good = images(deep_model, "microbit").elf
    bad = with_bit_flipped(good, tmp_path / "bad.elf", "app_model_rows1", offset, 7)
    first = report_on("sim:microbit", deep_model, data, bad).first
    assert (first.layer, first.quantity, first.gate, first.unit) == (
        deep_model.layers[1].name,
        "z",
        GATES[gate],
        unit,
    )


class Sick(HostLink):
    """The host engine with a fault of the kind that only memory has; ``spoil`` gets the snapshot's
    bytes.
    """

    def spoil_state(self, offset: int) -> None:
        state = bytearray(self.get_state()[:-4])
        state[offset] ^= 1 << 4
        self.set_state(bytes(state) + zlib.crc32(state).to_bytes(4, "little"))


class ResetsBadly(Sick):
    def reset(self) -> None:
        super().reset()
        self.spoil_state(8 + 4 * 5)


def test_wrong_state_before_the_first_step_is_said(deep_model, data):
    first = run_hil(ResetsBadly(deep_model), deep_model, data).first
    assert first.before and (first.quantity, first.unit, first.step) == ("c", 5, 0)
    assert "the state before this step: layer" in str(first)


class StoresBadly(Sick):
    """Whenever a certain input comes, h of one unit of the second layer is stored wrong."""

    def step(self, x_q, progress=lambda steps: None):
        y_q = []
        for row in x_q:
            y_q.append(super().step(row[None])[0])
            if np.array_equal(row, self.trigger):
                self.spoil_state(8 + 4 * 21 + 2 * (12 + 4) + 1)
        return np.array(y_q).reshape(len(x_q), self._model.n_out)


def test_state_that_is_stored_wrong_is_told_from_one_computed_wrong(deep_model, data):
    link = StoresBadly(deep_model)
    link.trigger = deep_model.quantize(data[0][29])
    first = run_hil(link, deep_model, data).first
    assert (first.step, first.quantity, first.unit) == (29, "h", 4)
    assert first.layer == deep_model.layers[1].name and "stored state is wrong" in first.note


class Glitch(Sick):
    glitches = 1

    def step(self, x_q, progress=lambda steps: None):
        y_q = super().step(x_q)
        y_q[-1:, 0] += self.glitches
        self.glitches = 0
        return y_q


def test_fault_that_does_not_come_back_is_said(deep_model, data):
    report = run_hil(Glitch(deep_model), deep_model, data)
    assert report.mismatches == 1 and "the fault comes and goes" in str(report.first)
    assert (report.first.step, report.first.quantity) == (
        59,
        "y",
    ) and report.first.board == report.first.expected + 1


@pytest.mark.parametrize(
    ("layer", "symbol"), [(0, "app_model_r0"), (1, "app_model_w1"), (3, "app_model_r3")]
)
def test_flipped_weight_in_any_kind_of_layer(layer, symbol, tmp_path):
    """GRU, RNN and a GRU behind an RNN: the layer and the unit are named."""
    need("sim:microbit")
    model = stepwell.load(ROOT / "tests" / "golden" / "gru_rnn_lstm_gru.stw")
    recurrent = model.layers[layer]
    unit = 2
    width = recurrent.n_in if "_w" in symbol else recurrent.n_out
    image = build(model, "microbit", tmp_path).elf
    sick = tmp_path / "sick.elf"
    content = bytearray(image.read_bytes())
    with image.open("rb") as file:
        elf = ELFFile(file)
        entry = elf.get_section_by_name(".symtab").get_symbol_by_name(symbol)[0]
        section = elf.get_section(entry["st_shndx"])
        at = (
            section["sh_offset"]
            + entry["st_value"]
            - section["sh_addr"]
            + unit * len(recurrent.gates) * width
        )
    content[at] ^= 0x40
    sick.write_bytes(content)
    with connect("sim:microbit", model=model, image=sick) as link:
        report = run_hil(
            link, model, list(random_sequences(np.random.default_rng(4), 2, 40, model.n_in))
        )
    assert report.mismatches > 0
    assert (report.first.layer, report.first.unit, report.first.quantity) == (
        recurrent.name,
        unit,
        "z",
    )


def test_nothing_to_stream_is_refused(deep_model):
    with pytest.raises(stepwell.SampleError, match="no steps to stream"):
        run_hil(HostLink(deep_model, "host:"), deep_model, [])
    with pytest.raises(stepwell.SampleError, match="nan at index"):
        run_hil(HostLink(deep_model, "host:"), deep_model, [np.full((5, deep_model.n_in), np.nan)])
