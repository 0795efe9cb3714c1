"""What one of Paddle's errors says, in one line: it prints the reason, a hint, a place in its source and the op."""

import re

__all__ = ["reason"]

_KIND = re.compile(r"(\w+Error: )?\(\w+\) ")  # "(InvalidArgument) ..." with the newer log, "...Error: (...)" with both
_OLD_KIND = re.compile(r"\w+Error: ")
_OP = re.compile(r"\[operator < (\w+) > error\]")
_AROUND = re.compile(
    r"\[operator < |\[Hint: |-{5,}|Error Message Summary|C\+\+ Traceback|Python Call Stacks|\d+ +[\w:~<]|\(at /|"
    r"No stack trace in paddle|In user code:"
)
_MOST = 300


def reason(error: BaseException) -> str:
    """The line that says what is wrong, and the op's type where Paddle tells it and the line doesn't; at most 300.

    The line with the kind of error, else the last that is neither hint nor place nor frame, else the hint itself.
    """
    text = str(error).replace("\x1b", "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    plain = [line for line in lines if not _AROUND.match(line)]
    told = [line for line in plain if _KIND.match(line)] or [line for line in plain if _OLD_KIND.match(line)]
    hints = [line for line in lines if line.startswith("[Hint: ")]
    line = (told or plain or hints or lines or [type(error).__name__])[-1]
    found = _OP.search(text)
    op = f"; op {found[1]!r}" if found and found[1] not in line else ""
    return line[: _MOST - len(op)] + op
