"""Whatever comes from outside is hostile: libFuzzer on blobs, snapshots, frames, both interfaces
and, by atheris, ONNX files.

pytest --all tests/test_fuzz.py                                 some seconds each
FUZZ_SECONDS=3600 FUZZ_KEEP=1 pytest --all tests/test_fuzz.py   an hour each; what breaks is left in the test's folder,
                                                                what reaches new code joins tests/fuzz/seeds
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import stepwell
from conftest import ROOT, need, skip_for
from stepwell.blob import pack
from stepwell.emit import emit
from stepwell.link import messages
from stepwell.link.frame import Frame, encode
from stepwell.link.messages import Message
from stepwell.link.update import make_update

pytestmark = pytest.mark.full
SECONDS = int(os.environ.get("FUZZ_SECONDS", "4"))
KEEP = bool(os.environ.get("FUZZ_KEEP"))
MOST_BYTES = 8192  # of an input
KEPT_BYTES = 20_000  # of each harness, packed, the list of names not counted
FLAGS = "-std=gnu99 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DSTW_CHECKED -DBOARD_NAME=host".split()
UPDATES = [
    "-DBOARD_UPDATE_BYTES=8192",
    "-DBOARD_UPDATE_PAGE_BYTES=256",
    "-DBOARD_UPDATE_RAM_BYTES=4096",
]
CLANG = "apt-get install clang libclang-rt-14-dev"
FUZZ, APP = ROOT / "tests" / "fuzz", ROOT / "firmware" / "app"
GOLDEN = ROOT / "tests" / "golden"
UPDATE_MODELS = ("lstm", "gru", "dense_lstm_dense")
DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="module")
def model() -> stepwell.Model:
    """It has counters, which a snapshot could set wrong."""
    return stepwell.load(GOLDEN / "attention_dot_product.stw")


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory) -> Path:
    """The engine and ``model`` as app_model."""
    need("clang", CLANG)
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "empty.c").write_text(
        "int LLVMFuzzerTestOneInput(const char *data, long n) { return !data && n; }\n"
    )
    if subprocess.run(
        ["clang", *FLAGS, folder / "empty.c", "-o", folder / "empty"], capture_output=True
    ).returncode:
        skip_for(f"clang has no libFuzzer here: {CLANG}")
    (folder / "empty.c").unlink()
    emit(model, folder, "app_model")
    (folder / "main.c").unlink()
    return folder


def fuzz(engine: Path, folder: Path, name: str, seeds: list[bytes], *more: str | Path) -> None:
    """Build the harness ``name`` with ``more`` sources and flags, and run it."""
    includes = [
        f"-I{path}" for path in (engine, FUZZ, ROOT / "tests" / "c" / "service", APP, APP.parent)
    ]
    program = folder / name
    files = [FUZZ / f"{name}.c", *more, *sorted(engine.glob("*.c"))]
    subprocess.run(["clang", *FLAGS, *includes, *files, "-o", program], check=True)
    run([program], folder, name, seeds)


def run(program: list[str | Path], folder: Path, name: str, seeds: list[bytes]) -> None:
    """A harness on ``seeds``, kept ones, those that once broke something (``found``), and what it
    makes of them.
    """
    corpus, kept = folder / "corpus", FUZZ / "seeds" / f"{name}.zip"
    corpus.mkdir()
    for index, seed in enumerate(seeds):
        (corpus / f"seed{index}").write_bytes(seed)
    if kept.is_file():
        zipfile.ZipFile(kept).extractall(corpus)
    for path in (FUZZ / "found" / name).glob("*"):
        shutil.copy(path, corpus)
    bounds = [
        f"-max_total_time={SECONDS}",
        f"-max_len={MOST_BYTES}",
        "-timeout=60",
        "-rss_limit_mb=2048",
    ]
    options = [*bounds, "-print_final_stats=1", "-verbosity=0"]
    done = subprocess.run(
        [*program, *options, corpus], cwd=folder, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stderr[-4000:]
    runs = int(done.stderr.split("stat::number_of_executed_units:")[1].split()[0])
    print(f"{name}: {runs} executions, no crash")
    assert runs > 2 * len(seeds)
    if KEEP:
        keep(program, corpus, kept)


def keep(program: list[str | Path], corpus: Path, kept: Path) -> None:
    """The smallest inputs that together reach what all of ``corpus`` reaches, the first KEPT_BYTES
    of them, in one file.
    """
    least = corpus.with_name("least")
    least.mkdir()
    subprocess.run(
        [*program, "-merge=1", f"-max_len={MOST_BYTES}", "-verbosity=0", least, corpus],
        check=True,
        capture_output=True,
    )
    kept.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(kept, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(least.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
            if file.fp.tell() > KEPT_BYTES:
                break
            file.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)


def test_blobs(engine, tmp_path):
    models = [
        stepwell.load(path) for path in sorted(GOLDEN.glob("*.stw"))[:: 1 if SECONDS > 60 else 4]
    ]
    seeds = [content for model in models for content in {model.blob, pack(model, "pairs")}]
    fuzz(engine, tmp_path, "blob", [seed + b"x" * (1 - len(seed) % 2) for seed in seeds])


def test_snapshots(engine, model, tmp_path):
    stream, seeds = model.stream(), []
    for steps in (0, 3, 9):
        stream.run_q(np.ones((steps, model.n_in), np.int16))
        seeds.append(stream.save())
    fuzz(engine, tmp_path, "state", seeds)


def test_serial_line(engine, model, tmp_path):
    session, codes = messages.SESSION.pack(5), bytes(2 * model.n_in)
    said = [
        (Message.INFO, b""),
        (Message.RESET, session),
        (Message.STEP, session + b"\1" + codes),
        (Message.GET_STATE, session + b"\0\0"),
        (Message.SET_STATE, session + b"\0\0" + bytes(9)),
        (Message.PROBE_INPUT, session + b"\0\0" + codes),
        (Message.PROBE, session + b"\0\0\0\1"),
        (Message.BENCH, session),
        (Message.MEM, b""),
        (Message.STAT, b""),
        (Message.ECHO, b"echo"),
        (Message.BLOB_STATUS, b""),
        (Message.BLOB_BEGIN, messages.MANIFEST.pack(96, 1, 1, 0)),
        (Message.BLOB_WRITE, messages.OFFSET.pack(0) + bytes(range(64))),
        (Message.BLOB_WRITE, messages.OFFSET.pack(64) + bytes(32)),
        (Message.BLOB_COMMIT, b""),
    ]
    frames = line(said)
    seeds = [
        b"".join(frames),
        *frames,
        b"\x80\xff\x81",
        *(b"".join(line(update_of(golden))) for golden in UPDATE_MODELS),
    ]
    fuzz(engine, tmp_path, "service", seeds, *UPDATES, APP / "update.c", APP / "frame.c")


def line(said: list[tuple[int, bytes]]) -> list[bytes]:
    """Messages as the harness takes them: length, type, seq, payload."""
    return [
        bytes([2 + len(payload), int(kind), seq]) + payload
        for seq, (kind, payload) in enumerate(said)
    ]


def update_of(golden: str) -> list[tuple[int, bytes]]:
    """All of an update to that model, and a step of it; the commit has an odd number, so that its
    sums stay right.
    """
    model, session = stepwell.load(GOLDEN / f"{golden}.stw"), messages.SESSION.pack(5)
    update = make_update(model, 1)
    pieces = [
        (Message.BLOB_WRITE, messages.OFFSET.pack(at) + update.body[at : at + 96])
        for at in range(0, len(update.body), 96)
    ]
    filler = [(Message.STAT, b"")] * (len(pieces) % 2)
    step = messages.STEP_REQUEST.pack(5, 1) + bytes(2 * model.n_in)
    head, tail = (
        [(Message.BLOB_BEGIN, update.manifest)],
        [(Message.RESET, session), (Message.STEP, step)],
    )
    return [*head, *pieces, *filler, (Message.BLOB_COMMIT, b""), *tail]


def test_frames(engine, tmp_path):
    seeds = [encode(Frame(kind, 7, bytes(length))) for kind, length in ((1, 0), (3, 40), (9, 240))]
    fuzz(engine, tmp_path, "frame", seeds, APP / "frame.c")


def test_text_interface(engine, tmp_path):
    commands = [
        "name",
        "profile",
        "help",
        "timestamp",
        "db load 8",
        "db 0011223344556677",
        "db print",
        "infer 2 1",
        "results",
    ]
    text = "%".join([*commands, ""]).encode()
    flags = ["-DAPP_MLPERF", "-DMLPERF_INPUT_BYTES=64u", "-DMLPERF_MOST_RUNS=9u"]
    fuzz(engine, tmp_path, "mlperf", [text, text[:40]], *flags, APP / "mlperf.c")


def test_importer(tmp_path):
    skip_for(None if find_spec("atheris") else "atheris is not installed: pip install atheris")
    for path in DATA.glob("onnx/*.data"):  # weights beside a model
        shutil.copy(path, tmp_path)
    exported = [
        path.read_bytes()
        for path in sorted(DATA.glob("*/*.onnx"))
        if path.stat().st_size <= MOST_BYTES
    ]
    run(
        [sys.executable, FUZZ / "importer.py"],
        tmp_path,
        "importer",
        [*exported, *made_models(tmp_path / "made.onnx")],
    )


def made_models(file: Path) -> list[bytes]:
    """What exports seldom have: convolutions, attention, norms, sums."""
    import test_onnx_layers as made  # here, because it imports torch

    files = [
        made.after_lstm(file, *nodes, tensors=tensors).read_bytes()
        for nodes, tensors in made.NODES.values()
    ]
    files += [made.convolved(file, *what).read_bytes() for what in made.CONVOLUTIONS.values()]
    attentions = [made.attention_nodes(form) for form in made.ATTENTIONS]
    return files + [
        made.after_lstm(file, *nodes, tensors=made.ATTENTION_TENSORS).read_bytes()
        for nodes in attentions
    ]
