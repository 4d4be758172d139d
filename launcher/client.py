"""Entry point of ``pdv-client``; the command itself is in launcher/client_command.py.

It is imported only here, so that an interrupt while Python still reads it is as quiet as any other.
"""

from __future__ import annotations

import signal
import sys

EXIT_INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Runs the command, and ends the process."""
    try:
        from launcher.client_command import main as run

        code = run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to interrupt
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stderr.write("pdv-client: interrupted\n")
        code = EXIT_INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
