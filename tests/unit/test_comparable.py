"""What of models is compared whose outputs have as many rows as values ask for."""

from dataclasses import replace

import pytest

from quant.errors import ModelError, OptionError
from quant.ir.comparable import comparable, sized_by_values
from quant.ir.graph import Graph, Op, Var
from tests.detectors import CELLS, CLASSES, detector
from tests.nets import residual_net


def chain(*ops: Op, fetches: tuple[str, ...], bools: tuple[str, ...] = ()) -> Graph:
    names = {name for op in ops for name in (*op.reads, *op.writes)}
    return Graph(
        ops, {name: Var((-1, 4), "bool" if name in bools else "float32") for name in names}, {}, ("x",), fetches
    )


def test_a_model_of_fixed_shapes_is_compared_as_it_is() -> None:
    graph = residual_net()
    assert comparable(graph) is graph
    assert sized_by_values(graph) == frozenset()


def test_boxes_and_scores_stand_for_what_nms_keeps() -> None:
    graph = detector()
    cut = comparable(graph)
    nms = graph.ops[-1]
    assert cut.fetches == (nms.input("BBoxes"), nms.input("Scores"))
    assert [cut.vars[name].shape for name in cut.fetches] == [(-1, CELLS, 4), (-1, CLASSES, CELLS)]
    assert "multiclass_nms3" not in cut.op_counts() and cut.feeds == graph.feeds
    assert comparable(cut) is cut


def test_outputs_of_fixed_shapes_stay() -> None:
    """One behind the scores, which isn't sized by values; and in the place that it had."""
    graph = detector(scores_too=True)
    assert comparable(graph).fetches[2:] == graph.fetches[3:]
    turned = replace(graph, fetches=tuple(reversed(graph.fetches)))
    assert comparable(turned).fetches[0] == graph.fetches[-1]


def test_what_reads_rows_has_rows() -> None:
    """A second stage on the proposals of a first: its outputs are decided by what the proposals are made of."""
    graph = chain(
        Op.make("conv2d", {"Input": "x"}, {"Output": "deltas"}),
        Op.make("sigmoid", {"X": "deltas"}, {"Out": "objectness"}),
        Op.make("generate_proposals_v2", {"Scores": "objectness", "BboxDeltas": "deltas"}, {"RpnRois": "rois"}),
        Op.make("roi_align", {"X": "deltas", "ROIs": "rois"}, {"Out": "pooled"}),
        Op.make("softmax", {"X": "pooled"}, {"Out": "classes"}),
        Op.make("multiclass_nms3", {"BBoxes": "rois", "Scores": "classes"}, {"Out": "found"}),
        fetches=("found",),
    )
    assert comparable(graph).fetches == ("deltas", "objectness")
    assert sized_by_values(graph) == {"rois", "pooled", "classes", "found"}


def test_a_mask_is_decided_by_what_was_compared() -> None:
    graph = chain(
        Op.make("relu", {"X": "x"}, {"Out": "scores"}),
        Op.make("greater_than", {"X": "scores", "Y": "scores"}, {"Out": "mask"}),
        Op.make("where_index", {"Condition": "mask"}, {"Out": "places"}),
        Op.make("gather_nd", {"X": "scores", "Index": "places"}, {"Out": "kept"}),
        fetches=("kept", "places"),
        bools=("mask",),
    )
    assert comparable(graph).fetches == ("scores",)


def test_outputs_that_somebody_chose() -> None:
    graph = detector()
    nms = graph.ops[-1]
    cut = comparable(graph, [nms.input("Scores"), "nms.Out"])
    assert cut.fetches == (nms.input("Scores"), "nms.Out") and "multiclass_nms3" in cut.op_counts()
    with pytest.raises(OptionError, match=r"unknown output of some/model 'nms\.Ou'.*nms\.Out"):
        comparable(graph, ["nms.Ou"], "some/model")


def test_rows_that_no_tensor_decides() -> None:
    graph = chain(Op.make("where_index", {"Condition": "x"}, {"Out": "places"}), fetches=("places",))
    with pytest.raises(ModelError, match="m: no float tensor decides its outputs places"):
        comparable(graph, (), "m")
