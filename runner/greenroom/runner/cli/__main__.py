"""Where `greenroom` begins, and `python -m greenroom.runner.cli`, which clients start a daemon by."""

import gc
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run a command and exit. A Ctrl-C while the modules are imported ends it without a traceback."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else the caller wants it ignored, as `nohup` does
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What is imported stays: the search for garbage would only look through it, again and again. It begins
    # with the command.
    gc.disable()
    from greenroom.runner.cli.main import main as run

    signal.signal(signal.SIGINT, handler)
    run()


if __name__ == "__main__":
    main()
