"""Ctrl-C in tests: processes that hear it, wherever the tests run."""

import signal

__all__ = ["heard"]


def heard() -> None:
    """For `preexec_fn` of Popen: a script's jobs in the background ignore SIGINT, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
