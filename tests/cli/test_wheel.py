"""The wheel, installed away from the checkout, does what a user needs it for: nothing of it is missing."""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quant.ir.graph import save_dir
from tests.manifests import ANY_SPEED
from tests.nets import NATIVE, residual_net, run

ROOT = Path(__file__).parents[2]
Run = Callable[..., str]


def completed(*command: object, cwd: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment with the wheel, and with the packages of this one but this checkout."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"  # setuptools would leave what it makes in the checkout, and take up what lies there
    shutil.copytree(ROOT / "quant", source / "quant", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "pytest_quant.py"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    completed(*pip, "wheel", "--no-deps", "--wheel-dir", root, ".", cwd=source)
    venv.create(root / "venv", symlinks=True)
    [packages] = (root / "venv" / "lib").glob("python*/site-packages")
    # Directories that a .pth names have no say of their own: the finder of an editable install stays off.
    theirs = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "others.pth").write_text("\n".join(theirs) + "\n")
    [wheel] = root.glob("*.whl")
    completed(*pip, "--python", root / "venv" / "bin" / "python", "install", "--no-deps", wheel, cwd=root)
    return root / "venv" / "bin"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a user's: a model, calibration and test data."""
    root = tmp_path_factory.mktemp("shop")
    (root / "models" / "net").mkdir(parents=True)
    graph = residual_net()
    save_dir(graph, root / "models" / "net")
    images = np.random.default_rng(0).standard_normal((500, 8, 8, 8)).astype(np.float32)
    [scores] = run(graph, {"x": images}, root, NATIVE)
    np.savez(root / "calibration.npz", x=images[:100])
    np.savez(root / "test.npz", x=images[100:], label=scores[100:].argmax(1))
    return root


@pytest.fixture
def user(installed: Path, shop: Path) -> Run:
    """Runs a program of the environment in the user's directory."""
    inside = ("PYTEST_", "FLAGS_", "PYTHONPATH", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(inside)}
    environment = {**kept, "PATH": f"{installed}:{kept['PATH']}", "QUANT_CACHE": str(shop / "cache"), "COLUMNS": "200"}

    def go(program: str, *args: object) -> str:
        return completed(installed / program, *args, cwd=shop, environment=environment)

    return go


def test_it_is_the_wheel_that_runs(installed: Path, user: Run) -> None:
    printed = user("python", "-c", "import quant, quant.cli, pytest_quant as p; print(quant.__file__, p.__file__)")
    places = [Path(place) for place in printed.split()]
    assert len(places) == 2
    assert all(installed.parent in place.parents for place in places)


def test_a_users_model_from_fp32_to_a_gate_and_a_page(user: Run, shop: Path) -> None:
    assert "next: quant suite --manifest quant.toml" in user(
        "quant", "init", "models", "--data", "test.npz", "--calibration", "calibration.npz"
    )
    manifest = (shop / "quant.toml").read_text()
    assert manifest.count("\ndrop = 0.01 ") == 1
    limits = f"\n{ANY_SPEED.removeprefix('thresholds.')}\ndrop = 0.1 "
    (shop / "quant.toml").write_text(manifest.replace("\ndrop = 0.01 ", limits))
    data = ("--calibration", "calibration.npz")
    found = json.loads(user("quant", "quantize", "models/net", *data, "--output", "made", "--json"))
    assert found["int8"]["conv2d"] > 0 and (shop / "made" / "int8").is_dir()
    told = user("quant", "suite", "--manifest", "quant.toml")
    assert "net" in told
    told = user("python", "-m", "pytest", "-p", "no:cacheprovider", "--manifest", "quant.toml", "-q")
    assert " passed" in told
    user("quant", "report", "--output", "page.html")
    page = (shop / "page.html").read_text()
    assert "<style>" in page
