"""What is shown: nothing is read as markup, nothing breaks in a narrow terminal, estimates add up."""

import io

import pytest
from rich.console import Console

from llm_finetuner.cli import progress
from llm_finetuner.cli.console import Screen
from llm_finetuner.cli.doctor import memory_available
from llm_finetuner.cli.estimate import Sized, Sizes, estimate, measure
from llm_finetuner.cli.plain import count, duration, size
from llm_finetuner.cli.progress import View, sparkline
from llm_finetuner.cli.settings import build

EVIL = "[red]not red[/red] \x1b[31mred\x1b[0m \x1b]0;title\x07[/oops]"
PLAN = {"steps": 10, "examples": 40, "parameters": 1000, "trainable_parameters": 100, "teacher_parameters": 5000,
        "device": "cpu", "precision": "fp32", "warnings": [EVIL], "resumed_from": 0}  # fmt: skip
MODEL = {"perplexity": 8.5, "perplexity_low": 8.1, "perplexity_high": 8.9, "parameters": 10**7, "bytes": 4 * 10**7,
         "agreement": 0.8, "rougeL": None}  # fmt: skip
VERDICT = {
    "sentence": f"It paid. {EVIL}",
    "warnings": [EVIL],
    "models": [{"name": f"{name} {EVIL}", **MODEL} for name in ("teacher", "untouched student", "distilled")],
    "samples": [{"prompt": EVIL, "reference": "x", "completions": {"teacher": EVIL, "distilled": "y"}}],
}


def screen(width: int, terminal: bool = True, quiet: bool = False) -> Screen:
    shown = Screen(quiet=quiet)
    shown.console = Console(
        file=io.StringIO(), width=width, height=12, force_terminal=terminal, highlight=False, markup=False,
        emoji=False, legacy_windows=False,
    )  # fmt: skip
    return shown


def step(number: int) -> dict:
    losses = {
        "loss": 3.0 / number,
        "cross_entropy": 2.0 / number,
        "forward_kl": 1.0,
        "hidden_mse": float("nan"),
    }
    return {"step": number, "epoch": number / 5, **losses, "tokens_per_second": 1234.5, "learning_rate": 1e-4}


def run_events(view: View) -> None:
    view("plan", PLAN)
    for number in range(1, 11):
        view("step", step(number))
    view("evaluation", {"step": 10, "eval_loss": 2.0, "eval_perplexity": 7.4, "best": True})
    view("checkpoint", {"step": 10, "path": "run/checkpoints/step_0000010"})
    view("note", {"text": EVIL})


@pytest.mark.parametrize("width", [12, 40, 80, 200])
def test_live_view_draws_at_every_width(width):
    shown = screen(width)
    with View(shown) as view:
        run_events(view)
        shown.console.print(view.draw())
        view("done", {"steps": 10, "seconds": 3.0, "output": "run", "best_step": 10})
    written = shown.console.file.getvalue()
    assert "cross" in written and view.checkpoint == "run/checkpoints/step_0000010"
    assert "\x1b[31mred" not in written and "title\x07" not in written
    assert max(map(len, written.splitlines())) < 10_000


def test_plain_lines_when_not_on_a_terminal(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0)
    shown = screen(80, terminal=False)
    with View(shown) as view:
        run_events(view)
    written = shown.console.file.getvalue()
    assert "step 10/10, loss 0.3000 (cross_entropy 0.2000, forward_kl 1.0000" in written
    assert "evaluation at step 10: loss 2.0000, perplexity 7.400, the best so far" in written
    assert "\x1b" not in written and "[red]not red[/red]" in written


def test_quiet_keeps_warnings_only():
    shown = screen(80, terminal=False, quiet=True)
    with View(shown) as view:
        run_events(view)
    assert shown.console.file.getvalue().splitlines() == ["warning: [red]not red[/red] red [/oops]"]


@pytest.mark.parametrize("width", [12, 40, 80, 200])
@pytest.mark.parametrize("terminal", [True, False])
def test_verdict_at_every_width(width, terminal):
    shown = screen(width, terminal)
    shown.verdict(VERDICT)
    written = shown.console.file.getvalue()
    assert "8.500" in written and "paid" in written
    assert "\x1b[31mred" not in written and "title\x07" not in written


def test_memory_of_small_models_is_told_and_of_what():
    shown = screen(200, terminal=False)
    models = [
        {"name": name, "peak_memory_mb": memory} for name, memory in (("line", 0.0092), ("large", 1540.0))
    ]
    shown.verdict({"sentence": "", "models": models, "memory": "weights and buffers alone"})
    written = shown.console.file.getvalue()
    assert "9.0 KiB" in written and "1.4 GiB" in written and "memory: weights and buffers alone" in written
    assert "peak" not in written


def test_preview_says_what_is_learned():
    shown = screen(80, terminal=False)
    shown.preview([[(f"prompt {EVIL}", False), ("answer", True)]])
    assert "learned in row 1: answer" in shown.console.file.getvalue()


def test_sparkline():
    assert sparkline([1, 2, 3, 4], 4, "_.-=") == "_.-="
    assert sparkline([5.0], 10, "_-") == "_" and sparkline([float("nan")], 10) == ""
    assert len(sparkline(list(range(1000)), 40)) == 40


def test_numbers():
    assert (count(124_439_808), count(None), count(999)) == ("124.4M", "-", "999")
    assert (size(1536 * 2**20), duration(59), duration(3700)) == ("1.5 GiB", "59 s", "1 h 01 min")


# ---- estimates


def test_parameters_are_counted_without_weights(student_folder):
    from transformers import AutoModelForCausalLM

    recipe = build(1, {"student.name": student_folder})
    real = AutoModelForCausalLM.from_pretrained(student_folder).num_parameters()
    assert measure(recipe.student).parameters == real
    adapted = measure(recipe.student, recipe)
    assert adapted.parameters == real and 0 < adapted.trainable < real
    full = build(6, {"student.name": student_folder})
    assert measure(full.student, full).trainable == real


def test_estimate_of_full_tuning():
    recipe = build(6, {"train.epochs": 2.0, "train.batch_size": 2, "train.gradient_accumulation_steps": 5})
    student = Sizes(parameters=10**6, trainable=10**6, width=64, blocks=4, vocabulary=1000)
    guess = estimate(recipe, Sized(student, []), examples=111, length=10, speed=1e9)
    assert (guess.examples, guess.steps) == (100, 20)
    assert guess.memory["student"] + guess.memory["gradients"] + guess.memory["optimizer"] == 16 * 10**6
    assert guess.tokens == pytest.approx(2 * 100 * 10)
    assert guess.seconds == pytest.approx(2000 * 6e6 / 0.5e9 + 20 * 5 * 0.02)


def test_a_teacher_in_four_bits_takes_less():
    student = Sizes(10**6, 10**6, 64, 4, 1000)
    teacher = Sizes(10**8, 0, 640, 8, 1000)
    paths = {"teacher.name": "t"}

    def taken(**more) -> float:
        recipe = build(4, {**paths, **more})
        return estimate(recipe, Sized(student, [(recipe.teacher, teacher)]), 100, 10).memory["teacher"]

    assert taken(**{"teacher.load_in_4bit": True}) < taken() / 5


def test_estimates_of_every_kind_of_teacher():
    student, teacher = Sizes(10**6, 10**6, 64, 4, 1000), Sizes(10**8, 0, 640, 8, 1000)

    def guess(number: int, others: int = 0, **paths):
        recipe = build(number, {"teacher.name": "t", **paths} if others else paths)
        models = Sized(student, [(recipe.teacher, teacher)] * others)
        return estimate(recipe, models, 100, 10, speed=1e12)

    live = guess(4, 1)
    cached = guess(4, **{"teacher.options.path": "c"})
    assert cached.memory["teacher"] == 0 and cached.seconds < live.seconds
    both = guess(4, 2)
    assert both.memory["teacher"] == 2 * live.memory["teacher"] and both.seconds > live.seconds
    peer = guess(10, 1)
    assert peer.memory["peers"] == 16 * 10**8 and peer.seconds > live.seconds
    assert guess(9, **{"options.by": "average"}).memory["average"] == 4 * 10**6
    assert guess(9).memory["teacher"] == 0
    own, written = guess(11, 1), guess(12, 1)
    assert live.writing == 0 and own.seconds > own.writing > 0 and written.seconds > written.writing > 0
    twice = guess(12, 1, **{"options.samples": 2, "options.sampling_temperature": 1.0})
    assert twice.writing > written.writing and twice.examples == 2 * written.examples


def test_a_student_that_is_part_of_its_teacher_is_measured(teacher_folder):
    from llm_finetuner.models.shrink import shrink
    from llm_finetuner.named_models import load_teacher

    paths = {"student.name": "teacher/2", "teacher.name": teacher_folder}
    recipe = build(4, paths)
    teacher = load_teacher(recipe.teacher, "cpu")
    real = shrink(teacher, keep=2)
    assert measure(recipe.student, recipe).parameters == real.num_parameters()
    half = build(4, {**paths, "student.keep_width": 0.5})
    narrow = shrink(teacher, keep=2, width=0.5).num_parameters()
    assert measure(half.student, half).parameters == pytest.approx(narrow, rel=0.3)


def test_many_terms_stages_trials_and_caches(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0)
    shown = screen(80, terminal=False)
    terms = {f"term_{number}": float(number) for number in range(9)}
    with View(shown) as view:
        view("stage", {"number": 2, "of": 3, "student": "small", "output": "run/stage_2"})
        view("plan", PLAN)
        view("step", {"step": 1, "epoch": 0.1, "loss": 1.0, **terms, "tokens_per_second": 10.0})
        view("trial", {"number": 3, "settings": {"alpha": 0.5}, "folder": "run/trial_003"})
        view("trial_done", {"number": 3, "state": "failed", "loss": None, "error": EVIL})
        view("cache", {"rows": 8, "of": 8, "tokens": 99})
    written = shown.console.file.getvalue()
    for words in (
        "Stage 2 of 3: student small",
        "term_3 3.0000, 5 more)",
        "Trial 3: alpha 0.5",
        "trial 3 failed: ",
    ):
        assert words in written
    assert "8 of 8 rows, 99 tokens" in written and "\x1b" not in written


def test_memory_available():
    free, where = memory_available()
    assert free is None or (free > 0 and where)
