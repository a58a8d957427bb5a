"""The flags of every sub-command. Those of finetune and distill are made from the settings; none has a default here."""

import argparse

from llm_finetuner.cli.settings import Setting, settings
from llm_finetuner.registry import MENU

LISTS = ("methods", "tunings", "objectives", "teachers", "tasks", "optimizers", "schedules", "runs")


SECTIONS = {  # of the recipe, and what help calls them
    "student": "student",
    "teacher": "teacher",
    "options": "distillation",
    "tuning": "which weights move",
    "data": "data",
    "train": "training",
    "output": "output",
}


def add_settings(child: argparse.ArgumentParser, distil: bool) -> None:
    """One flag a setting; `args` has those that were given, under their path."""
    child.usage = f"%(prog)s --student MODEL {'--teacher MODEL ' if distil else ''}--data SOURCE [flags]"
    entries = [f"{n} {e[0]}" for n, e in MENU.items() if (e[1] != "fine_tuning") == distil]
    child.add_argument("--method", help=f"name or menu number: {', '.join(entries)} (default: the first)")
    defaults: dict[str, list[Setting]] = {}
    for setting in settings(distil):
        defaults.setdefault(setting.path, []).append(setting)
    groups = {name: child.add_argument_group(title) for name, title in SECTIONS.items()}
    for path, same in defaults.items():
        add_setting(groups[path.split(".")[0]], same[0], spell_defaults(same))
    child.add_argument(
        "--set", action="append", metavar="key=value", help="any other setting, such as train.seed=7"
    )
    add_running(child)
    if distil:
        add_comparing(child)


def add_setting(child: argparse._ActionsContainer, setting: Setting, default: str) -> None:
    """The flag of one setting."""
    told = f"{setting.help}{default}".replace("%", "%%")
    if bool in setting.kinds:
        child.add_argument(setting.flag, dest=setting.path, action=argparse.BooleanOptionalAction, help=told)
    elif setting.is_list:
        child.add_argument(setting.flag, dest=setting.path, nargs="+", metavar="X", help=told)
    else:
        shown = "|".join(setting.choices) or {int: "N", float: "X"}.get(setting.kinds[0], "TEXT")
        child.add_argument(setting.flag, dest=setting.path, metavar=shown, help=told)


def spell_defaults(same: list[Setting]) -> str:
    """ " (default: 0.5; feature_distillation 0.3)", from the signatures."""
    first = same[0]
    if first.default in (None, "", []) or first.default is False:
        return f" (default: {first.nothing})" if first.optional else ""
    others = [f"{s.owner} {s.spell(s.default)}" for s in same[1:] if s.default != first.default]
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


def _finetune(child: argparse.ArgumentParser) -> None:
    add_settings(child, distil=False)


def _distill(child: argparse.ArgumentParser) -> None:
    add_settings(child, distil=True)


def _run(child: argparse.ArgumentParser) -> None:
    child.add_argument("recipe", help="a recipe.yaml")
    child.add_argument("assignments", nargs="*", metavar="key=value", help="settings that replace the file's")
    add_running(child)
    add_comparing(child)


def _compare(child: argparse.ArgumentParser) -> None:
    child.add_argument("run", help="folder of a run")
    child.add_argument("--prompts", metavar="FILE", help="complete these: one prompt a line, or .jsonl")
    add_baseline(child)


def _benchmark(child: argparse.ArgumentParser) -> None:
    child.add_argument("model", help="folder of a run, or a model")
    child.add_argument("--prompts", metavar="FILE", required=True, help="one prompt a line, or .jsonl")
    child.add_argument("--references", metavar="FILE", help="the wanted completions, in the same order")


def _resume(child: argparse.ArgumentParser) -> None:
    child.add_argument("run", help="folder of a run")
    add_comparing(child)


def _quickstart(child: argparse.ArgumentParser) -> None:
    child.add_argument("--steps", type=int, metavar="N", help="optimizer steps of each of the runs")
    child.add_argument("--seed", type=int, metavar="N", help="another seed, another run")
    child.add_argument("--fresh-teacher", action="store_true", help="train the teacher first (hours)")
    child.add_argument("--hub", action="store_true", help="gpt2-medium into gpt2 on wikitext-2, from the hub")
    child.add_argument("--output", metavar="FOLDER", help="where the runs go")


def _preview(child: argparse.ArgumentParser) -> None:
    wanted = [s for s in settings(distil=False) if s.path.startswith("data.") or s.path == "student.name"]
    for setting in wanted:
        add_setting(child, setting, spell_defaults([setting]))


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
    "run": (_run, "run a recipe file, with settings changed by key=value"),
    "resume": (_resume, "go on from the newest checkpoint of a run"),
    "compare": (_compare, "teacher, untouched student and distilled student: report.html and a verdict"),
    "benchmark": (_benchmark, "score a model's completions of prompts"),
    "quickstart": (_quickstart, "distil the shipped teacher on the standard library's own text"),
    "preview": (_preview, "show how rows of data are read and which tokens are learned"),
    "doctor": (_doctor, "check this machine: versions, device, disk, folders"),
    "list": (_list, "list what can be chosen, or the runs"),
}
