"""What the seeds publish for download, one row an archive: its address, what must be in it, and who says so.

The seeds are five public documents about INT8 for Paddle on x86. Addresses are theirs to the letter, or those of the
demo pages that they link to for GRU and LSTM. They tell neither sizes nor checksums. Paddle's own test build does, for
most of these addresses: the MD5 in `URL_HASH` of test/quantization/CMakeLists.txt (commit 01fbd77c319d), for GRU of
python/paddle/fluid/contrib/slim/tests/CMakeLists.txt (commit b475411748a7), which has the same object of the same
storage under its other host name. None: no such line. It names an LSTM model too, but one at another address.
"""

from dataclasses import dataclass

from quant.errors import check_choice

__all__ = ["ARTEFACTS", "Artefact", "find_artefact"]


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
