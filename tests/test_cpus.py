"""The engine compiled for other CPUs and run under qemu-user: the same bits, in every packing and
at every odd size.

The Thumb-2 build runs the very code of Cortex-M4, M7 and M33: those instructions are the same on
the A profile.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import stepwell
from conftest import ROOT, full, skip_for
from shapes import random_dense, random_gru, random_lstm, random_sequences
from stepwell.blob import pack
from stepwell.emit import copy_engine
from stepwell.errors import ModelError, StepwellError
from stepwell.graph import Graph
from stepwell.integer.packing import PACKINGS, TARGETS, packing_for, to_pairs
from stepwell.layers import GruLayer, LstmLayer
from stepwell.model import Model
from test_native import WARNINGS, mutants

GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.stw"))
SIZES = [
    (1, 1),
    (1, 2),
    (2, 3),
    (3, 5),
    (4, 4),
    (5, 31),
    (7, 32),
    (8, 33),
    (31, 35),
    (33, 36),
    (64, 63),
    (67, 67),
    (6, 128),
    (3, 256),
]


@dataclass(frozen=True)
class Cpu:
    compiler: str
    flags: str
    runner: str
    package: str

    def why_not(self) -> str | None:
        missing = [name for name in (self.compiler, self.runner) if name and not shutil.which(name)]
        return (
            f"{' and '.join(missing)} not installed: apt-get install {self.package}"
            if missing
            else None
        )


CPUS = {
    "host": Cpu("gcc", "-O2 -fsanitize=address,undefined -fno-sanitize-recover=all", "", "gcc"),
    "host checked": Cpu("gcc", "-O1 -DSTW_CHECKED", "", "gcc"),
    "host avx2": Cpu(
        "gcc",
        "-O2 -DSTW_WITH_AVX2=1 -fsanitize=address,undefined -fno-sanitize-recover=all",
        "",
        "gcc",
    ),
    "thumb dsp": Cpu(
        "arm-linux-gnueabihf-gcc",
        "-O2 -static -mthumb -march=armv7-a+fp",
        "qemu-arm",
        "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user",
    ),
    "aarch64 neon": Cpu(
        "aarch64-linux-gnu-gcc",
        "-O2 -static",
        "qemu-aarch64",
        "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user",
    ),
    "riscv64": Cpu(
        "riscv64-linux-gnu-gcc",
        "-O2 -static",
        "qemu-riscv64",
        "gcc-riscv64-linux-gnu libc6-dev-riscv64-cross qemu-user",
    ),
}


STRANGE = {  # the high byte first, words of 32 and of 64 bits
    f"{name} big-endian": Cpu(
        f"{name}-linux-gnu-gcc",
        "-O2 -static",
        f"qemu-{name.replace('powerpc', 'ppc')}",
        f"gcc-{name}-linux-gnu libc6-dev-{name}-cross qemu-user",
    )
    for name in ("powerpc", "mips", "s390x")
}


@pytest.fixture(params=full(CPUS, "host", "host avx2", "thumb dsp"), scope="module")
def replay(request, tmp_path_factory):
    return replay_on(CPUS[request.param], tmp_path_factory)


@pytest.fixture(params=full(STRANGE, "s390x big-endian"), scope="module")
def strange_replay(request, tmp_path_factory):
    return replay_on(STRANGE[request.param], tmp_path_factory)


def compiled(cpu: Cpu, folder: Path, main: str) -> Path:
    """``main`` of tests/c with the engine."""
    skip_for(cpu.why_not())
    sources = [path for path in copy_engine(folder) if path.suffix == ".c"]
    program, files = folder / "program", [*sources, ROOT / "tests" / "c" / main]
    subprocess.run(
        [cpu.compiler, *WARNINGS, *cpu.flags.split(), f"-I{folder}", *files, "-o", program],
        check=True,
    )
    return program


def replay_on(cpu: Cpu, tmp_path_factory):
    """Runs models: (blob, codes, odd) of each -> outputs of each, and the CRC of its snapshot."""
    program = compiled(cpu, tmp_path_factory.mktemp("cpu"), "replay_blobs.c")

    def run(
        cases: list[tuple[bytes, np.ndarray, int]], n_out: list[int]
    ) -> list[tuple[np.ndarray, int]]:
        fed = b"".join(
            struct.pack("<III", len(b), len(x), odd) + b + x.astype("<i2").tobytes()
            for b, x, odd in cases
        )
        done = subprocess.run([*cpu.runner.split(), program], input=fed, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        words = np.frombuffer(done.stdout, "<i4")
        found = []
        for (_, x, _), width in zip(cases, n_out, strict=True):
            y, words = words[: len(x) * width].reshape(-1, width), words[len(x) * width :]
            found.append((y, int(words[0]) & 0xFFFFFFFF))
            words = words[1:]
        return found

    return run


def codes(rng: np.random.Generator, model: Model, n: int = 24) -> np.ndarray:
    """Extremes, large values, and small ones."""
    x = rng.integers(-32768, 32768, (n, model.n_in)).astype(np.int16)
    x[:4] = rng.choice([-32768, 32767], (4, model.n_in))
    x[n // 2 :] //= 100
    return x


def assert_same(replay, models: list[Model], packing: str, odd: int = 0) -> None:
    rng = np.random.default_rng(4)
    inputs = [codes(rng, model) for model in models]
    cases = [(pack(model, packing), x, odd) for model, x in zip(models, inputs, strict=True)]
    for model, x, (y, snapshot) in zip(
        models, inputs, replay(cases, [m.n_out for m in models]), strict=True
    ):
        stream = model.stream()
        assert np.array_equal(y, stream.run_q(x)), model
        assert snapshot == zlib.crc32(stream.save()), model


def sized(
    n_in: int, n_units: int, precision: str = "w8a16", gain: float = 2.0, cell=random_lstm
) -> Model:
    rng = np.random.default_rng(1000 * n_in + n_units)
    layers = (cell(rng, n_in, n_units, gain), random_dense(rng, n_units, 2))
    return stepwell.convert(Graph(layers), random_sequences(rng, 2, 30, n_in), precision=precision)


def with_kx(model: Model, low: int, high: int) -> Model:
    """The input sums brought to the hidden ones by other powers of two, as weights of other sizes
    would have it.
    """
    rng = np.random.default_rng(9)

    def changed(layer):
        if not isinstance(layer, (LstmLayer, GruLayer)):
            return layer
        kx = rng.integers(low, high + 1, len(layer.rows)).astype(np.int8)
        if isinstance(layer, GruLayer):
            kx[2 * layer.n_units :] = 0  # the candidate's sums do not join
            rows = replace(layer.rows, kx=kx)
            return replace(layer, w_x=(layer.w_x // 16).astype(np.int8), rows=rows)
        w_x = (layer.w_x.astype(int) >> np.maximum(kx, 0)[:, None]).astype(np.int8)
        return replace(layer, w_x=w_x, rows=replace(layer.rows, kx=kx))

    return model.replace(layers=tuple(map(changed, model.layers)))


def with_small_shifts(model: Model, every: int) -> Model:
    """The same sums, requantised by shifts of 10 to 16 with small weights: rows as coarse scales
    give them.
    """

    def changed(layer):
        if not isinstance(layer, LstmLayer):
            return layer
        rows, some = layer.rows, np.arange(len(layer.rows)) % every == 0
        shift = np.where(some, 10 + np.arange(len(rows)) % 7, rows.shift).astype(np.int8)
        w_x, w_h = (
            np.where(some[:, None], w // 64, w).astype(np.int8) for w in (layer.w_x, layer.w_h)
        )
        bias = np.where(some, rows.bias % 64, rows.bias).astype(np.int32)
        mult = np.where(some, 1 + rows.mult % 16, rows.mult).astype(np.int16)
        kx = np.where(some, np.minimum(rows.kx, 2), rows.kx).astype(np.int8)
        return replace(
            layer, w_x=w_x, w_h=w_h, rows=replace(rows, shift=shift, bias=bias, mult=mult, kx=kx)
        )

    return model.replace(layers=tuple(map(changed, model.layers)))


def test_goldens(replay):
    """Every layer kind, cell variant and mode, as plain rows and as pairs where a layer can have
    them.
    """
    models = [stepwell.load(path) for path in GOLDEN]
    for packing in PACKINGS:
        assert_same(replay, models, packing)


def test_goldens_on_big_endian_machines(strange_replay):
    """Blobs, codes and snapshots are little endian on every machine."""
    models = [stepwell.load(path) for path in GOLDEN]
    for packing in PACKINGS:
        assert_same(strange_replay, models, packing)


@pytest.mark.parametrize("name", full(STRANGE, "s390x big-endian"))
def test_hostile_blobs_on_big_endian_machines(name, tmp_path_factory):
    """What a little-endian machine refuses is refused; the rest opens, but for arrays that overlap,
    which cannot be turned.
    """
    blobs = [
        m
        for stem in ("gru", "layer_norm")
        for m in mutants((GOLDEN[0].parent / f"{stem}.stw").read_bytes(), 400)
    ]
    fed = b"".join(struct.pack("<I", len(blob)) + blob for blob in blobs)
    accepted = []
    for cpu in (CPUS["host checked"], STRANGE[name]):
        program = compiled(cpu, tmp_path_factory.mktemp("hostile"), "hostile.c")
        done = subprocess.run([*cpu.runner.split(), program], input=fed, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        accepted.append(np.frombuffer(done.stdout, "S1") == b"+")
    little, big = accepted
    assert len(little) == len(big) == len(blobs) and not (big & ~little).any()
    assert 0 <= little.sum() - big.sum() < 0.1 * little.sum() and little.sum() > 50


@pytest.mark.parametrize("precision", ["w8a16", "w8x16h8", "w8a8"])
def test_pairs_of_every_size(replay, precision):
    models = [sized(*size, precision) for size in SIZES]
    assert all(model.layers[0].packing("pairs") == "pairs" for model in models)
    assert_same(replay, models, "pairs")
    assert_same(replay, models[:6], "pairs", odd=1)


@pytest.mark.parametrize("precision", ["w8a16", "w8x16h8", "w8a8"])
def test_pairs_of_grus(replay, precision):
    sizes = [(1, 4), (2, 8), (5, 32), (33, 36), (64, 64), (67, 128)]
    models = [sized(*size, precision, cell=random_gru) for size in sizes]
    models += [
        sized(7, 12, precision, 10.0 if precision == "w8a16" else 2.0, random_gru),
        with_kx(sized(9, 16, precision, cell=random_gru), -7, 3),
    ]
    assert all(model.layers[0].packing("pairs") == "pairs" for model in models)
    assert sized(3, 6, precision, cell=random_gru).layers[0].packing("pairs") == "plain"
    assert_same(replay, models, "pairs")
    assert_same(replay, models[:3], "pairs", odd=1)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("low", "high"), [(-7, -1), (-3, 3), (0, 4)])
def test_every_way_to_join(replay, low, high, packing):
    assert_same(
        replay, [with_kx(sized(*size), low, high) for size in [(5, 7), (12, 16), (17, 24)]], packing
    )


@pytest.mark.parametrize("packing", PACKINGS)
def test_lstms_that_saturate(replay, packing):
    assert_same(replay, [sized(*size, gain=40.0) for size in [(5, 7), (16, 32), (33, 17)]], packing)


@pytest.mark.parametrize("precision", ["w8a16", "w8x16h8", "w8a8", "w4a16"])
def test_plain_rows_of_every_size(replay, precision):
    assert_same(replay, [sized(*size, precision) for size in SIZES], "plain")


@pytest.mark.parametrize("packing", PACKINGS)
def test_nothing_is_read_behind_the_weights(replay, packing):
    """Kernels take 16 weights of a row at once: at the last row, which whole groups of eight units
    reach, fewer are left.
    """
    models = [
        sized(*size, cell=cell)
        for size in [(14, 8), (15, 8), (31, 16)]
        for cell in (random_lstm, random_gru)
    ]
    models.append(sized(15, 8, "w4a16"))
    assert_same(replay, models, packing)


def test_rows_with_small_shifts(replay):
    """Requantising by less than 17 bits: what vector code leaves to the portable one, whole layers
    and single units.
    """
    models = [sized(5, 24), sized(9, 16)]
    assert_same(
        replay, [with_small_shifts(model, every) for model in models for every in (1, 13)], "plain"
    )


# ---- the packing itself ----


def test_halfwords_hold_two_gates():
    rng = np.random.default_rng(1)
    for n in (1, 2, 5, 8):
        weights = rng.integers(-127, 128, (3, 4, n)).astype(np.int8)
        halves = to_pairs(weights).view("<i2").astype(int)
        assert halves.shape == (3, 2 * n)
        for unit, row in enumerate(halves):
            for column in range(n):
                last = n % 2 == 1 and column == n - 1
                for pair in (0, 1):
                    at = 2 * (n - 1) + pair if last else 4 * (column // 2) + 2 * pair + column % 2
                    a, b = (int(weights[unit, 2 * pair + k, column]) for k in (0, 1))
                    assert row[at] == 256 * a + b + 128


def test_a_packed_model_keeps_its_id_and_stays_on_devices():
    model = sized(4, 5)
    packed = pack(model, "pairs")
    assert packed[16:20] == model.blob[16:20] and packed != model.blob
    with pytest.raises(ModelError, match=r"packed \(pairs\) for a device: load the original \.stw"):
        stepwell.loads(packed)


def test_layers_that_cannot_be_paired_stay_plain():
    model = sized(4, 5)
    lstm, dense = model.layers
    assert dense.packing("pairs") == lstm.packing("plain") == "plain"
    wide = replace(lstm.rows, shift=np.full(20, 33, np.int8))
    assert replace(lstm, rows=wide).packing("pairs") == "plain"
    assert sized(4, 5, "w4a16").layers[0].packing("pairs") == "plain"


def test_targets():
    assert (
        packing_for("cortex-m4") == "pairs"
        and packing_for("cortex-m0") == packing_for("any") == "plain"
    )
    assert set(TARGETS.values()) <= set(PACKINGS)
    with pytest.raises(StepwellError, match="unknown target 'z80'; there are: any, "):
        packing_for("z80")


def test_headers_of_packed_blobs_are_checked(tmp_path: Path):
    content = bytearray(pack(sized(2, 3), "pairs"))
    content[27] = 2  # a packing that does not exist
    with pytest.raises(ModelError):
        stepwell.loads(bytes(content))


@pytest.mark.parametrize("mult", [-5, 5 - 3 * 65536, 0, -(2**31)])
def test_multipliers_of_packed_rows_are_checked(mult, tmp_path_factory):
    """They have 32 bits there; what is below 1 is no multiplier of a row that was proved."""
    blob = bytearray(pack(sized(4, 5), "pairs"))
    rows = struct.unpack_from("<I", blob, 40 + 32)[0]  # of the first layer
    right = bytes(blob)
    struct.pack_into("<i", blob, rows + 20, mult)  # behind four biases and four kx
    wrong = bytes(blob[:-4]) + struct.pack("<I", zlib.crc32(blob[:-4]))
    program = compiled(CPUS["host checked"], tmp_path_factory.mktemp("mult"), "hostile.c")
    fed = b"".join(struct.pack("<I", len(b)) + b for b in (right, wrong))
    assert subprocess.run([program], input=fed, capture_output=True).stdout == b"+-"
