"""Entry point of ``pdv-gateway``; the command itself is in gateway/command.py.

It is imported only here, so that an interrupt while Python still reads it is as quiet as any other.
"""

from __future__ import annotations

import signal
import sys

from launcher.importing import interrupts_end

INTERRUPTED = "pdv-gateway: interrupted before it listened\n"


def main() -> None:
    """Runs the command, and ends the process."""
    try:
        with interrupts_end(INTERRUPTED, 0):
            from gateway.command import main as run

        code = run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to interrupt
    except KeyboardInterrupt:
        sys.stderr.write(INTERRUPTED)
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    main()
