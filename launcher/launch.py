"""Entry point of ``pdv-launch``; the command itself is in launcher/launch_command.py.

It is imported only here, so that an interrupt while Python still reads it is as quiet as any other.
"""

from __future__ import annotations

import signal
import sys

from launcher.importing import interrupts_end

INTERRUPTED = "pdv-launch: interrupted before any process was started\n"


def main() -> None:
    """Runs the command, and ends the process."""
    try:
        with interrupts_end(INTERRUPTED, 0):
            from launcher.launch_command import main as run

        code = run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to interrupt
    except KeyboardInterrupt:
        sys.stderr.write(INTERRUPTED)
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    main()
