"""What stepwell says before it believes a model: one test for each fault of the front door, on small inputs.

The cases of the design folder run too, where that folder lies beside the repository.
"""

from __future__ import annotations

from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


# ---- W1: windows: the source's window is known, and the gap of carrying on is told ----



# ---- W2: scale: a leading affine is the scaler, channels get a scale of their own ----



# ---- W3: fidelity: noise is never silent ----



# ---- W4: padding='same': exact in windows, refused in carry ----



# ---- W5: check: source, float stream and integer side by side ----



# ---- W6: columns are matched by name ----



# ---- W7: csv headers of numbers ----



# ---- W8: banners and noise before a live stream ----



# ---- W9: held outputs ----



# ---- W10: hard_sigmoid by the version of Keras ----



# ---- W11: raw data into a model of scaled data ----



# ---- W12: several outputs ----



# ---- W13: hidden weights that keep few codes ----



# ---- W14: short calibration sequences ----



# ---- W15: concatenations of relu layers at 8 bits ----



# ---- W16: info's ranges by channel ----



# ---- the cases of the design folder ----


@pytest.mark.skipif(not CASES.is_dir(), reason="not part of the repository: the cases beside it")
def test_case_serial_newline_translation(tmp_path, monkeypatch):
    """INFO is answered and STEP is not: the bytes that the line changes are named, and text that arrives is shown."""
    import numpy as np
    import stepwell
    from click.testing import CliRunner
    from hil.conftest import need
    from hil.test_line import Relay, dropping, replacing
    from stepwell.boards import load_board
    from stepwell.build import build
    from stepwell.cli.commands import cli
    from stepwell.link import Link, qemu

    need("qemu:microbit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Link.__init__.__kwdefaults__, "patience", 1.0)
    x = np.random.default_rng(0).normal(size=(1, 160, 3)).astype(np.float32)
    np.savez("x.npz", x=x)
    model = stepwell.convert(CASES / "serial_newline_translation" / "m3.onnx", list(x))
    model.save("m3.stw")
    board = qemu.start_qemu(load_board("microbit"), build(model, "microbit", tmp_path).elf)
    relay = Relay(board.port)
    speaking = Relay(["sh", "-c", r'while :; do printf "temp=23.1 hum=40\r\n"; sleep 0.05; done'])

    def hil(url: str) -> str:
        done = CliRunner().invoke(cli, ["hil", "--port", url, "m3.stw", "--data", "x.npz"])
        assert done.exit_code == (0 if "equal" in done.output else 1), done.output
        assert "powered" not in done.output
        return done.output

    try:
        assert "outputs     equal, bit for bit" in hil(relay.url)
        relay.down = replacing(b"\n", b"\r\n")
        assert "byte 0x0a does not pass from the board (found by ECHO)" in hil(relay.url)
        relay.down = bytes
        relay.up = replacing(b"\r", b"\n")
        assert "byte 0x0d does not pass to the board (found by ECHO)" in hil(relay.url)
        relay.up = relay.down = dropping(b"\x11\x13")
        text = hil(relay.url)
        assert "the board answers INFO but not " in text
        assert "bytes 0x11, 0x13 do not pass to the board (found by ECHO): software flow control" in text
        assert r"but readable text: 'temp=23.1 hum=40\r\ntemp" in hil(speaking.url)
    finally:
        relay.close()
        speaking.close()
        board.close()
