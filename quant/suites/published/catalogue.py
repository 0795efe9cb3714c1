"""What the seeds publish: archives to download (ARTEFACTS), and the models in them with the figures printed (ROWS).

The seeds are five public documents about INT8 for Paddle on x86. Addresses are theirs to the letter, or those of the
demo pages that they link to for GRU and LSTM. They tell neither sizes nor checksums. Paddle's own test build does, for
most of these addresses: the MD5 in `URL_HASH` of test/quantization/CMakeLists.txt (commit 01fbd77c319d), for GRU of
python/paddle/fluid/contrib/slim/tests/CMakeLists.txt (commit b475411748a7), which has the same object of the same
storage under its other host name. None: no such line. It names an LSTM model too, but one at another address.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from quant.errors import check_choice

__all__ = ["ARTEFACTS", "ROWS", "Artefact", "Scores", "Source", "Timing", "ZooRow", "find_artefact", "row_of"]


@dataclass(frozen=True)
class Artefact:
    """One published archive.

    `holds`: what must be there after unpacking, relative to the artefact's own directory. `source`: the document that
    gives the address. `md5`: of the archive, in hex, where Paddle's own test build demands one of this address.
    """

    name: str
    url: str
    holds: tuple[str, ...]
    source: str
    md5: str | None = None


_SLIM = "seed 'SLIM Quantization-aware training (QAT) on INT8 MKL-DNN'"
_ERNIE = "seed 'ERNIE QAT INT8' (PaddlePaddle/benchmark)"
_X86 = "seed 'X86 CPU deployment of quantized models' (PaddleSlim)"
_GRU = "Paddle-Inference-Demo, c++/x86_gru_int8 (linked by the PaddleSlim seed)"
_LSTM = "Paddle-Inference-Demo, python/x86_lstm_demo (linked by the PaddleSlim seed)"

_DIST = "http://paddle-inference-dist.bj.bcebos.com"
_DIST_TLS = "https://paddle-inference-dist.bj.bcebos.com"
_CDN = "https://paddle-inference-dist.cdn.bcebos.com"


def _image(model: str, md5: str) -> Artefact:
    """A fake-quantized image model; the seed unpacks it into a directory of its name, where it is `model`."""
    url = f"{_DIST}/int8/QAT_models/{model}_qat_model.tar.gz"
    return Artefact(f"{model.lower()}-qat", url, ("model",), _SLIM, md5)


ARTEFACTS: tuple[Artefact, ...] = (
    _image("ResNet50", "ff89b934ab961c3a4a844193ece2e8a7"),
    _image("ResNet101", "95c6d01e3aeba31c13efb2ba8057d558"),
    _image("GoogleNet", "1d4a7383baa63e7d1c423e8db2b791d5"),
    _image("MobileNetV1", "3b774d94a9fcbb604d09bdb731fc1162"),
    _image("MobileNetV2", "758a99d9225d8b73e1a8765883f96cdd"),
    _image("VGG16", "c37e63ca82a102f47be266f8068b0b55"),
    _image("VGG19", "62bcd4b6c3ca2af67e8251d1c96ea18f"),
    Artefact(
        "ernie-qat",
        f"{_DIST}/int8/QAT_models/ernie_qat.tar.gz",
        ("Ernie_qat/float",),
        _ERNIE,
        "f7cdf4720755ecf66efbc8044e9922d9",
    ),
    Artefact(
        "ernie-data",
        f"{_DIST}/int8/Ernie_dataset.tar.gz",
        ("Ernie_dataset/1.8w.bs1", "Ernie_dataset/label.xnli.dev"),
        _ERNIE,
        "e650ce0cbc1fadbed5cc2c01d4e734dc",
    ),
    Artefact(
        "resnet50-vd-act",
        "https://paddle-slim-models.bj.bcebos.com/act/ResNet50_vd_QAT.tar",
        (
            "ResNet50_vd_QAT/inference.pdmodel",
            "ResNet50_vd_QAT/inference.pdiparams",
            "ResNet50_vd_QAT/calibration_table.txt",
        ),
        _X86,
    ),
    Artefact(
        "gru-quant",
        f"{_CDN}/int8/QAT_models/GRU_quant_acc.tar.gz",
        ("GRU_quant_acc",),
        _GRU,
        "cf207f8076dcfb8b74d8b6bdddf9090c",
    ),
    # The page doesn't tell what is in it; Paddle's own tests read GRU_eval_data.bin from where they unpacked it.
    Artefact("gru-data", f"{_CDN}/gru/GRU_eval_data.tar.gz", ("GRU_eval_data.bin",), _GRU),
    Artefact(
        "lstm-fp32",
        f"{_DIST_TLS}/lstm/lstm_fp32_model.tar.gz",
        ("lstm_fp32_model",),
        _LSTM,
        "eecd9f44d69a84acc1cf2235c4b8b743",
    ),
    Artefact("lstm-quant", f"{_DIST_TLS}/lstm/lstm_quant.tar.gz", ("lstm_quant",), _LSTM),
    Artefact(
        "lstm-data",
        f"{_DIST_TLS}/int8/unittest_model_data/quant_lstm_input_data.tar.gz",
        ("quant_lstm_input_data",),
        _LSTM,
        "add84c754e9b792fea1fbd728d134ab7",
    ),
)


def find_artefact(name: str) -> Artefact:
    """The row of that name. Raises OptionError with the nearest name."""
    check_choice("artefact", name, (artefact.name for artefact in ARTEFACTS))
    return next(artefact for artefact in ARTEFACTS if artefact.name == name)


# --- the models in them, and what the seeds print of each

Before = Literal["fp32", "quant"]
_Pair = tuple[float, float]


@dataclass(frozen=True)
class Source:
    """Where labelled data may lie in a zoo directory.

    In an artefact, where what it holds first is the data and second its labels, or else in `file`; `how` tells how
    that file is made.
    """

    format: str
    artefact: str = ""
    file: str = ""
    how: str = ""


@dataclass(frozen=True)
class Scores:
    """What a document prints of one metric of a row, in percent: FP32 or fake-quantized (`before`), and INT8."""

    document: str
    metric: str
    before: Before
    score: float
    int8: float


@dataclass(frozen=True)
class Timing:
    """What a document prints of a row's speed on a Xeon Gold 6271. `ratio` is how many times faster INT8 is.

    `fp32` and `int8` are in `unit`: "ms" a batch, or samples a second under the document's name for that. Timed here
    are so many `samples` of the data, 0: generated input.
    """

    document: str
    fp32: float
    int8: float
    unit: str
    ratio: float
    batch: int = 1
    repeat: int = 1
    threads: int = 1
    samples: int = 0


@dataclass(frozen=True, eq=False)
class ZooRow:
    """A published model as a case: what is measured, on which data, and against which figures.

    `name` is the registry's row, `model` the artefact whose first directory is the fake-quantized model, `fp32` that
    of its FP32 one, where that is published too. `data`: the first that is there is taken. `max_drop`: metric -> the
    loss that the seed's command accepts, `against` FP32 or the simulation; the first is the row's own. `also`: metrics
    that are shown.

    `look`: how many samples are measured unless all are asked for; None: all. With fewer than `decides`, the size of
    the seed's own data, a drop fails by its interval; from there on by its estimate, as in the seed's command.
    """

    name: str
    model: str
    data: tuple[Source, ...]
    max_drop: Mapping[str, float]
    scores: tuple[Scores, ...]
    timings: tuple[Timing, ...]
    against: Before = "quant"
    fp32: str = ""
    also: tuple[str, ...] = ()
    look: int | None = None
    decides: int = 0
    min_int8_share: float = 0.98

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*self.max_drop, *self.also)


_X86_DOC, _SLIM_DOC, _ERNIE_DOC = "X86 CPU deployment", "SLIM QAT on INT8", "ERNIE QAT INT8"
_NLP_DOC = "QAT of NLP models"
# From what share of the multiply-accumulates on INT8 kernels "did the work" in text rows: the seeds' own commands leave
# ERNIE's attention products (3% to 7%) and LAC's last layer (3%) in float32.
_TEXT_SHARE = 0.9

IMAGE_DATA = Source(
    "images",
    file="int8_full_val.bin",
    how="`quant preprocess --data-dir imagenet_user --output-file {path}`, "
    "or Paddle's full_ILSVRC2012_val_preprocess.py",
)


def _both(document: str, before: Before, top1: _Pair, top5: _Pair) -> tuple[Scores, ...]:
    return Scores(document, "top1", before, *top1), Scores(document, "top5", before, *top5)


def _images(
    name: str,
    model: str,
    quant: tuple[_Pair, _Pair],
    fp32: tuple[_Pair, _Pair] | None = None,
    speed: tuple[float, float, float] | None = None,
) -> ZooRow:
    """An image row: (before, INT8) of top-1 and top-5 in two documents, and images a second: FP32, INT8, ratio."""
    scores = _both(_SLIM_DOC, "quant", *quant) + (_both(_X86_DOC, "fp32", *fp32) if fp32 else ())
    return ZooRow(
        name,
        model,
        (IMAGE_DATA,),
        {"top1": 0.001},  # --acc_diff_threshold=0.001, over 1,000 batches of 50
        scores,
        (Timing(_X86_DOC, speed[0], speed[1], "images/s", speed[2]),) if speed else (),
        also=("top5",),
        look=2000,
        decides=50_000,
    )


# Limits: qat_int8_comparison.py and qat_int8_nlp_comparison.py compare INT8 with the fake-quantized model, since the
# seeds' commands give them no other; quant2_int8_lstm_model.py compares both scores with those of the FP32 model.
ROWS: tuple[ZooRow, ...] = (
    _images(
        "resnet50", "resnet50-qat",
        ((76.62, 76.61), (93.08, 93.09)), ((76.63, 76.50), (93.10, 92.98)), (13.23, 50.02, 3.78),
    ),
    _images(
        "resnet101", "resnet101-qat",
        ((77.49, 77.51), (93.65, 93.67)), ((77.50, 77.60), (93.58, 93.55)), (7.20, 26.48, 3.68),
    ),
    _images(
        "mobilenet_v1", "mobilenetv1-qat",
        ((70.83, 70.84), (89.56, 89.56)), ((70.78, 70.74), (89.69, 89.43)), (74.05, 216.36, 2.92),
    ),
    _images(
        "mobilenet_v2", "mobilenetv2-qat",
        ((72.17, 72.13), (90.67, 90.67)), ((71.90, 72.21), (90.56, 90.62)), (88.60, 205.84, 2.32),
    ),
    _images(
        "vgg16", "vgg16-qat",
        ((72.71, 72.69), (91.11, 91.09)), ((72.08, 71.74), (90.63, 89.71)), (3.47, 10.67, 3.07),
    ),
    _images(
        "vgg19", "vgg19-qat",
        ((73.37, 73.37), (91.40, 91.41)), ((72.57, 72.12), (90.84, 90.15)), (2.83, 9.09, 3.21),
    ),
    _images("googlenet", "googlenet-qat", ((70.40, 70.39), (89.46, 89.46))),
    ZooRow(
        "ernie",
        "ernie-qat",
        (Source("pairs", "ernie-data"),),
        {"top1": 0.01},
        (
            Scores(_X86_DOC, "top1", "fp32", 80.20, 79.44),
            Scores(_NLP_DOC, "top1", "fp32", 80.20, 79.96),
            Scores(_ERNIE_DOC, "top1", "fp32", 80.0, 82.0),
        ),
        (
            Timing(_X86_DOC, 237.21, 79.26, "ms", 2.99, samples=20),
            Timing(_X86_DOC, 22.08, 12.57, "ms", 1.76, threads=20, samples=20),
            Timing(_NLP_DOC, 252.13, 93.80, "ms", 2.69, samples=20),
            Timing(_NLP_DOC, 29.19, 17.38, "ms", 1.68, threads=20, samples=20),
            Timing(_ERNIE_DOC, 318.85, 95.70, "ms", 3.33, samples=20),
            Timing(_ERNIE_DOC, 109.60, 22.56, "ms", 4.85, threads=20, samples=20),
        ),
        min_int8_share=_TEXT_SHARE,
    ),
    ZooRow(
        "gru",
        "gru-quant",
        (
            Source("lac_bin", "gru-data"),
            Source("lac", file="lac/test.tsv", how="LAC's own test.tsv, with its word.dic, tag.dic and q2b.dic"),
        ),
        {"f1": 0.01},
        (Scores(_X86_DOC, "f1", "fp32", 89.326, 89.323),),
        (
            Timing(_X86_DOC, 1108, 1393, "QPS", 1.26, samples=60),
            Timing(_X86_DOC, 2175, 3199, "QPS", 1.47, batch=50, samples=300),
            Timing(_X86_DOC, 2165, 3334, "QPS", 1.54, batch=50, repeat=10, samples=100),
        ),
        min_int8_share=_TEXT_SHARE,
    ),
    ZooRow(
        "lstm",
        "lstm-quant",
        (Source("handwriting", "lstm-data"),),
        {"hx": 0.01, "ctc": 0.01},
        (Scores(_X86_DOC, "hx", "fp32", 93.3, 92.5), Scores(_X86_DOC, "ctc", "fp32", 99.9, 100.0)),
        (
            Timing(_X86_DOC, 4895.65, 7190.55, "QPS", 1.47, samples=60),
            Timing(_X86_DOC, 6370.86, 7942.51, "QPS", 1.25, threads=4, samples=60),
        ),
        against="fp32",
        fp32="lstm-fp32",
        min_int8_share=_TEXT_SHARE,
    ),
)  # fmt: skip


def row_of(name: str) -> ZooRow:
    """The published model of a row of the registry."""
    return next(row for row in ROWS if row.name == name)
