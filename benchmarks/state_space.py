"""State-space students of a gated S4D that focuses radar columns: each claim measured, three seeds.

    python benchmarks/state_space.py [--only PART ...] [--seeds 0 1 2] [--out FOLDER] [--write]
    python benchmarks/state_space.py --table [--write]

Columns are drawn here; nothing is downloaded. Results go to results.json in the out folder, run by run, and what is
there is not run again. --write puts the table into docs/sequences.md. state_space_runs.py has the runs,
state_space_table.py the bars. About half an hour on a free core.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import ledger
import state_space_table
import torch
import transformers
from state_space_runs import LABELLED, ROOT, STUDENTS, Bench, answers, image, points

from llm_finetuner.benchmark.focusers import simple_models
from llm_finetuner.data import sar, sar_files, signals
from llm_finetuner.data.sar_processors import PROCESSORS
from llm_finetuner.recipe import Recipe

GUIDE = (0.3, 0.5, 0.2)  # alpha, beta, gamma


def processors(bench: Bench) -> None:
    """What learns nothing, as comparisons have it. Of single points, which have no noise, nothing is blanked."""
    radar, columns = sar_files.read_columns(bench.columns(), "test")
    for name, model in simple_models(signals.read(bench.columns(), 0).part("train")):
        figures = image(answers(model, columns.inputs), columns)
        if name in PROCESSORS:
            figures |= points(radar, lambda x, ranges: sar.focus(radar, x[..., 0], ranges))
        bench.keep(name, figures)


def teacher(bench: Bench) -> None:
    """The teacher, and the same without gates for the same steps."""
    _once(bench, "teacher", lambda: bench.trained(bench.recipe("teacher", "teacher", 0)))
    _once(bench, "without gates", lambda: bench.trained(bench.recipe("ungated", "standard", 0, "teacher")))


def students(bench: Bench) -> None:
    """Each size alone, and from the teacher's weights with its answers and states matched."""
    _each(
        bench,
        {
            "alone": lambda plain: plain,
            "from the teacher": lambda plain: bench.taught(plain, GUIDE, "teacher"),
        },
    )


def guide(bench: Bench) -> None:
    """Each size by the guide's loss from the seed."""
    _each(bench, {"guide's loss": lambda plain: bench.taught(plain, GUIDE, "seed")})


def few(bench: Bench) -> None:
    """Tiny students of 32 columns with truth: alone, and with as many others as ever that the teacher answers."""
    labelled = {"source": str(bench.columns(LABELLED))}
    for seed in bench.seeds:
        mixed = bench.recipe(f"few_{seed}", "tiny", seed, data=labelled)
        alone = bench.recipe(f"few_alone_{seed}", "tiny", seed, data={**labelled, "samples": LABELLED})
        arms = {"alone": alone, "taught": bench.taught(mixed, (0.3, 0.7, 0.0), "seed")}
        for arm, recipe in arms.items():
            _once(bench, f"few, {arm}, {seed}", lambda recipe=recipe: bench.trained(recipe))


PARTS: dict[str, Callable[[Bench], None]] = {
    "processors": processors, "teacher": teacher, "students": students, "few": few, "guide": guide,
}  # fmt: skip


def _each(bench: Bench, arms: dict[str, Callable[[Recipe], Recipe]]) -> None:
    for size in reversed(STUDENTS):
        for seed in bench.seeds:
            plain = bench.recipe(f"{size}_{seed}", size, seed)
            for arm, made in arms.items():
                recipe = made(plain)
                _once(bench, f"{size}, {arm}, {seed}", lambda recipe=recipe: bench.trained(recipe))


def _once(bench: Bench, name: str, run: Callable[[], dict]) -> None:
    if name not in bench.results():
        figures = run()
        bench.keep(name, figures)
        print(f"{name}: {figures['nmse_db']:.2f} dB, {figures['cpu_seconds']:.0f} CPU-s", flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, default=ROOT / "outputs" / "state_space")
    made.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--table", action="store_true", help="only print the table of what is there")
    made.add_argument("--write", action="store_true", help="put the table into docs/sequences.md")
    return made


def main() -> None:
    args = parser().parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)  # CPU seconds are those of one core
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.out, tuple(args.seeds))
    for name in () if args.table else args.only:
        PARTS[name](bench)
    text = state_space_table.table(bench)
    if args.write:
        ledger.put(ROOT / "docs" / "sequences.md", state_space_table.MARK, text)
    print(text)


if __name__ == "__main__":
    main()
