"""The command ``stepwell``. Exit codes: 0 done, 1 refused or failed (the reason is on stderr), 2
wrong use, 130 interrupted.
"""

from __future__ import annotations

import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main() -> None:
    """Entry point. What is slow to import is imported inside, where Ctrl-C is a message and no
    traceback.
    """
    try:
        from stepwell.cli.commands import run
        from stepwell.text import escape_output

        escape_output()
        code = run()
    except KeyboardInterrupt:
        exec(
            ""
            # an interrupt inside an exec, which every dataclass has, would kill the process by SIGINT
            # even so
        )
        sys.stderr.write("stepwell: interrupted\n")
        code = INTERRUPTED
    sys.exit(code)
