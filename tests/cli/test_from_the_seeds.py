"""Every command of docs/from-the-seeds.md, run as it stands there, in the order of the document."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fixtures import ernie, handwriting_model, lac
from quant.datasets.columns import Ragged
from quant.datasets.formats import write_lac_bin
from quant.datasets.readers import open_data
from quant.ir.graph import load_dir, save_dir
from quant.ir.passes import lift_quantizers
from quant.quantization.calibration_table import write_table
from quant.suites import embedded
from quant.suites.published.catalogue import find_artefact
from quant.suites.registry import find
from tests.document_place import write_images, write_model
from tests.documents import SHELL, blocks
from tests.http_server import Server, serving, tarred

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "from-the-seeds.md"


def packed(files: dict[str, Path], name: str) -> bytes:
    """An archive of files and directories: path in it -> where that lies."""
    content: dict[str, bytes] = {}
    for inside, path in files.items():
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            content[f"{inside}/{file.name}" if path.is_dir() else inside] = file.read_bytes()
    return tarred(content, "w:gz" if name.endswith("gz") else "w:")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, work: Path) -> Iterator[Server]:
    """The published archives of small models, at their published paths."""
    made = tmp_path_factory.mktemp("published")
    for name in ("ernie", "gru", "lstm"):
        (made / name).mkdir()
        save_dir(
            load_dir(embedded.small_of(find(name)) / "quant"), made / name, "separate" if name == "gru" else "model"
        )
    (made / "resnet50").mkdir()
    quantised = load_dir(work / "simulated_before")
    save_dir(quantised, made / "resnet50", "separate")
    table = {op.input("X"): op.attr("threshold") for op in lift_quantizers(quantised).ops if op.type == "fake_quant"}
    write_table(made / "calibration_table.txt", table)
    ernie.write_pairs_of("test", 40, made / "1.8w.bs1")
    handwriting_model.write_records("test", 30, made / "records")
    lac.write_sentences("test", 20, made / "sentences.tsv")
    signature = {"words": ((1,), "int64")}
    sentences = open_data(made / "sentences.tsv", signature, "lac")
    words, tags = sentences.inputs["words"], sentences.labels
    assert isinstance(words, Ragged) and isinstance(tags, Ragged)
    write_lac_bin(made / "lac.bin", [(words.sequence(at), tags.sequence(at)) for at in range(len(words))])
    labels = next(path for path in made.iterdir() if "label" in path.name)
    contents = {
        "ernie-qat": {"Ernie_qat/float": made / "ernie"},
        "ernie-data": {"Ernie_dataset/1.8w.bs1": made / "1.8w.bs1", "Ernie_dataset/label.xnli.dev": labels},
        "resnet50-qat": {"model": made / "resnet50"},
        "resnet50-vd-act": {
            **{f"ResNet50_vd_QAT/{file.name}": file for file in (work / "simulated_before").iterdir()},
            "ResNet50_vd_QAT/calibration_table.txt": made / "calibration_table.txt",
        },
        "gru-quant": {"GRU_quant_acc": made / "gru"},
        "gru-data": {"GRU_eval_data.bin": made / "lac.bin"},
        "lstm-quant": {"lstm_quant": made / "lstm"},
        "lstm-data": {"quant_lstm_input_data": made / "records"},
    }
    with serving() as running:
        for name, files in contents.items():
            url = find_artefact(name).url
            running.files["/" + url.split("/", 3)[3]] = packed(files, url)
        yield running


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run, with what a reader of the documents brings: images, an FP32 model, a configuration."""
    work = tmp_path_factory.mktemp("work")
    names = write_images(work / "imagenet_user")
    write_model(work / "fp32_model", 224, work / "exported")
    (work / "config.json").write_text(
        json.dumps({"weight_quantize_type": "channel_wise_abs_max", "quantize_op_types": ["conv2d", "mul", "pool2d"]})
    )
    run(["preprocess", "--data-dir", "imagenet_user", "--output-file", "before.bin"], work)
    # The suite doesn't take a model that is far from its published accuracy for that model: images are what it says.
    run(["eval", "--model", "fp32_model", "--data", "before.bin", "--save-outputs", "answers.npz"], work)
    with np.load(work / "answers.npz") as stored:
        answers = stored[stored.files[0]].argmax(1)
    labelled = [f"{name} {answer}\n" for name, answer in zip(names, answers, strict=True)]
    (work / "imagenet_user" / "val_list.txt").write_text("".join(labelled))
    run(["ptq", "--model", "fp32_model", "--data", "before.bin", "--output", "simulated_before"], work)
    return work


def run(arguments: list[str], directory: Path, *codes: int) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "quant", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode in (0, *codes), f"quant {shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(900)
def test_every_command_of_the_document_runs(server: Server, work: Path) -> None:
    commands = [shlex.split(line) for block in blocks(DOCUMENT) if block.language in SHELL for line in block.lines()]
    assert len(commands) > 25
    for name, *arguments in commands:
        assert name == "quant"
        mirrored = ["--mirror", server.url] if arguments[0] == "fetch" else []
        # A network of three layers is no faster in INT8, and the suite says so with exit code 1.
        told = run([*arguments, *mirrored], work, *([1] if arguments[0] == "suite" else []))
        assert "Published models: accuracy" in told if arguments[0] == "suite" else told
    assert {"vd_int8", "ernie_int8", "gru_int8", "lstm_int8", "trained_int8", "resnet50_int8"} <= {
        path.name for path in work.iterdir()
    }


def test_each_document_is_there_with_its_commands() -> None:
    """A script or option of a seed that the document doesn't mention would be one that nobody thought of."""
    text = DOCUMENT.read_text()
    for word in (
        *("save_qat_model.py", "save_quant_model.py", "qat_int8_comparison.py", "qat_int8_nlp_comparison.py", "run.sh"),
        *("infer_resnet.py", "full_ILSVRC2012_val_preprocess.py", "train.py", "eval.py", "export_model.py", "infer.py"),
        *("--ops_to_quantize", "--op_ids_to_skip", "--debug", "--calibration_file", "--label_list", "--data_dim"),
        *("--acc_diff_threshold", "--batch_num", "--optimize_fp32_model", "--with_accuracy_layer", "not_quant_pattern"),
        *(
            "quant_aware",
            "lscpu",
            "_qat_model.tar.gz",
            "ernie_qat.tar.gz",
            "Ernie_dataset.tar.gz",
            "ResNet50_vd_QAT.tar",
        ),
    ):
        assert word in text, word
