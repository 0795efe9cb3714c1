"""Ctrl-C in tests: processes that hear it, wherever the tests run."""

import signal

__all__ = ["heard"]


def heard() -> None:
    """For `preexec_fn` of subprocess.Popen. Jobs in the background of a script ignore SIGINT, and so would their own."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
