"""Field update of the device's program, compiled for this machine: its flash is a file that loses
power at any operation.
"""

from __future__ import annotations

import re
import shutil
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import stepwell
from conftest import ROOT, SIGNED
from shapes import random_dense, random_lstm, random_sequences
from stepwell.blob import pack
from stepwell.errors import StepwellError
from stepwell.graph import Graph
from stepwell.link import messages
from stepwell.link.frame import Frame, encode
from stepwell.link.messages import Error, Message
from stepwell.link.update import Update, make_update, sign_with
from stepwell.model import Model
from test_service import SANITISED, Device, error_of, host_program

AREA, PAGE, RAM = 4096, 256, 256
UPDATES = (
    f"-DBOARD_UPDATE_BYTES={AREA}",
    f"-DBOARD_UPDATE_PAGE_BYTES={PAGE}",
    f"-DBOARD_UPDATE_RAM_BYTES={RAM}",
)
FLASH = ROOT / "tests" / "c" / "service" / "flash.c"
UNIT = messages.UPDATE_UNIT
S = messages.SESSION.pack(5)
# where the power goes, a word or page is: as before, half done, half done the other way
TORN = (
    "0",
    "1",
    "2",
)


def lstm_model(seed: int, units: int = 3, n_in: int = 2, mode: str = "carry") -> Model:
    rng = np.random.default_rng(seed)
    graph = Graph((random_lstm(rng, n_in, units), random_dense(rng, units, 2)))
    return stepwell.convert(graph, random_sequences(rng, 8, 20, n_in), mode=mode)


@pytest.fixture(scope="module")
def updates() -> list[Model]:
    """Models that replace small_model: same inputs, other weights and sizes."""
    return [lstm_model(seed, units) for seed, units in ((21, 3), (22, 5), (23, 4))]


@pytest.fixture(scope="module")
def program(small_model, tmp_path_factory) -> Path:
    return host_program(small_model, tmp_path_factory.mktemp("update"), FLASH, *UPDATES, *SANITISED)


@dataclass
class Board:
    """The program with its flash; every ``ask`` is one life, from power-on to power-off."""

    program: Path
    flash: Path

    def ask(self, *requests: tuple[int, bytes], **environment: str) -> list[Frame]:
        wire = b"".join(
            encode(Frame(type_, seq % 256, payload))
            for seq, (type_, payload) in enumerate(requests)
        )
        return Device(self.program, FLASH_FILE=str(self.flash), **environment).run(wire)

    def errors(self, *requests: tuple[int, bytes]) -> list[int | None]:
        return [error_of(answer) for answer in self.ask(*requests)]

    def operations(self) -> int:
        return struct.unpack("<I", self.flash.read_bytes()[AREA:])[0]

    def copy(self, name: str) -> Board:
        """The same flash in another file, its operations counted from 0."""
        other = Board(self.program, self.flash.with_name(name))
        shutil.copyfile(self.flash, other.flash)
        with other.flash.open("r+b") as file:
            file.seek(AREA)
            file.write(bytes(4))
        return other


@pytest.fixture
def board(program, tmp_path) -> Board:
    return Board(program, tmp_path / "flash")


def messages_of(update: Update, piece: int = 7 * UNIT) -> list[tuple[int, bytes]]:
    """BEGIN, WRITE .., COMMIT."""
    pieces = [
        (Message.BLOB_WRITE, messages.OFFSET.pack(start) + update.body[start : start + piece])
        for start in range(0, len(update.body), piece)
    ]
    return [(Message.BLOB_BEGIN, update.manifest), *pieces, (Message.BLOB_COMMIT, b"")]


X_Q = (np.arange(10).reshape(5, 2) * 1700 - 8000).astype("<i2")
STEPS = [
    (Message.RESET, S),
    (Message.STEP, messages.STEP_REQUEST.pack(5, len(X_Q)) + X_Q.tobytes()),
]
PROBE = [(Message.INFO, b""), *STEPS]
# in a session of its own: a RESET with the number of one that runs is a late frame
PROBE_AGAIN = [
    (Message.INFO, b""),
    (Message.RESET, bytes([S[0] + 1, *S[1:]])),
    (Message.STEP, messages.STEP_REQUEST.pack(6, len(X_Q)) + X_Q.tobytes()),
]


def runs(answers: list[Frame], candidates: dict[int, Model]) -> int:
    """The version that a board runs by its answers to PROBE, whose outputs must be that model's in
    every bit.
    """
    info, _, step = answers
    *_, model_id, _, _, room, version = messages.INFO_REPLY.unpack_from(info.payload)
    assert room == AREA // 2 - 3 * UNIT
    model = candidates[version]
    assert model_id == model.id
    y_q = np.frombuffer(step.payload, "<i4", offset=messages.STEP_REPLY.size).reshape(len(X_Q), -1)
    assert np.array_equal(y_q, model.stream().run_q(X_Q))
    return version


def test_updates_run_at_once_and_after_every_restart(board, small_model, updates):
    models = dict(enumerate([small_model, *updates]))
    assert runs(board.ask(*PROBE), models) == 0
    for version in (1, 2, 3):
        answers = board.ask(*messages_of(make_update(models[version], version)), *PROBE)
        assert [error_of(answer) for answer in answers] == [None] * len(answers)
        assert runs(answers[-3:], models) == version
        assert runs(board.ask(*PROBE), models) == version


@pytest.mark.full
def test_power_cut_at_every_operation(small_model, updates, tmp_path):
    """Before and in the middle of every word that is written and every page that is erased: old or
    new, never none, never a mix.

    Then the same update is sent again, and must arrive.
    """
    program = host_program(small_model, tmp_path / "program", FLASH, *UPDATES, "-O1")
    models, base = dict(enumerate([small_model, *updates])), Board(program, tmp_path / "flash")
    base.ask()  # makes the file
    counts = {}
    for version in (1, 2, 3):
        update = messages_of(make_update(models[version], version))
        done = base.copy(f"flash{version}")
        done.ask(*update)
        seen = []
        for k in range(done.operations()):
            for torn in TORN:
                cut = base.copy("cut")
                cut.ask(*update, FLASH_CUT=str(k), FLASH_TORN=torn)
                assert cut.operations() == k
                answers = cut.ask(*PROBE, *update, *PROBE_AGAIN)
                seen.append(runs(answers[:3], models))
                assert runs(answers[-3:], models) == version
        assert seen == sorted(seen) and set(seen) == {version - 1, version}
        counts[version] = len(seen)
        base = done
    print(f"power cuts: {counts}, {sum(counts.values())} in all")
    assert sum(counts.values()) > 900


def test_two_power_cuts_in_a_row(small_model, updates, tmp_path):
    """The second one while what the first one left is erased and written again; both slots have had
    their turn.
    """
    program = host_program(small_model, tmp_path / "program", FLASH, *UPDATES, "-O1")
    models, base = dict(enumerate([small_model, *updates])), Board(program, tmp_path / "flash")
    for version in (1, 2):
        base.ask(*messages_of(make_update(models[version], version)))
    base, update = base.copy("base"), messages_of(make_update(models[3], 3))
    whole = base.copy("whole")
    whole.ask(*update)
    last, rng, cuts = whole.operations() - 1, np.random.default_rng(7), 0
    for k in (
        0,
        1,
        7,
        8,
        last // 2,
        last - 16,
        last - 15,
        last - 14,
    ):  # erasures, words, the three of the header
        first = base.copy("first")
        first.ask(*update, FLASH_CUT=str(k), FLASH_TORN=rng.choice(TORN))
        for j in (0, 1, 8, rng.integers(last - 16), last - 14):
            second = first.copy("second")
            second.ask(*update, FLASH_CUT=str(j), FLASH_TORN=rng.choice(TORN))
            cuts += second.operations() == j
            answers = second.ask(*PROBE, *update, *PROBE_AGAIN)
            assert runs(answers[:3], models) in (2, 3) and runs(answers[-3:], models) == 3
    assert cuts == 40


def test_word_that_reads_well_once(small_model, updates, tmp_path):
    """The power goes in the header; its last word reads well at one start and not at the next, when
    the other slot is erased.
    """
    program = host_program(small_model, tmp_path / "program", FLASH, *UPDATES, "-O1")
    models, board = dict(enumerate([small_model, *updates])), Board(program, tmp_path / "flash")
    board.ask(*messages_of(make_update(models[1], 1)))
    update = messages_of(make_update(models[2], 2))
    whole = board.copy("whole")
    whole.ask(*update)
    header_bytes, crc_at = 12, AREA // 2 + 8
    board = board.copy("cut")
    board.ask(*update, FLASH_CUT=str(whole.operations() - 2 * UNIT // 4 + header_bytes // 4))
    assert runs(board.ask(*PROBE), models) == 2  # it read well
    flash = bytearray(board.flash.read_bytes())
    flash[crc_at] |= 0x55
    flash[crc_at + 1] |= 0xAA
    board.flash.write_bytes(flash)
    next_update = messages_of(make_update(models[3], 3))
    board = board.copy("second")
    board.ask(*next_update, FLASH_CUT="5")
    assert board.operations() == 5
    answers = board.ask(*PROBE, *next_update, *PROBE_AGAIN)
    assert runs(answers[:3], models) == 2 and runs(answers[-3:], models) == 3


@pytest.mark.parametrize("fault", ["FLASH_FAIL", "FLASH_STUCK"])
def test_flash_that_does_not_work(fault, small_model, updates, tmp_path):
    """An operation fails, or does nothing and says nothing: the host is told, the old model goes
    on; the next update arrives.

    One that fails behind the header's last word is told, too, and the next start finds the slot
    whole: old or new.
    """
    program = host_program(small_model, tmp_path / "program", FLASH, *UPDATES, "-O1")
    models, base = dict(enumerate([small_model, *updates])), Board(program, tmp_path / "flash")
    base.ask(*messages_of(make_update(models[1], 1)), *messages_of(make_update(models[2], 2)))
    base, update = base.copy("base"), messages_of(make_update(models[3], 3))
    whole = base.copy("whole")
    whole.ask(*update)
    told = 0
    for k in range(0, whole.operations(), 3):
        board = base.copy("board")
        answers = board.ask(*update, *PROBE, **{fault: str(k)})
        refused = Error.FLASH in map(error_of, answers)
        told += refused
        # not: a word of ones, or one of the seal
        assert runs(answers[-3:], models) == (2 if refused else 3)
        started_again = runs(board.ask(*PROBE), models)
        assert started_again == (2 if refused else 3) or (
            refused and k > whole.operations() - 2 * UNIT // 4 + 2
        )
        assert runs(board.ask(*update, *PROBE)[-3:], models) == 3
    assert told > 0.8 * whole.operations() / 3


def test_each_refusal(board, small_model, updates):
    """Whatever is wrong is named, nothing changes, and the right update still arrives afterwards."""
    good = make_update(updates[0], 5)
    begin, *writes, commit = messages_of(good)
    blob_bytes, model_id, version, _ = messages.MANIFEST.unpack(good.manifest)

    def manifest(**changed: int) -> tuple[int, bytes]:
        fields = {
            "blob_bytes": blob_bytes,
            "id": model_id,
            "version": version,
            "signature": 0,
        } | changed
        return Message.BLOB_BEGIN, messages.MANIFEST.pack(*fields.values())

    def write(offset: int, data: bytes) -> tuple[int, bytes]:
        return Message.BLOB_WRITE, messages.OFFSET.pack(offset) + data

    room = AREA // 2 - 3 * UNIT
    cases = [
        (commit, Error.ORDER),
        (writes[0], Error.ORDER),
        (manifest(version=0), Error.VERSION),
        (manifest(version=2**32 - 1), Error.VERSION),
        (manifest(blob_bytes=room + 1), Error.SIZE),
        (manifest(blob_bytes=2**32 - 1), Error.SIZE),
        (manifest(signature=2**32 - 1), Error.SIZE),
        (manifest(blob_bytes=room, signature=1), Error.SIZE),
        ((Message.BLOB_BEGIN, good.manifest[:-1]), Error.LENGTH),
        ((Message.BLOB_BEGIN, good.manifest[:-1] + b"\1"), Error.RANGE),
        (begin, None),
        (commit, Error.ORDER),  # nothing has come yet
        (write(UNIT, good.body[UNIT : 2 * UNIT]), Error.ORDER),
        (write(0, good.body[: UNIT - 1]), Error.RANGE),
        (write(0, good.body[:UNIT]), None),
        (write(1, good.body[1 : 1 + UNIT]), Error.RANGE),
        (write(0, good.body[:UNIT]), None),  # the same again
        (write(2**32 - UNIT, bytes(UNIT)), Error.ORDER),
        ((Message.BLOB_WRITE, bytes(3)), Error.LENGTH),
        (begin, None),  # the same update goes on
        (write(UNIT, good.body[UNIT : 2 * UNIT]), None),
        (write(0, bytes(UNIT)), Error.ORDER),  # another in its place: no update goes on
        (write(2 * UNIT, good.body[2 * UNIT : 3 * UNIT]), Error.ORDER),
        (begin, None),
        (write(UNIT, good.body[UNIT : 2 * UNIT]), Error.ORDER),  # it has begun anew
        (write(0, good.body[:UNIT]), None),
        (commit, Error.ORDER),  # too short
        (manifest(blob_bytes=blob_bytes - UNIT), None),  # another begins anew
        (write(0, good.body[: 7 * UNIT]), None),
        (write(7 * UNIT, good.body[7 * UNIT :]), Error.RANGE),  # longer than announced
    ]
    assert board.errors(*(request for request, _ in cases)) == [error for _, error in cases]
    assert board.errors(*messages_of(good)) == [None] * len(messages_of(good))
    answers = board.ask(begin, messages_of(make_update(updates[1], 5))[0], *PROBE)
    assert [error_of(answer) for answer in answers[:2]] == [Error.VERSION] * 2
    assert runs(answers[-3:], {5: updates[0]}) == 5
    assert board.errors(messages_of(make_update(updates[1], 4))[0]) == [Error.VERSION], (
        "also after a restart"
    )


def refused_at_commit(board: Board, update: Update, builtin: Model) -> tuple[int, int]:
    """(error, status) of the commit; the old model must run on, now and after a restart."""
    *before, commit = board.ask(*messages_of(update))
    assert [error_of(answer) for answer in before] == [None] * len(before)
    assert commit.type == messages.ERROR
    for answers in (board.ask(*messages_of(update), *PROBE)[-3:], board.ask(*PROBE)):
        assert runs(answers, {0: builtin}) == 0
    error, status, _ = messages.ERROR_REPLY.unpack(commit.payload)
    return error, status


def with_crc(blob: bytes) -> bytes:
    return blob[:-4] + struct.pack("<I", zlib.crc32(blob[:-4]))


def announced(blob: bytes, model: Model) -> Update:
    return Update(messages.MANIFEST.pack(len(blob), model.id, 1, 0), blob)


def test_every_damaged_bit_is_refused(board, small_model, updates):
    blob = make_update(updates[0], 1).body
    rng = np.random.default_rng(4)
    requests = []
    for bit in rng.choice(8 * len(blob), 60, replace=False):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        requests += messages_of(announced(bytes(damaged), updates[0]))
    answers = board.ask(*requests, *PROBE)
    commits = [
        a for a, (type_, _) in zip(answers, requests, strict=False) if type_ == Message.BLOB_COMMIT
    ]
    assert len(commits) == 60 and {error_of(commit) for commit in commits} == {Error.BLOB}
    assert runs(answers[-3:], {0: small_model}) == 0


def test_truncated_and_foreign_blobs_are_refused(board, small_model, updates):
    new = updates[0]
    blob = pack(new, with_notes=False)
    formats, checksum, mismatch = -4, -5, -6
    cases = [
        (announced(blob[:-32], new), (Error.BLOB, checksum)),
        (announced(blob[:20], new), (Error.BLOB, formats)),
        (announced(b"", new), (Error.BLOB, formats)),
        (announced(bytes(range(256)) * 2, new), (Error.BLOB, formats)),
        (announced(blob, updates[1]), (Error.BLOB, mismatch)),  # the manifest names another model
    ]
    for update, expected in cases:
        assert refused_at_commit(board, update, small_model) == expected


def test_packing_of_another_core_is_refused(board, small_model, updates, tmp_path):
    packed = make_update(updates[0], 1, "pairs")
    assert packed.body[27] == 1, "this model cannot be packed: the test proves nothing"
    assert refused_at_commit(board, packed, small_model) == (Error.PACKING, 0)
    program = host_program(
        small_model, tmp_path / "pairs", FLASH, *UPDATES, "-DUPDATE_PACKING=STW_PAIRS"
    )
    core_with_pairs = Board(program, tmp_path / "flash2")
    for update in (packed, make_update(updates[1], 2)):  # plain rows serve every core
        answers = core_with_pairs.ask(*messages_of(update), *PROBE)
        assert runs(answers[-3:], {1: updates[0], 2: updates[1]})


def test_model_without_room_is_refused(board, small_model):
    """Each would fit a slot."""
    wide = lstm_model(31, units=2, n_in=messages.MOST_IN + 1)
    large = lstm_model(32, mode="slide:120")
    assert large.info()["ram_bytes"] > RAM
    for model in (wide, large):
        assert refused_at_commit(board, make_update(model, 1), small_model) == (Error.ROOM, 0)


def test_wild_updates(board, small_model, updates):
    """Any order, offset and manifest; blobs with wild bytes and right checksums. The sanitisers and
    the flash are silent.
    """
    rng, blob = np.random.default_rng(8), pack(updates[0], with_notes=False)
    fields = (0, 1, 31, 32, 44, len(blob), AREA // 2, 2**31, 2**32 - 1)
    requests: list[tuple[int, bytes]] = []
    for _ in range(300):
        changed = bytearray(blob)
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(len(changed) - 4)] = rng.choice(
                [0, 1, 127, 128, 255, int(rng.integers(256))]
            )
        update = messages_of(announced(with_crc(bytes(changed)), updates[0]))
        if rng.random() < 0.4:  # parts of it, in any order, with other manifests among them
            manifest = messages.MANIFEST.pack(*(int(rng.choice(fields)) for _ in range(4)))
            offset = messages.OFFSET.pack(int(rng.choice(fields)))
            update += [
                (Message.BLOB_BEGIN, manifest),
                (Message.BLOB_WRITE, offset + rng.bytes(rng.choice([0, 1, 32, 224]))),
            ]
            update = [update[k] for k in rng.permutation(len(update))]
        requests += update
    answers = board.ask(*requests, *PROBE)
    assert len(answers) == len(requests) + 3
    seen = {error_of(answer) for answer in answers}
    assert seen >= {None, Error.ORDER, Error.BLOB, Error.SIZE, Error.RANGE}
    info = messages.INFO_REPLY.unpack_from(answers[-3].payload)
    assert info[5] == 0 and error_of(answers[-1]) is None, "whatever runs, runs"


def test_more_layers_than_there_is_room_for(small_model, updates, tmp_path):
    program = host_program(small_model, tmp_path / "program", FLASH, *UPDATES, "-DUPDATE_LAYERS=1u")
    space = -2
    assert refused_at_commit(
        Board(program, tmp_path / "flash"), make_update(updates[0], 1), small_model
    ) == (
        Error.BLOB,
        space,
    )


def test_state_of_the_old_model_is_refused(board, small_model, updates):
    """Same shapes, other weights: the snapshot names its model. The session ends with the old
    model.
    """
    new = updates[0]
    assert new.info()["snapshot_bytes"] == small_model.info()["snapshot_bytes"]
    take, put = messages.CHUNK.pack(5, 0), messages.CHUNK.pack(5, 0)
    first = board.ask(*STEPS, (Message.GET_STATE, take))
    old_state = first[-1].payload
    answers = board.ask(
        *STEPS,
        *messages_of(make_update(new, 1)),
        STEPS[1],
        STEPS[0],
        (Message.SET_STATE, put + old_state),
        STEPS[1],
    )
    step, reset, refused, same = answers[-4:]
    assert error_of(step) == Error.SESSION and error_of(reset) is None
    mismatch = -6
    assert messages.ERROR_REPLY.unpack(refused.payload)[:2] == (Error.STATE, mismatch)
    y_q = np.frombuffer(same.payload, "<i4", offset=messages.STEP_REPLY.size).reshape(len(X_Q), -1)
    assert np.array_equal(y_q, new.stream().run_q(X_Q)), (
        "the refused snapshot left something behind"
    )


def test_damage_in_the_running_slot_falls_back(board, small_model, updates):
    """To the other slot, then to the image's own model; any bit of both headers, of manifest or
    blob will do.
    """
    models = dict(enumerate([small_model, *updates]))
    for version in (1, 2):
        board.ask(*messages_of(make_update(models[version], version)))
    slots = {1: 0, 2: AREA // 2}

    def damage(version: int, at: int) -> None:
        with board.flash.open("r+b") as file:
            file.seek(slots[version] + at)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 8]))

    for header in (0, 4, 9, UNIT, UNIT + 4, UNIT + 9):
        damage(2, header)
        assert runs(board.ask(*PROBE), models) == 2
        other = (header + UNIT) % (2 * UNIT)
        damage(2, other)
        assert runs(board.ask(*PROBE), models) == 1
        damage(2, header)
        damage(2, other)
    for at in (2 * UNIT, 2 * UNIT + 4, 2 * UNIT + 9, 3 * UNIT, 3 * UNIT + 200):
        damage(2, at)
        assert runs(board.ask(*PROBE), models) == 1
        damage(2, at)
        assert runs(board.ask(*PROBE), models) == 2
    damage(2, 3 * UNIT + 60)
    damage(1, 3 * UNIT + 60)
    assert runs(board.ask(*PROBE), models) == 0
    answers = board.ask(*messages_of(make_update(updates[2], 3)), *PROBE)
    assert runs(answers[-3:], models) == 3


def test_another_image_runs_its_own_model(board, small_model, updates, tmp_path):
    board.ask(*messages_of(make_update(updates[0], 9)))
    assert runs(board.ask(*PROBE), {9: updates[0]}) == 9
    flashed = Board(host_program(updates[1], tmp_path / "other", FLASH, *UPDATES), board.flash)
    assert runs(flashed.ask(*PROBE), {0: updates[1]}) == 0


def test_signature_hook(small_model, updates, tmp_path):
    source = tmp_path / "key.c"
    source.write_text(SIGNED)
    board = Board(
        host_program(small_model, tmp_path / "program", FLASH, source, *UPDATES), tmp_path / "flash"
    )
    new = updates[0]
    program = "import sys, zlib; sys.stdout.buffer.write(zlib.crc32(sys.stdin.buffer.read(), 77).to_bytes(4, 'little'))"
    signed = make_update(new, 3, sign=sign_with([sys.executable, "-c", program]))
    # an old one as a new version
    replayed = Update(signed.manifest[:8] + b"\4" + signed.manifest[9:], signed.body)
    forged = Update(signed.manifest, signed.body[:-1] + bytes([signed.body[-1] ^ 1]))
    for update in (make_update(new, 3), forged, replayed):
        assert refused_at_commit(board, update, small_model) == (Error.SIGNATURE, 0)
    assert runs(board.ask(*messages_of(signed), *PROBE)[-3:], {3: new}) == 3
    assert runs(board.ask(*PROBE), {3: new}) == 3


def test_another_signature_of_the_same_update(program, tmp_path, updates):
    """Some schemes sign differently each time: what was interrupted behind its last byte begins
    anew, and does not get stuck.
    """
    first, second = (
        make_update(updates[0], 3, sign=lambda message, tail=tail: tail)
        for tail in (b"first", b"other")
    )
    begin, *writes, _ = messages_of(first)
    again = messages_of(second)
    answers = Board(program, tmp_path / "flash").ask(
        begin, *writes, again[0], again[-2], *again, *PROBE
    )
    refused = [k for k, answer in enumerate(answers) if error_of(answer) is not None]
    assert refused == [len(writes) + 2] and error_of(answers[refused[0]]) == Error.ORDER
    assert runs(answers[-3:], {3: updates[0]}) == 3


def test_signers_that_fail(small_model):
    with pytest.raises(StepwellError, match="no-such-program: No such file"):
        make_update(small_model, 1, sign=sign_with(["no-such-program"]))
    with pytest.raises(StepwellError, match="failed with exit code 3: no key"):
        make_update(
            small_model,
            1,
            sign=sign_with(
                [sys.executable, "-c", "import sys; print('no key', file=sys.stderr); sys.exit(3)"]
            ),
        )
    with pytest.raises(
        StepwellError,
        match=f"^signing: {re.escape(sys.executable)} wrote no signature to its stdout$",
    ):
        make_update(small_model, 1, sign=sign_with([sys.executable, "-c", ""]))
    lengths = iter(range(1, 9))
    with pytest.raises(StepwellError, match="another length each time"):
        make_update(small_model, 1, sign=lambda message: bytes(next(lengths)))
    with pytest.raises(StepwellError, match="version 0: give 1"):
        make_update(small_model, 0)
