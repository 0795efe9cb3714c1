"""A web server that has what the seeds publish: archives in their layouts, made of the embedded models and data."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fixtures import digits, ernie, handwriting_model, lac
from quant.datasets.columns import Ragged
from quant.datasets.formats import write_lac_bin
from quant.datasets.readers import open_data
from quant.ir.fusion import RECURRENT
from quant.ir.graph import Graph, load_dir, save_dir
from quant.ir.numerics import STATE_THRESHOLD
from quant.ir.passes import lift_quantizers, lower_quantizers
from quant.suites import embedded
from quant.suites.published.catalogue import find_artefact
from quant.suites.registry import find
from tests.http_server import Server, tarred

IMAGE_ROW = "mobilenet_v1"  # the smallest
# Artefact -> (row, which of its models, where in the archive, layout)
MODELS = {
    "mobilenetv1-qat": (IMAGE_ROW, "quant", "model", "separate"),
    "ernie-qat": ("ernie", "quant", "Ernie_qat/float", "separate"),
    "gru-quant": ("gru", "quant", "GRU_quant_acc", "separate"),
    "lstm-quant": ("lstm", "quant", "lstm_quant", "model"),
    "lstm-fp32": ("lstm", "fp32", "lstm_fp32_model", "model"),
}
SAMPLES = {"images": 150, "pairs": 100, "lac": 150, "handwriting": 300}


def files_of_model(graph: Graph, prefix: str, layout: str, scratch: Path) -> dict[str, bytes]:
    """A model as the files of an archive."""
    directory = scratch / prefix.replace("/", "-")
    directory.mkdir(parents=True)
    save_dir(graph, directory, layout)
    return {f"{prefix}/{path.name}": path.read_bytes() for path in directory.iterdir()}


def files_of_data(scratch: Path) -> dict[str, dict[str, bytes]]:
    """Artefact -> the files of its archive."""
    ernie.write_pairs_of("test", SAMPLES["pairs"], scratch / "1.8w.bs1")
    write_words(scratch / "GRU_eval_data.bin", scratch)
    handwriting_model.write_records("test", SAMPLES["handwriting"], scratch / "quant_lstm_input_data")
    return {
        "ernie-data": {
            "Ernie_dataset/1.8w.bs1": (scratch / "1.8w.bs1").read_bytes(),
            "Ernie_dataset/label.xnli.dev": (scratch / "1.8w.bs1.label").read_bytes(),
        },
        "gru-data": {"GRU_eval_data.bin": (scratch / "GRU_eval_data.bin").read_bytes()},
        "lstm-data": {"quant_lstm_input_data": (scratch / "quant_lstm_input_data").read_bytes()},
    }


def write_words(path: Path, scratch: Path) -> None:
    """LAC's test sentences as the seeds' binary of ids; their TSV and its dictionaries go to `scratch`."""
    lac.write_sentences("test", SAMPLES["lac"], scratch / "test.tsv")
    sentences = open_data(scratch / "test.tsv", {"words": ((), "int64")})
    words, tags = sentences.inputs["words"], sentences.labels
    assert isinstance(words, Ragged) and isinstance(tags, Ragged)
    write_lac_bin(path, ((words.sequence(i), tags.sequence(i)) for i in range(len(words))))


def write_images(path: Path) -> None:
    digits.write_images("test", SAMPLES["images"], path)


def published_path(name: str) -> str:
    """The path of an artefact's address."""
    return "/" + find_artefact(name).url.split("/", 3)[3]


def publish(server: Server, archives: Mapping[str, Mapping[str, bytes]]) -> None:
    for name, files in archives.items():
        server.files[published_path(name)] = tarred(files)


def archives_of_models(scratch: Path) -> dict[str, dict[str, bytes]]:
    """Artefact -> the files of its archive, of the embedded rows' trained models; LAC's as Paddle trains it."""
    made = {}
    for artefact, (row, which, prefix, layout) in MODELS.items():
        small = embedded.small_of(find(row))
        graph = load_dir(small / which)
        if artefact == "gru-quant":
            graph = with_plain_cells(graph, load_dir(small / "fp32"))
        made[artefact] = files_of_model(graph, prefix, layout, scratch)
    return made


def with_plain_cells(quant: Graph, fp32: Graph) -> Graph:
    """A fake-quantized graph with the recurrent layers of its FP32 twin: only the products before them are rounded."""
    lifted = lift_quantizers(quant)
    cells = {op.output("Hidden"): op for op in fp32.ops if op.type in RECURRENT}
    names: dict[str, str] = {}
    weights = {op.input("Weight") for op in cells.values()}
    params = {name: fp32.params[name] for name in weights if name not in lifted.params}
    ops = []
    for op in lifted.ops:
        op = op.rewired(names)
        if op.type == "fake_quant" and op.input("X") in cells:
            names[op.output("Out")] = op.input("X")
            continue
        if op.type in RECURRENT:
            plain = cells[op.output("Hidden")]
            op = replace(op, inputs={**op.inputs, "Weight": plain.inputs["Weight"]}, attrs=plain.attrs)
        if op.type == "fake_quant" and op.attr("threshold") == STATE_THRESHOLD:
            op = op.with_attrs(threshold=0.97)  # a trained one needn't be exactly the bound of the state
        ops.append(op)
    return lower_quantizers(lifted.evolve(ops, params=params))
