"""The flags of every sub-command. Those of finetune and distill are made from the settings; none has a default here."""

import argparse

from llm_finetuner.cli import simulating
from llm_finetuner.cli.settings import Setting, by_flag, settings
from llm_finetuner.layer_maps import POOLED_NAME
from llm_finetuner.recipe_series import FORECASTING, OF_NUMBERS
from llm_finetuner.registry import EXPORTERS, MENU

LISTS = (
    "methods", "tunings", "objectives", "layers", "teachers", "models", "tasks", "exporters", "optimizers",
    "schedules", "runs",
)  # fmt: skip
NOT_READ = (
    "data.hard_share",
    "data.mask",
    "data.class_weights",
    "teacher.from_scratch",
)  # by what only asks a teacher
OF_TRAINING = ("data.series.quantiles", "data.series.description")  # a model has them already
MODES = ("top_k", "sampled", "fp16", "fp32")  # of a cache

SECTIONS = {  # of the recipe, and what help calls them
    "task": "what the model is for",
    "student": "student",
    "teacher": "teacher",
    "options": "method: what is learned, and how",
    "tuning": "which weights move",
    "data": "data",
    "data.series": "series of numbers over time, with --task forecasting (and --split)",
    "train": "training",
    "output": "output",
}


def add_settings(child: argparse.ArgumentParser, distil: bool) -> None:
    """One flag a setting; `args` has those that were given, under their flag."""
    child.usage = f"%(prog)s --student MODEL {'--teacher MODEL ' if distil else ''}--data SOURCE [flags]"
    entries = [f"{n} {e[0]}" for n, e in MENU.items() if (e[1] != "fine_tuning") == distil]
    child.add_argument("--method", help=f"name or menu number: {', '.join(entries)} (default: the first)")
    groups = {name: child.add_argument_group(title) for name, title in SECTIONS.items()}
    for same in by_flag(settings(distil)).values():
        section = "data.series" if same[0].owner == FORECASTING else same[0].path.split(".")[0]
        add_setting(groups[section], same)
    add_set(child)
    add_running(child)
    if distil:
        told = "a recipe.yaml to begin with; key=value and flags replace what it says"
        child.add_argument("--config", metavar="FILE", help=told)
        add_comparing(child)


def add_setting(child: argparse._ActionsContainer, same: list[Setting]) -> None:
    """The flag of one setting, or of the settings of several methods that share it."""
    setting = same[0]
    told = f"{setting.help}{spell_defaults(same)}".replace("%", "%%")
    flag = setting.flag
    if bool in setting.kinds:
        child.add_argument(flag, dest=flag, action=argparse.BooleanOptionalAction, help=told)
    elif any(s.is_list for s in same):
        child.add_argument(flag, dest=flag, nargs="+", metavar="X", help=told)
    else:
        shown = "|".join(setting.choices) or {int: "N", float: "X"}.get(setting.kinds[0], "TEXT")
        child.add_argument(flag, dest=flag, metavar=shown, help=told)


def add_set(child: argparse.ArgumentParser) -> None:
    child.add_argument(
        "--set", action="append", metavar="key=value", help="any other setting, such as train.seed=7"
    )


def spell_defaults(same: list[Setting]) -> str:
    """ " (default: 0.5; feature_distillation 0.3)", from the signatures."""
    first = same[0]
    if first.default in (None, "", [], {}) or first.default is False:
        return f" (default: {first.nothing})" if first.optional else ""
    others = [f"{s.owner} {s.spell(s.default)}" for s in same[1:] if s.default not in (first.default, None)]
    return f" (default: {'; '.join([first.spell(first.default), *others])})"


def add_running(child: argparse.ArgumentParser) -> None:
    """How a run is carried out."""
    child.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    child.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")


def add_comparing(child: argparse.ArgumentParser) -> None:
    """The comparison after a distillation."""
    child.add_argument("--no-compare", action="store_true", help="leave the comparison out")
    add_baseline(child)


def add_baseline(child: argparse.ArgumentParser) -> None:
    child.add_argument(
        "--baseline", action="store_true",
        help="also train the student on the data alone, for the same steps and for the same compute",
    )  # fmt: skip
    told = "compare so many pairs of students with and without the teacher, each of its own seed (default: 1)"
    child.add_argument("--seeds", type=int, metavar="N", help=told)


def _finetune(child: argparse.ArgumentParser) -> None:
    add_settings(child, distil=False)


def _distill(child: argparse.ArgumentParser) -> None:
    add_settings(child, distil=True)


def _run(child: argparse.ArgumentParser) -> None:
    child.add_argument("recipe", help="a recipe.yaml; one with stages is a chain")
    told = "settings that replace the file's; of a chain's first stage stages.0.train.steps=10"
    child.add_argument("assignments", nargs="*", metavar="key=value", help=told)
    add_running(child)
    add_comparing(child)


def _cache(child: argparse.ArgumentParser) -> None:
    child.usage = "%(prog)s --student MODEL --teacher MODEL --data SOURCE --to FOLDER [flags]"
    _add_named(child, ("student.", "teacher.", "data."), ("task", "train.batch_size", "train.seed"))
    child.add_argument("--to", metavar="FOLDER", help="where the cache goes; what it holds already is kept")
    child.add_argument("--k", type=int, metavar="N", help="most probable tokens a position (default: 50)")
    child.add_argument("--mode", choices=MODES, help="what is kept of an answer (default: top_k)")
    child.add_argument(
        "--draws", type=int, metavar="N", help="with --mode sampled: tokens drawn (default: 50)"
    )
    child.add_argument(
        "--keep-layers",
        type=lambda word: word if word == POOLED_NAME else int(word),
        nargs="+",
        metavar="N",
        help=f"teacher blocks whose hidden states are kept too; {POOLED_NAME}: what a label is read off",
    )
    add_set(child)


def _generate(child: argparse.ArgumentParser) -> None:
    child.usage = "%(prog)s --teacher MODEL --data SOURCE --to FILE [flags]"
    written = tuple(f"options.{name}" for name in ("max_new_tokens", "sampling_temperature", "samples"))
    _add_named(child, ("teacher.", "data."), ("train.seed", *written))
    child.add_argument("--to", metavar="FILE", help="a .jsonl file of prompts and completions")
    child.add_argument("--overwrite", action="store_true", help="begin anew where a teacher wrote that file")
    add_set(child)


def _add_named(child: argparse.ArgumentParser, sections: tuple[str, ...], more: tuple[str, ...]) -> None:
    """The flags of `distill` that are of these sections, and of one live teacher, and these more.

    Where there is no flag for the task it is writing text.
    """
    other = ("on_policy_distillation", *(() if "task" in more else (FORECASTING,)))
    for same in by_flag(settings(distil=True)).values():
        path = same[0].path
        if path.startswith("teacher.options.") or path in ("teacher.kind", "teacher.shuffled", *NOT_READ):
            continue
        kept = [s for s in same if s.owner not in other and (s.path.startswith(sections) or s.path in more)]
        if kept:
            add_setting(child, kept)


def _sweep(child: argparse.ArgumentParser) -> None:
    child.add_argument("recipe", help="a recipe.yaml, which is tried as it is, too")
    child.add_argument("assignments", nargs="*", metavar="key=a,b,c", help="values to try, or low:high[:log]")
    child.add_argument(
        "--search", choices=("grid", "optuna"), help="every combination, or proposals (default: grid)"
    )
    child.add_argument("--trials", type=int, metavar="N", help="so many, beside the recipe as it is")
    child.add_argument("--minutes", type=float, metavar="X", help="no trial starts after them")
    child.add_argument(
        "--seeds", type=int, metavar="N", help="runs of each trial; the mean chooses (default: 1)"
    )
    child.add_argument(
        "--output", metavar="FOLDER", help="where the trials go (default: the recipe's output)"
    )
    add_set(child)


def _compare(child: argparse.ArgumentParser) -> None:
    child.add_argument("run", help="folder of a run")
    child.add_argument("--prompts", metavar="FILE", help="complete these: one prompt a line, or .jsonl")
    add_baseline(child)


def _benchmark(child: argparse.ArgumentParser) -> None:
    child.add_argument("model", help="folder of a run, or a model")
    child.add_argument("--prompts", metavar="FILE", required=True, help="one prompt a line, or .jsonl")
    child.add_argument("--references", metavar="FILE", help="the wanted completions, in the same order")
    told = "of T5 and its kin: what stands before every prompt (default: what stood there in training)"
    child.add_argument("--prefix", metavar="TEXT", help=told)


def _evaluate(child: argparse.ArgumentParser) -> None:
    _add_forecaster(child)
    _add_levels(child, "also how well intervals of so many percent, such as 80 90, hold what came")


def _forecast(child: argparse.ArgumentParser) -> None:
    _add_forecaster(child)
    _add_levels(child, "also intervals of so many percent, such as 80 90: columns ending in -lo-80, -hi-80")
    child.add_argument("--output", metavar="FILE", help="a .csv file (default: the table is printed)")
    child.add_argument("--overwrite", action="store_true", help="replace that file")


def _add_forecaster(child: argparse.ArgumentParser) -> None:
    """The flags of a forecaster, and of how its table is read and cut."""
    told = "folder of a run, or repeat-last, seasonal-naive or linear, which is fitted first"
    child.add_argument("--model", required=True, metavar="MODEL", help=told)
    told = "a .csv, .tsv or .parquet file of numbers over time (default: the run's own)"
    child.add_argument("--data", dest="--data", metavar="FILE", help=told)
    child.add_argument("--task", dest="--task", choices=OF_NUMBERS, help="of a run it is known")
    for setting in settings(distil=False):
        if setting.owner == FORECASTING and setting.path not in OF_TRAINING:
            add_setting(child, [setting])


def _add_levels(child: argparse.ArgumentParser, told: str) -> None:
    child.add_argument("--level", nargs="+", metavar="X", help=told)


def _export(child: argparse.ArgumentParser) -> None:
    child.add_argument("model", help="folder of a run, or a model")
    child.add_argument("--to", choices=tuple(EXPORTERS), required=True, help="the format")
    usual = "RUN/FORMAT, or outputs/MODEL-FORMAT of what is no run"
    child.add_argument("--output", metavar="FOLDER", help=f"a new folder (default: {usual})")


def _resume(child: argparse.ArgumentParser) -> None:
    child.add_argument("run", help="folder of a run or a chain")
    add_comparing(child)


def _quickstart(child: argparse.ArgumentParser) -> None:
    child.add_argument("--steps", type=int, metavar="N", help="optimizer steps of each of the runs")
    child.add_argument("--seed", type=int, metavar="N", help="another seed, another run")
    child.add_argument("--fresh-teacher", action="store_true", help="train the teacher first (hours)")
    child.add_argument("--hub", action="store_true", help="gpt2-medium into gpt2 on wikitext-2, from the hub")
    child.add_argument("--output", metavar="FOLDER", help="where the runs go")


def _preview(child: argparse.ArgumentParser) -> None:
    named = ("task", "student.name")
    wanted = [s for s in settings(distil=False) if s.path.startswith("data.") or s.path in named]
    for same in by_flag(wanted).values():
        add_setting(child, same)
    told = "with --task classification: show the soft labels that this model gives a few rows, at T = 1, 2, 5, 10"
    child.add_argument("--teacher", dest="--teacher", metavar="TEXT", help=told)


def _doctor(child: argparse.ArgumentParser) -> None:
    child.add_argument("--online", action="store_true", help="also try to reach the hub")


def _list(child: argparse.ArgumentParser) -> None:
    child.add_argument(
        "what", nargs="?", default=None, choices=LISTS, help="one table; without it all but the runs"
    )
    child.add_argument("--folder", metavar="FOLDER", help="where to look for runs (default: outputs)")


COMMANDS = {
    "finetune": (_finetune, "train a model on data: LoRA, QLoRA, AdaLoRA or all weights"),
    "distill": (_distill, "train a small model to do what a big one does, and say whether it paid"),
    "run": (_run, "run a recipe file, or a chain of stages, with settings changed by key=value"),
    "resume": (_resume, "go on from the newest checkpoint of a run, or with a chain"),
    "cache": (_cache, "write a teacher's answers down, so that training needs no teacher in memory"),
    "generate": (_generate, "let a teacher write a data set: completions of the prompts of another"),
    "sweep": (_sweep, "search for better settings of a recipe, and rank them with their uncertainty"),
    "compare": (_compare, "teacher, untouched student and distilled student: report.html and a verdict"),
    "benchmark": (_benchmark, "score a model's completions of prompts"),
    "evaluate": (_evaluate, "judge a forecaster by the test windows of a table, or a model of sequences"),
    "forecast": (_forecast, "the next steps of series beyond the end of a table, with intervals"),
    "export": (_export, "write a run's model, or any other, as ONNX or as one plain folder"),
    "quickstart": (_quickstart, "distil the shipped teacher on the standard library's own text"),
    "preview": (_preview, "show how rows of data are read and which tokens are learned"),
    "simulate": (simulating.add_flags, "draw columns of a synthetic-aperture radar and their focused truth"),
    "doctor": (_doctor, "check this machine: versions, device, disk, folders"),
    "list": (_list, "list what can be chosen, or the runs"),
}
