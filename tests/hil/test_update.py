"""stepwell update on emulated boards: over a bad line, interrupted and resumed; then hil on the new
model.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import zlib

import numpy as np
import pytest
from conftest import ROOT, SIGNED, full
from stepwell.boards import load_board
from stepwell.boards.build import build
from stepwell.errors import BuildError, LinkError
from stepwell.link import HostLink, connect, qemu
from stepwell.link.emulator import wait_until
from stepwell.link.emulators import EMULATORS
from stepwell.link.hil import run_hil

from .conftest import need
from .test_commands import run
from .test_lossy import LossyProxy


@pytest.fixture
def running(images, small_model):
    """A function that starts an emulated board with small_model inside; the board ends with the
    test.
    """
    started = []

    def start(port: str):
        need(port)
        kind, _, board = port.partition(":")
        started.append(
            EMULATORS[kind].start(load_board(board), images(small_model, board, updates=True).elf)
        )
        return started[-1]

    yield start
    for emulator in started:
        emulator.close()


@pytest.mark.parametrize("board", full(["mps2-an386", "microbit"], "microbit"))
def test_update_then_hil_by_the_commands(
    board, running, turbofan, small_model, flights, tmp_path, monkeypatch
):
    """A board in the field, at an address: one command gives it the new model, the next one proves
    it.
    """
    monkeypatch.chdir(tmp_path)
    turbofan.save("new.stw")
    np.savez("test.npz", x=flights[0][None, :30])
    url = running(f"qemu:{board}").url
    done = json.loads(run("update", "--port", url, "new.stw", "--json"))
    assert (done["board"], done["model_id"], done["version"]) == (board, f"{turbofan.id:08x}", 1)
    assert 7000 < done["sent"] < 7500 and done["resumed_at"] == 0
    report = json.loads(run("hil", "--port", url, "new.stw", "--data", "test.npz", "--json"))
    assert report["equal"] and report["steps"] == 30 and report["model_id"] == f"{turbofan.id:08x}"
    assert report["ram_bytes"] == turbofan.info()["ram_bytes"]
    assert "version 1 already" in run("update", "--port", url, "new.stw")
    small_model.save("old.stw")
    np.savez("old.npz", x=np.zeros((1, 5, small_model.n_in)))
    with pytest.raises(LinkError, match="the board runs version 1: give --version 2 or more"):
        run("update", "--port", url, "old.stw", "--version", "1")
    refused = run("hil", "--port", url, "old.stw", "--data", "old.npz", code=1)
    assert f"board runs model {turbofan.id:08x}, test expects {small_model.id:08x}" in refused
    assert "version 7 now" in run("update", "--port", url, "old.stw", "--version", "7")


def test_the_manuals_way_without_hardware(turbofan, small_model, flights, tmp_path, monkeypatch):
    """docs/update.md, line by line, on a port that is free here."""
    need("qemu:microbit")
    monkeypatch.chdir(tmp_path)
    small_model.save("motor.stw")
    turbofan.save("motor2.stw")
    np.savez("test.npz", x=flights[0][None, :30])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    page = (
        (ROOT / "docs" / "update.md")
        .read_text()
        .split("**Without hardware**")[1]
        .replace("4444", str(port))
    )
    build_line, qemu_line, *others = [
        shlex.split(line) for line in re.findall("^    (.*)", page, re.MULTILINE)[:4]
    ]
    run(*build_line[1:])
    assert qemu_line.pop() == "&"
    with subprocess.Popen(qemu_line) as machine:
        try:
            assert wait_until(lambda: can_connect(port), 20), "QEMU does not listen"
            said = [run(*line[1:]) for line in others]
        finally:
            machine.terminate()
    assert "version 1 now" in said[0] and "equal, bit for bit" in said[1]


def can_connect(port: int) -> bool:
    """QEMU takes the next client when this one has gone."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def test_interrupted_update_goes_on(running, turbofan, flights):
    url = running("qemu:mps2-an386").url

    def pull_the_plug(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with connect(url) as link:
        before = link.info()
        with pytest.raises(KeyboardInterrupt):
            link.update(turbofan, progress=pull_the_plug)
    with connect(url) as link:
        assert link.info() == before, "the old model runs until the commit"
        assert link.update_status().received > 3000
        done = link.update(turbofan)
        assert done.resumed_at == 17 * 224 and link.update_status().slot == 0
        assert run_hil(link, turbofan, flights[:1]).ok


@pytest.mark.parametrize("board", full(["mps2-an386", "microbit"], "microbit"))
def test_new_model_runs_after_a_reset(board, images, small_model, turbofan, flights):
    """QEMU's reset button: flash, and the SSRAM that stands in for it, keeps its content, and the
    ARM code finds the slot.
    """
    need(f"qemu:{board}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        control = f"tcp:127.0.0.1:{server.getsockname()[1]}"
        emulator = qemu.start_qemu(
            load_board(board),
            images(small_model, board, updates=True).elf,
            "-qmp",
            f"{control},nodelay=on",
        )
        button, _ = server.accept()
    try:
        with connect(emulator.url) as link, button.makefile("rw") as qmp:
            link.update(turbofan)
            link.reset()
            for command in ("qmp_capabilities", "system_reset"):
                print(json.dumps({"execute": command}), file=qmp, flush=True)
            while '"RESET"' not in qmp.readline():
                pass
            with pytest.raises(LinkError, match="the board has restarted since the last reset"):
                link.step(turbofan.quantize(flights[0][:1]))
            assert link.info().model_id == turbofan.id and link.update_status().slot == 0
            assert run_hil(link, turbofan, [flights[0][:20]]).ok
    finally:
        button.close()
        emulator.close()


def test_update_over_a_bad_line(running, turbofan, flights):
    """Bytes are lost and flipped, one by one and in bursts: what arrives is the model. A core that
    takes plain rows.
    """
    proxy = LossyProxy(running("sim:mps2-an385").port, seed=5, drop=2e-4, flip=4e-4, burst=2e-4)
    try:
        with connect(f"socket://127.0.0.1:{proxy.port}") as link:
            done = link.update(turbofan)
            report = run_hil(link, turbofan, [flights[0][:40]])
            stat = link.stat()
    finally:
        proxy.close()
    assert report.ok and done.sent > 7000
    assert proxy.dropped > 0 and proxy.flipped > 0 and proxy.bursts > 0, (
        "the line was too good to prove anything"
    )
    assert done.retries > 0 and stat.damaged > 0


@pytest.mark.parametrize("board", full(["mps2-an386", "microbit", "nrf52840dk"], "mps2-an386"))
def test_updated_model_costs_what_a_built_in_one_costs(board, running, images, turbofan, flights):
    """The packing of the core is sent."""
    port = f"sim:{board}"
    need(port)
    x_q = turbofan.quantize(flights[0])
    with connect(running(port).url) as link:
        link.update(turbofan)
        link.reset()
        assert np.array_equal(link.step(x_q), turbofan.stream().run_q(x_q))
        updated = link.cost_ticks
    with connect(port, model=turbofan, image=images(turbofan, board, updates=True).elf) as link:
        link.reset()
        link.step(x_q)
        assert abs(updated - link.cost_ticks) <= 0.01 * link.cost_ticks


def test_signatures_on_a_board_of_ones_own(small_model, turbofan, tmp_path):
    """A board's folder may bring C files: what verifies signatures is one of them. The same scheme
    as on the host.
    """
    need("qemu:mps2-an386")
    own = tmp_path / "own"
    shutil.copytree(load_board("mps2-an386").folder, own)
    with (own / "board.mk").open("a") as file:
        file.write("\nMORE_SOURCES = key.c\n")
    with pytest.raises(
        BuildError, match=r"board own: MORE_SOURCES names key\.c, and there is no .*own/key\.c"
    ):
        build(small_model, str(own), tmp_path, updates=True)
    (own / "frame.c").touch()
    with (own / "board.mk").open("a") as file:
        file.write("MORE_SOURCES = frame.c\n")
    with pytest.raises(
        BuildError, match=r"2 C files are called frame\.c: .*: give yours another name"
    ):
        build(small_model, str(own), tmp_path, updates=True)
    with (own / "board.mk").open("a") as file:
        file.write("MORE_SOURCES = key.c\n")
    deep = "volatile uint8_t deep[2500]; deep[n % 2500] = 0; return (int)deep[n % 2500] + signature_bytes"
    (own / "key.c").write_text(SIGNED.replace("return signature_bytes", deep))
    image = build(small_model, str(own), tmp_path, "gcc", updates=True)
    with connect(f"qemu:{own}", image=image.elf) as link:
        with pytest.raises(LinkError, match="the board refused the signature"):
            link.update(turbofan)
        assert link.info().model_id == small_model.id
        link.update(turbofan, sign=lambda message: zlib.crc32(message, 77).to_bytes(4, "little"))
        assert link.info().model_id == turbofan.id
        assert 2500 < link.mem().stack_used <= image.program_stack < 4096


def test_what_is_wrong_before_anything_is_sent(small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_model.save("m.stw")
    for port in ("qemu:microbit", "sim:microbit"):
        words = run("update", "--port", port, "m.stw", code=2)
        assert f"--port {port} needs --image, an image from `stepwell build --updates`" in words
    for command, words in (
        ("", "names no program"),
        (" ", "names no program"),
        ("sign 'key", "No closing quotation"),
    ):
        assert words in run("update", "--port", "/dev/ttyX", "m.stw", "--sign", command, code=2)


def test_boards_that_take_no_update(images, small_model, turbofan):
    need("sim:microbit")
    with connect(
        "sim:microbit", model=small_model, image=images(small_model, "microbit").elf
    ) as link:
        assert link.info().update_bytes == 0 and link.update_status().room == 0
        with pytest.raises(
            LinkError, match="microbit: the image on this board takes no update: flash one from"
        ):
            link.update(turbofan)
    with pytest.raises(LinkError, match="this board takes no update"):
        HostLink(small_model).update(turbofan)
