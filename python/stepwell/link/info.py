"""What a board says about itself, checked field by field before anything is believed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from stepwell.errors import LinkError
from stepwell.link import messages
from stepwell.link.update import MOST_VERSION

MOST_NAME = 64  # characters of a board's name
MOST_MEMORY = 2**30  # bytes of RAM or flash that a board may claim

RANGES = {
    "mtu": (messages.MTU, messages.MTU),
    "y_frac": (0, 31),
    "tick_hz": (1, 2**32 - 1),
    "cpu_hz": (1, 2**32 - 1),
    "ram_bytes": (1, MOST_MEMORY),
    "snapshot_bytes": (1, messages.MOST_SNAPSHOT),
    "update_bytes": (0, MOST_MEMORY),
    "version": (0, MOST_VERSION),
}


@dataclass(frozen=True)
class Info:
    """What a board says about itself. ``tick_hz``: its cost counter; ``ram_bytes``: of one stream;
    ``update_bytes``: of the largest update, 0 when it takes none; ``version``: of the running
    model, 0 for the image's own.
    """

    board: str
    protocol: int
    mtu: int
    n_in: int
    n_out: int
    y_frac: int
    tick_hz: int
    cpu_hz: int
    engine_version: int
    model_id: int
    ram_bytes: int
    snapshot_bytes: int
    update_bytes: int
    version: int


def read_info(payload: bytes, url: str) -> Info:
    """The answer to INFO. LinkError that names the field: of another protocol, cut short, too long,
    or out of its range.
    """
    if not payload or payload[0] != messages.PROTOCOL:
        raise LinkError(f"{url}: {_other_protocol(payload, url)}")
    if len(payload) <= messages.INFO_REPLY.size:
        what = "cut short" if len(payload) < messages.INFO_REPLY.size else "without a board name"
        raise LinkError(
            f"{url}: the board's INFO is {what} ({len(payload)} bytes): build and flash again"
        )
    protocol, mtu, n_in, n_out, y_frac, status, *rest = messages.INFO_REPLY.unpack_from(payload)
    if status:
        raise LinkError(f"{url}: the board cannot run its model: {status_words(status)}")
    if not (1 <= n_in <= messages.MOST_IN and 1 <= n_out <= messages.MOST_OUT):
        most = f"n_in: at most {messages.MOST_IN}, n_out: at most {messages.MOST_OUT}, of each at least 1"
        raise _nonsense(url, f"a model with {n_in} inputs, {n_out} outputs ({most})")
    info = Info(_name(payload, url), protocol, mtu, n_in, n_out, y_frac, *rest)
    for name, (least, most) in RANGES.items():
        value = getattr(info, name)
        if not least <= value <= most:
            raise _nonsense(
                url, f"{name} is {value}, not {f'{least} .. ' if least < most else ''}{most}"
            )
    return info


def _nonsense(url: str, what: str) -> LinkError:
    return LinkError(f"{url}: the board's INFO makes no sense: {what}: build and flash again")


def _name(payload: bytes, url: str) -> str:
    """The board's name. LinkError for one that cannot be shown as it is, or is longer than names
    are.
    """
    raw = payload[messages.INFO_REPLY.size :]
    name = raw.decode("utf-8", "replace")
    if "\ufffd" in name or not name.isprintable():
        problem = "holds bytes that are no text"
    elif len(name) > MOST_NAME:
        problem = f"has {len(name)} characters, at most {MOST_NAME}"
    else:
        return name
    raise _nonsense(url, f"the board name {problem} ({ascii(raw[:40])[1:]})")


def _other_protocol(payload: bytes, url: str) -> str:
    """What to do about a board whose firmware is of another age than this stepwell."""
    spoken = payload[0] if payload else "unknown"
    text = f"the board speaks protocol {spoken}, this stepwell {messages.PROTOCOL}: build and flash again"
    if payload and payload[0] > messages.PROTOCOL:
        return f"{text}, or install the stepwell that its firmware was built with"
    board = "BOARD"
    if payload[:1] == b"\x02":  # its INFO was laid out as it is today
        with suppress(LinkError):
            board = _name(payload, url) or board
    return (
        f"{text}: `stepwell build --board {board} MODEL.stw`, then `stepwell flash --board {board}`"
    )


def status_words(status: int) -> str:
    """A stw_status in words."""
    from stepwell.engine import status_text

    return f"{status_text(status)} (stw_status {status})"
