"""Entry point of ``pdv-top``; the command itself is in launcher/top_command.py.

It is imported only here, so that an interrupt while Python still reads it is as quiet as any other.
"""

from __future__ import annotations

import signal
import sys

from launcher.importing import interrupts_end


def main() -> None:
    """Runs the command, and ends the process. An interrupt is how one leaves it."""
    try:
        with interrupts_end("", 0):
            from launcher.top_command import main as run

        code = run()
    except KeyboardInterrupt:
        code = 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to interrupt
    sys.exit(code)


if __name__ == "__main__":
    main()
