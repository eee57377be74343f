"""Emulators must not outlive whoever started them, however that ends.

The parent holds a pipe to the child's stdin; when it closes, or the parent dies, the child reads
end of file and goes. QEMU does not watch its stdin: it runs under ``python -m stepwell.link.leash
PROGRAM ARGUMENTS...``, which does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable


def exit_with_parent(before: Callable[[], object] = lambda: None) -> None:
    """End this process, after calling ``before``, as soon as stdin closes."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        before()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: child.kill())
    exit_with_parent(child.kill)
    sys.exit(child.wait())
