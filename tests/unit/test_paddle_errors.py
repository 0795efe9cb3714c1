"""The one line of Paddle's errors that says what is wrong."""

from pathlib import Path

import pytest

from quant.errors import ModelError
from quant.ir.graph import save_dir
from quant.ir.paddle_errors import reason
from quant.runtime.predictor import Predictor
from tests.nets import Net

_BROADCAST = "(InvalidArgument) Broadcast dimension mismatch. Received [16] in X is not equal to [8] in Y at i:1."
_HINT = "  [Hint: Expected x_dims_array[i] == y_dims_array[i], but received 0 != 1.] (at /paddle/common_shape.h:72)"
_OP = "  [operator < fused_elementwise_add > error]"
_RULE = "-" * 30


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{_BROADCAST}\n{_HINT}\n{_OP}", f"{_BROADCAST}; op 'fused_elementwise_add'"),
        (f"could not create a descriptor\n{_OP}", "could not create a descriptor; op 'fused_elementwise_add'"),
        ("could not create a descriptor", "could not create a descriptor"),
        (f"{_HINT}\n{_OP}", f"{_HINT.strip()}; op 'fused_elementwise_add'"),
        (
            f"\n\n{_RULE}\nC++ Traceback (most recent call last):\n{_RULE}\n0   paddle::Run()\n\n{_RULE}\n"
            f"Error Message Summary:\n{_RULE}\nInvalidArgumentError: the axis is 1\n{_HINT}\n{_OP}\n",
            "InvalidArgumentError: the axis is 1; op 'fused_elementwise_add'",
        ),
        ("(NotFound) Operator (nosuch) is not registered.\n  [Hint: x should not be null.] (at /op_info.h:151)\n",
         "(NotFound) Operator (nosuch) is not registered."),
        ("(InvalidArgument) of Op(conv2d).\n  [operator < conv2d > error]", "(InvalidArgument) of Op(conv2d)."),
        (_OP, _OP.strip()),
        ("", "RuntimeError"),
    ],
)  # fmt: skip
def test_the_line_that_matters(text: str, told: str) -> None:
    assert reason(RuntimeError(text)) == told


def test_a_line_is_not_endless_and_keeps_the_op() -> None:
    found = reason(RuntimeError(f"(InvalidArgument) {'x' * 1000}\n{_OP}"))
    assert len(found) == 300 and found.endswith("; op 'fused_elementwise_add'")


def test_what_a_user_reads_of_a_model_that_paddle_refuses(tmp_path: Path) -> None:
    net = Net()
    out = net.op("elementwise_add", {"X": net.act("x"), "Y": net.param(5)}, axis=1)
    save_dir(net.graph(out), tmp_path)
    with Predictor(tmp_path) as predictor, pytest.raises(ModelError) as caught:
        predictor(net.batches(1)[0])
    assert "Broadcast dimension mismatch" in str(caught.value) and "\n" not in str(caught.value)
