"""`python -m bench.peers`: our INT8 beside other engines'; out/peers.md and out/peers.json.

Exit code 0: everything was measured, whether or not a goal was reached; 1: a row couldn't be measured; 2: bad usage.
"""

from pathlib import Path
from typing import Annotated

import typer

from bench.peers import results
from bench.peers.compare import compare
from bench.peers.contenders import CONTENDERS
from quant import cpu
from quant.cli.shared import err, out
from quant.errors import OptionError, QuantError
from quant.reports.tables import rich_table
from quant.results.record import Machine
from quant.storage.files import writable_dir
from quant.suites import registry

_VNNI = "avx512_core_vnni"


def main(
    model: Annotated[list[str] | None, typer.Option("--model", help="Only these rows (repeatable).")] = None,
    isa: Annotated[str | None, typer.Option(help="Cap the engines that can be capped to one ISA.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every engine.")] = 1,
    budget: Annotated[float, typer.Option(min=0.1, help="Seconds of timing a row, of all ISAs.")] = 14.0,
    output_dir: Annotated[Path, typer.Option(help="Where peers.md and peers.json go.")] = Path("out"),
) -> None:
    """Speed and accuracy of every row: ours, Paddle as it comes, OpenVINO and ONNX Runtime."""
    try:
        complete = _run(model, isa, threads, budget, output_dir)
    except QuantError as error:
        err.print(f"peers: {' '.join(str(error).split())}")
        raise typer.Exit(2) from error
    raise typer.Exit(0 if complete else 1)


def _run(model: list[str] | None, isa: str | None, threads: int, budget: float, output_dir: Path) -> bool:
    specs = [registry.find(name) for name in model] if model else list(registry.MODELS)
    if threads > cpu.cores():
        raise OptionError(f"--threads {threads}: this machine has {cpu.cores()} cores")
    cpu.isa_environment(isa)
    writable_dir(output_dir)
    machine = Machine.here()
    runs = []
    caps = _caps(isa)
    for cap in caps:
        each_s = budget / len(caps)
        rows = compare(specs, CONTENDERS, isa=cap, threads=threads, budget_s=each_s, tell=lambda line: err.print(line))
        runs.append(rows)
        (output_dir / "peers.md").write_text(results.markdown(machine, runs), encoding="utf-8")
        (output_dir / "peers.json").write_text(results.to_json(machine, runs), encoding="utf-8")
        for table in results.tables(rows):
            out.print(rich_table(table))
    return all(map(results.complete, runs))


def _caps(isa: str | None) -> list[str | None]:
    """This CPU as it is; one with AMX stands for the VNNI tier too."""
    return [isa] if isa or cpu.detect().name != "amx" else [None, _VNNI]


if __name__ == "__main__":
    typer.run(main)
