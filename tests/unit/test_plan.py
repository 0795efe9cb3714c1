"""The rules R1 to R6 of quant.quantization.plan.Storage, one by one, and the union-find that they are written into."""

from collections.abc import Callable

import numpy as np
import pytest

from fixtures.programs import Program
from quant.ir.graph import Graph, Var
from quant.ir.numerics import SIGNED, STATE_THRESHOLD, UNSIGNED
from quant.quantization.plan import Plan, ScaleGroups, plan_of, roundable
from tests.nets import Net


def planned(graph: Graph) -> Plan:
    return plan_of(graph, roundable(graph, (), (), SIGNED))


def levels(graph: Graph, name: str) -> int:
    plan = planned(graph)
    return plan.levels[plan.group[name]]


def test_joined_sets_have_one_name_however_they_were_joined() -> None:
    groups = ScaleGroups()
    for first, other in (("a", "b"), ("c", "d"), ("b", "d"), ("d", "a")):
        groups.join(first, other)
    assert len({groups.of(name) for name in "abcd"}) == 1
    assert groups.of("e") == "e"


def test_r1_what_only_carries_values_shares_their_scale() -> None:
    net = Net()
    stem = net.act(net.bias(net.conv("x", 8)))
    other = net.act(net.bias(net.conv("x", 8)))
    joined = net.concat(net.pool(stem), net.pool(other))
    plan = planned(net.graph(net.conv(joined, 4), net.conv(stem, 4)))
    assert plan.group[joined] == plan.group[stem] != plan.group["x"]


def test_r1_an_average_is_rounded_on_a_scale_of_its_own() -> None:
    net = Net()
    stem = net.act(net.bias(net.conv("x", 8)))
    mean = net.pool(stem, "avg")
    plan = planned(net.graph(net.conv(mean, 4), net.conv(stem, 4)))
    assert plan.group[mean] != plan.group[stem]


def recurrent(joined: bool) -> tuple[Graph, str, str]:
    """A GRU's output, alone or beside the layer's input, in front of a product."""
    program = Program({"x": Var((-1, 4), lod_level=1)})
    random = np.random.default_rng(0)

    def param(name: str, *shape: int) -> str:
        return program.param(name, random.standard_normal(shape).astype(np.float32))

    gates = program.linear("x", param("wx", 4, 12), param("bx", 12))
    state = program.recurrent("gru", gates, param("wh", 4, 12), param("bh", 1, 12), False)
    read = program.concat(["x", state]) if joined else state
    out = program.linear(read, param("wo", 8 if joined else 4, 3), param("bo", 3))
    return program.graph([out]), state, read


@pytest.mark.parametrize("joined", [False, True])
def test_r2_a_state_keeps_its_grid_and_what_joins_it_has_another(joined: bool) -> None:
    graph, state, read = recurrent(joined)
    plan = planned(graph)
    assert plan.known[plan.group[state]] == STATE_THRESHOLD
    assert (plan.group[read] == plan.group[state]) is not joined
    assert plan.levels[plan.group[state]] == plan.levels[plan.group["x"]] == SIGNED  # R6


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda net: net.act(net.bias(net.conv("x", 8))), UNSIGNED),
        (lambda net: net.act(net.bias(net.conv("x", 8)), "relu6"), UNSIGNED),
        (lambda net: net.bias(net.conv("x", 8)), SIGNED),
        (lambda net: net.act(net.bias(net.conv("x", 8)), "swish"), SIGNED),
        (lambda net: net.act("x"), UNSIGNED),  # by no kernel, but by its op
        (lambda net: net.act("x", "sigmoid"), UNSIGNED),
        (lambda net: net.act(net.bias(net.conv("x", 8)), "sigmoid"), SIGNED),  # fused: its kernel stores int8
        (lambda net: net.pool(net.act("x"), "avg"), UNSIGNED),
        (lambda net: net.concat(net.act("x"), net.pool(net.act("x", "sigmoid"))), UNSIGNED),
        (lambda net: net.concat(net.act("x"), net.bias(net.conv("x", 8))), SIGNED),
    ],
)
def test_r3_what_cant_be_negative_has_all_levels(write: Callable[[Net], str], expected: int) -> None:
    net = Net()
    read = write(net)
    assert levels(net.graph(net.conv(read, 4)), read) == expected


def residual(shortcut: str, behind: str) -> tuple[Graph, str, str]:
    """A convolution's sum with a ReLU's output or a convolution's, and what follows."""
    net = Net()
    stem = net.act(net.bias(net.conv("x", 8)))
    other = stem if shortcut == "unsigned" else net.bias(net.conv("x", 8))
    total = net.add(net.bias(net.conv(stem, 8)), other)
    if behind:
        total = net.act(total, behind)
    return net.graph(net.conv(total, 4)), other, total


@pytest.mark.parametrize(
    ("shortcut", "behind", "rounded", "expected"),
    [
        ("unsigned", "relu", True, UNSIGNED),
        ("signed", "relu", True, SIGNED),  # R5: half of uint8's range is lost
        ("signed", "", True, SIGNED),
        ("unsigned", "", False, SIGNED),  # a sum that may be negative doesn't fit its residual's uint8
        ("unsigned", "swish", False, SIGNED),
    ],
)
def test_r4_and_r5_a_residual_is_rounded_where_its_kernel_adds_integers(
    shortcut: str, behind: str, rounded: bool, expected: int
) -> None:
    graph, other, total = residual(shortcut, behind)
    plan = planned(graph)
    assert [chain.residual for chain in plan.residual] == ([other] if rounded else [])
    assert plan.levels[plan.group[total]] == expected


def test_r6_both_factors_of_a_product_are_signed() -> None:
    net = Net()
    factors = [net.act(net.bias(net.conv("x", 8))) for _ in range(2)]
    product = net.op("matmul_v2", {"X": factors[0], "Y": factors[1]}, trans_x=False, trans_y=True)
    plan = planned(net.graph(product))
    assert {plan.levels[plan.group[name]] for name in factors} == {SIGNED}


@pytest.mark.parametrize("beside", ["rows", "input"])
def test_a_threshold_known_from_a_table_holds_for_all_that_shares_it(beside: str) -> None:
    """Rows of two tables are joined: the larger table's peak. Rows are joined with what data must tell: not known."""
    random = np.random.default_rng(0)
    program = Program({"i": Var((-1, 1), "int64", 1), "x": Var((-1, 4), lod_level=1)})

    def param(name: str, *shape: int, scale: float = 1.0) -> str:
        return program.param(name, (scale * random.standard_normal(shape)).astype(np.float32))

    def rows(table: str) -> str:
        inputs = {"W": param(table, 6, 4, scale=9.0 if table == "large" else 1.0), "Ids": "i"}
        return program.op("lookup_table", inputs, {"Out": Var((-1, 4), lod_level=1)}, padding_idx=-1)

    read = [rows("small")]
    read.append(program.concat([read[0], rows("large") if beside == "rows" else "x"]))
    outs = []
    for name in read:
        width = program.vars[name].shape[1]
        gates = program.linear(name, param(f"wx{width}", width, 12), param(f"bx{width}", 12))
        outs.append(program.recurrent("gru", gates, param(f"wh{width}", 4, 12), param(f"bh{width}", 1, 12), False))
    joined = program.concat(outs)
    graph = program.graph([program.linear(joined, param("wo", 8, 3), param("bo", 3))])
    plan = planned(graph)
    known = plan.known.get(plan.group[read[0]])
    assert plan.group[read[0]] == plan.group[read[1]]
    assert known == (float(np.abs(program.params["large"]).max()) if beside == "rows" else None)
