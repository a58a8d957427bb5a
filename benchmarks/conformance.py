"""Which rules of a sound distillation loss do our objectives and teachers keep, and TRL's losses? One table.

    python benchmarks/conformance.py [--write] [--objectives NAME ...] [--no-teachers] [--no-peers]

Prints the page; --write puts it into docs/conformance.md. TRL is probed where it is installed:
python -m pip install -e ".[dev,benchmark]". About three minutes on one core.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import conformance_objectives
import conformance_page
import conformance_teachers
import conformance_trl
import datasets
import transformers
from conformance_paths import ROOT
from conformance_step import Bench

PAGE = ROOT / "docs" / "conformance.md"


def run(bench: Bench, names: list[str], teachers: bool, peers: bool) -> str:
    began = time.perf_counter(), time.process_time()
    found: conformance_page.Table = {}
    for name in names:
        print(f"objective {name}", flush=True)
        found[name] = conformance_objectives.probe(bench, name)
    told: conformance_page.Table = {}
    for kind in conformance_teachers.KINDS if teachers else ():
        print(f"teacher {kind.name}", flush=True)
        told[kind.name] = conformance_teachers.probe(bench, kind)
    others, why = None, f"TRL is not installed here, so it was not probed: `{conformance_trl.INSTALL}`"
    if peers and conformance_trl.version():
        print(f"TRL {conformance_trl.version()}", flush=True)
        others = conformance_trl.probe(bench)
    elif peers:
        print(why)
    return conformance_page.page(
        found, told, others, why, (time.perf_counter() - began[0], time.process_time() - began[1])
    )


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    asked.add_argument(
        "--objectives",
        nargs="*",
        default=conformance_objectives.PROBED,
        choices=conformance_objectives.PROBED,
        metavar="NAME",
    )
    asked.add_argument("--no-teachers", action="store_true")
    asked.add_argument("--no-peers", action="store_true")
    asked = asked.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        text = run(Bench(Path(folder)), asked.objectives, not asked.no_teachers, not asked.no_peers)
    if asked.write:
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PAGE}")
    else:
        print(text)


if __name__ == "__main__":
    main()
