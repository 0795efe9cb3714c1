"""`quant init`: a first manifest."""

import os
from pathlib import Path
from typing import Annotated

import typer

from quant.cli.shared import app, bar, err, out
from quant.errors import ModelError, OptionError, OutputError
from quant.process import isolate
from quant.quantization import targets
from quant.storage.files import writable_dir, write_text
from quant.suites.manifest import schema
from quant.suites.manifest.draft import drafts_of, manifest_text

__all__ = ["init"]


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="A model directory, or one that holds several.")],
    output: Annotated[Path, typer.Option(help="The manifest to write; one that exists is left alone.")] = Path(
        "quant.toml"
    ),
    data: Annotated[Path | None, typer.Option(help="Test data with labels, if you have it.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Calibration data, if you have it.")] = None,
) -> None:
    """Look at models, and write a commented manifest for them: inputs, ops, what will be INT8, and keys to fill in."""
    if os.path.lexists(output):
        raise OutputError(f"{output}: exists already; nothing was written")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: can't be written (No such directory)")
    writable_dir(output.parent)
    for option, path in (("--data", data), ("--calibration", calibration)):
        if path is not None and not path.exists():
            raise OptionError(f"{option}: {path}: no such file")
    arguments = {"directory": str(directory), "weight_levels": targets.weight_levels(None)}
    with bar() as tell:
        found = isolate.call("quant.suites.manifest.inspection:survey", arguments, progress=tell)
    unusable = [model["error"] for model in found if "error" in model]
    if len(unusable) == len(found):
        raise ModelError(unusable[0])
    drafts = drafts_of(found, directory)
    write_text(output, manifest_text(drafts, found, output, data, calibration))
    for line in unusable:
        err.print(f"warning: {line}")
    names = ", ".join(draft.name for draft in drafts)
    out.print(f"{output}: {len(drafts)} {'model' if len(drafts) == 1 else 'models'}: {names}", soft_wrap=True)
    try:
        schema.read(output)
    except OptionError as error:
        out.print(f"to be filled in: {error}", soft_wrap=True)
    else:
        out.print(f"next: quant suite --manifest {output}", soft_wrap=True)
