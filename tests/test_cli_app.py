"""The command line: flags to recipes and back, exit codes, errors in two lines, what is not imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_finetuner.cli.app import main
from llm_finetuner.cli.jobs import command_of
from llm_finetuner.cli.parser import parser
from llm_finetuner.cli.plain import clean
from llm_finetuner.cli.settings import build, by_flag, paths_in, settings
from llm_finetuner.cli.wording import HELP
from llm_finetuner.cli.words import words_of
from llm_finetuner.recipe import Recipe
from llm_finetuner.recipe_file import save
from llm_finetuner.registry import MENU, TUNINGS, menu_entry

ROOT = Path(__file__).resolve().parents[1]
DISTILL = ["distill", "--student", "s", "--teacher", "t", "--data", "d.jsonl"]


def recipe_of(words: list[str]) -> Recipe:
    args = vars(parser().parse_args(words))
    method = args.get("method", "vanilla_distillation")
    paths = paths_in(args, args["command"] == "distill", menu_entry(method)[1])
    return build(method, paths, args.get("set", []))


# ---- flags


@pytest.mark.parametrize("distil", [False, True])
def test_every_setting_has_help_and_one_flag(distil):
    found = settings(distil)
    assert not [s.path for s in found if s.path not in HELP]
    for flag, same in by_flag(found).items():
        for owner in {s.owner for s in same}:  # --layers is one option of each method that has it
            assert len([s for s in same if s.owner == owner]) == 1, flag


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("number", MENU)
def test_command_round_trip_for_every_method_and_tuning(number, tuning):
    paths = {"student.name": "s", "data.source": "d", "tuning.kind": tuning}
    if MENU[number][1] not in ("fine_tuning", "self_distillation"):
        paths["teacher.name"] = "t"
    recipe = build(number, paths)
    assert recipe_of(words_of(recipe)) == recipe


@pytest.mark.parametrize(
    "paths",
    [
        {"student.name": "my model", "data.source": "a b's.jsonl", "output": "out put"},
        {"options.feature_layers": [[0, 1], [3, 7]], "options.output_weight": 0.25},
        {"options.feature_layers": [0, 3, 6], "options.alpha": 0, "options.temperature": 4.5},
        {"data.text_columns": ["a, b", "c"], "train.seed": -3, "data.files": "x.json"},
        {"data.text_columns": ["a", "b"], "data.files": ["x.json", "y.json"], "data.samples": 10},
        {"train.learning_rate": 2e-5, "train.trackers": ["tensorboard", "wandb"], "train.keep_best": False},
        {"student.load_in_8bit": True, "tuning.kind": "qlora", "tuning.options.target_modules": ["q", "v"]},
        {"teacher.load_in_4bit": True, "student.from_scratch": True, "train.steps": 7, "train.epochs": 0.5},
        {"data.config": "none", "data.source": "--odd"},
    ],
)
def test_command_round_trip(paths):
    recipe = build(5, {"student.name": "s", "teacher.name": "t", "data.source": "d", **paths})
    assert recipe_of(words_of(recipe)) == recipe


def test_command_is_quoted_for_the_shell():
    recipe = build(4, {"student.name": "my model", "teacher.name": "t", "data.source": "it's.jsonl"})
    script = f'for word in {command_of(recipe).split(maxsplit=2)[2]}; do echo "$word"; done'
    words = subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.splitlines()
    assert recipe_of(words) == recipe


def test_flags_make_the_recipe_they_name():
    words = ["--method", "5", "--temperature", "3", "--layers", "0", "2", "--adapter", "lora", "--r", "4"]
    recipe = recipe_of([*DISTILL, *words, "--no-keep-best", "--set", "train.warmup=5"])
    assert (recipe.method, recipe.options["temperature"]) == ("feature_distillation", 3.0)
    assert recipe.options["feature_layers"] == [0, 2]
    assert (recipe.tuning.kind, recipe.tuning.options["r"]) == ("lora", 4)
    assert (recipe.train.keep_best, recipe.train.warmup) == (False, 5)


def test_qlora_means_four_bits_unless_eight_are_asked_for():
    assert build(2, {"student.name": "s"}).student.load_in_4bit
    eight = build(2, {"student.name": "s", "student.load_in_8bit": True}).student
    assert eight.load_in_8bit and not eight.load_in_4bit


# ---- exit codes and errors


def test_dry_run_prints_the_recipe_and_stops(capsys):
    assert main([*DISTILL, "--dry-run", "--epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert "method: vanilla_distillation" in out and "epochs: 2.0" in out


def test_dry_run_as_json(capsys):
    assert main([*DISTILL, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["teacher"]["name"] == "t"


@pytest.mark.parametrize(
    "words, said",
    [
        (["distill", "--temperature", "11"], "temperature must be a number between 1 and 10"),
        (["distill", "--student", "s", "--data", "d"], "teacher.name is missing"),
        (["finetune", "--student", "s"], "data.source is missing"),
        (["finetune", "--data", "d"], "student.name is missing"),
        (["finetune", "--batch-size", "two"], "train.batch_size must be a whole number"),
        (["finetune", "--method", "vanilla_distillation"], "not for finetune"),
        (["finetune", "--schedule", "cosin"], "unknown schedule"),
        (["finetune", "--method", "6", "--r", "4"], "full has no options"),
        (["distill", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["--quiet"], "no command was given"),
        (["export", "m"], "--to"),
        (["run", "missing.yaml"], "cannot read the recipe missing.yaml"),
    ],
)
def test_wrong_settings_are_two_lines_and_exit_2(words, said, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and said in err and "Traceback" not in err
    assert len(err.splitlines()) <= 2 and out == ""


def test_errors_as_json_too(capsys):
    assert main([*DISTILL, "--alpha", "2", "--json"]) == 2
    out, err = capsys.readouterr()
    assert set(json.loads(out)) == {"error", "hint"} and err.startswith("error: alpha")


def test_missing_run_fails_with_1(capsys, tmp_path):
    assert main(["resume", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err


def test_output_with_a_run_is_refused(capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text("method: fine_tuning\n")
    (tmp_path / "log.jsonl").write_text("")
    assert main([*DISTILL, "--output", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "already holds a run" in err and "resume" in err and "--overwrite" in err


def test_run_applies_overrides(capsys, tmp_path):
    save(recipe_of([*DISTILL, "--method", "4"]), tmp_path / "r.yaml")
    words = ["run", str(tmp_path / "r.yaml"), "train.steps=5", "temperature=4", "--dry-run", "--json"]
    assert main(words) == 0
    recipe = json.loads(capsys.readouterr().out)
    assert recipe["train"]["steps"] == 5 and recipe["options"]["temperature"] == 4.0


def test_our_own_bugs_keep_their_traceback(monkeypatch):
    from llm_finetuner.cli import commands

    monkeypatch.setitem(commands.COMMANDS, "list", lambda given, screen: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


@pytest.mark.parametrize(
    "what", ["methods", "tunings", "objectives", "teachers", "exporters", "layers", "schedules", "runs"]
)
def test_list(what, capsys, tmp_path):
    assert main(["list", what, "--json", "--folder", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == [] if what == "runs" else all(row["says"] for row in found[what])


def test_doctor(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"name", "ok", "says"} == set(found[0]) and any(check["name"] == "disk" for check in found)


@pytest.mark.parametrize(
    "command",
    [
        "",
        *"finetune distill run resume cache generate sweep".split(),
        *"compare benchmark export quickstart preview doctor list".split(),
    ],
)
def test_help_everywhere_with_examples_and_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "examples:" in out and "exit codes:" in out


def test_examples_in_the_help_parse():
    from llm_finetuner.cli.parser import EXAMPLES

    lines = [
        line.split("  ")[0]
        for text in EXAMPLES.values()
        for line in text.replace("  {0}", "{0}").splitlines()
    ]
    for line in lines:
        words = line.replace("'", "").split()[1:]
        parser().parse_args(words)


# ---- what is not imported


def modules_after(*words: str) -> set[str]:
    code = (
        "import sys, atexit, runpy\n"
        "atexit.register(lambda: print('\\n@' + ' '.join(sys.modules), file=sys.stderr))\n"
        f"sys.argv = ['finetune_cli.py', *{list(words)!r}]\n"
        "runpy.run_path('finetune_cli.py', run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return set(run.stderr.rpartition("@")[2].split())


@pytest.mark.parametrize("words", [("--help",), ("distill", "--help"), ("--version",)])
def test_help_is_light(words):
    found = modules_after(*words)
    assert "llm_finetuner.cli.app" in found
    assert not found & {"questionary", "rich", "yaml", "torch", "transformers", "datasets", "peft", "numpy"}


def test_door_imports_no_torch():
    code = "import sys, finetune_cli; assert 'torch' not in sys.modules; print(finetune_cli.main)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---- text of others


def test_control_sequences_are_stripped():
    assert clean("a\x1b[31mred\x1b[0m\x1b]0;title\x07b\x07\x00\tc\nd") == "ared" + "b\tc\nd"
    assert clean("\x1b[2J[bold]x[/bold]") == "[bold]x[/bold]"


def test_settings_before_torch_loads_can_be_overridden():
    code = "import finetune_cli, os; print(*(os.environ[name] for name in finetune_cli.ENVIRONMENT))"
    env = {**os.environ, "OMP_WAIT_POLICY": "ACTIVE"}
    env.pop("THP_MEM_ALLOC_ENABLE", None)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env)
    assert run.stdout.split() == ["ACTIVE", "1"]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says which pages are asked for")
@pytest.mark.parametrize(("asked", "given"), [({}, True), ({"THP_MEM_ALLOC_ENABLE": "0"}, False)])
def test_torch_asks_for_huge_pages(asked, given):
    code = (
        "import finetune_cli, torch; kept = torch.empty(2**24)\n"
        "print(any(line.startswith('VmFlags:') and ' hg' in line for line in open('/proc/self/smaps')))"
    )
    env = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env | asked
    )
    assert run.stdout.strip() == str(given), run.stderr


def test_doctor_names_the_loss_kernel(monkeypatch):
    from llm_finetuner.cli.doctor import NO_KERNEL, loss_kernel
    from llm_finetuner.kernels import response

    assert loss_kernel().says == ("compiled C kernel" if response.available() else NO_KERNEL)
    monkeypatch.setenv(response.SWITCH, "0")
    response.load.cache_clear()
    says = loss_kernel().says
    response.load.cache_clear()
    assert says == NO_KERNEL
