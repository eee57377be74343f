"""One link to every board: serial port, network, QEMU, the built-in simulator, or the engine in
this process.

with connect("sim:microbit", model=model) as link:
    link.reset()
    y_q = link.step(model.quantize(x))
"""

from stepwell.link.board import Bench, Info, Link, Memory, Stat, Unit, UpdateStatus
from stepwell.link.host import HostLink
from stepwell.link.urls import connect

__all__ = ["Bench", "HostLink", "Info", "Link", "Memory", "Stat", "Unit", "UpdateStatus", "connect"]
