"""Tasks beside writing text at the command line and in the menu: flags, previews, mistakes, a run from a terminal."""
# ruff: noqa: F811, I001  fixtures are arguments

import contextlib
import csv
import json
import random
from pathlib import Path

import pytest
from menu_keys import DATA, DOWN, ENTER, answers_to
from menu_keys import keys  # noqa: F401  fixture
from test_cli_terminal import CLI, spawn

from llm_finetuner.cli import fitting, purpose, spoken
from llm_finetuner.cli.app import main
from llm_finetuner.cli.asking import so_far
from llm_finetuner.cli.needed import CLASSIFYING, OF_ANY_TASK, OF_LABELS, WRITING
from llm_finetuner.cli.progress import evaluation_line
from llm_finetuner.cli.questions import further, questions
from llm_finetuner.cli.settings import build
from llm_finetuner.cli.task_rows import DESCRIBED, in_words
from llm_finetuner.cli.words import words_of
from llm_finetuner.errors import RecipeError
from llm_finetuner.registry import TASKS, TEACHERS, resolve

WORDS = "good bad great poor the a is was very not film cast plot".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A classifier of 2 blocks, one of 4 with its labels named, and a model that fills in words."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("models")
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate([*SPECIAL, *WORDS])})
    torch.manual_seed(0)
    for name, made, width, blocks in (
        ("small", BertForSequenceClassification, 16, 2),
        ("big", BertForSequenceClassification, 32, 4),
        ("filler", BertForMaskedLM, 16, 2),
    ):
        config = BertConfig(
            vocab_size=18, hidden_size=width, num_hidden_layers=blocks, num_attention_heads=2,
            intermediate_size=2 * width, max_position_embeddings=32, initializer_range=0.3,
        )  # fmt: skip
        if name == "big":
            config.id2label, config.label2id = {0: "pos", 1: "neg"}, {"pos": 0, "neg": 1}
        made(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def desk(models, tmp_path, monkeypatch):
    """The models, and data for three tasks: 12 positive texts, then 6 negative ones."""
    monkeypatch.chdir(tmp_path)
    for name in ("small", "big", "filler"):
        (tmp_path / name).symlink_to(models / name)
    draw = random.Random(0)
    rows = [(" ".join(draw.choices(WORDS[4:], k=4)), "neg" if i >= 12 else "pos") for i in range(18)]
    with open("rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    tagged = {"tokens": ["good", "film", "the", "plot"], "tags": ["O", "B", "O", "B"]}
    Path("tags.jsonl").write_text(f"{json.dumps(tagged)}\n" * 4)
    return tmp_path


# ---- facts that are written down here, so that no torch is needed to ask


@pytest.mark.parametrize("name", TASKS)
def test_what_the_menu_knows_of_tasks_is_so(name):
    task = resolve(TASKS, name)
    assert (name in WRITING, name in OF_LABELS) == (task.writes, task.labels)
    assert name in spoken.TASKS and name in spoken.EXAMPLES
    assert (name in DESCRIBED) == (not task.shapes_of_text and not task.numbers)
    assert (name in CLASSIFYING) == (task.auto == "AutoModelForSequenceClassification")


# ---- flags


def test_a_task_is_a_flag_and_is_spelled_again():
    recipe = build(
        4, {"task": "classification", "student.name": "s", "teacher.name": "t", "data.source": "d"}
    )
    words = words_of(recipe)
    assert words[words.index("--task") + 1] == "classification"
    assert "--task" not in words_of(build(4, {"student.name": "s", "teacher.name": "t"}))


@pytest.mark.parametrize("command", ["finetune", "distill", "preview"])
def test_help_names_the_tasks(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = "".join(capsys.readouterr().out.split())
    assert "|".join(TASKS) in said and "(default:causal_lm)" in said


FULL = ["finetune", "--method", "6", "--student", "small", "--data", "rows.csv", "--output", "out"]
TAUGHT = ["distill", "--student", "small", "--teacher", "big", "--data", "rows.csv", "--output", "out"]


@pytest.mark.parametrize(
    "words, said",
    [
        ([*FULL, "--task", "clasification"], "did you mean 'classification'?"),
        ([*FULL, "--task", "masked_lm", "--class-weights", "balanced"], "data.class_weights is for labels"),
        ([*FULL, "--label-names", "a", "b"], "data.label_names is for labels, and a model for causal_lm"),
        ([*FULL, "--task", "classification", "--class-weights", "pos=0"], "the weight of pos must be a number above 0"),
        ([*FULL, "--task", "classification", "--class-weights", "equal"], "must be balanced, or weights by label"),
        ([*FULL, "--task", "classification", "--class-weights", "pos=1", "neg"], "'neg' is not label=weight"),
        ([*FULL, "--task", "classification", "--label-names", "a", "a"], "a list of names, each once"),
        ([*TAUGHT, "--task", "masked_lm", "--method", "11"], "a model for masked_lm writes none"),
        ([*TAUGHT, "--task", "classification", "--method", "12"], "has a model write continuations"),
        ([*FULL, "--task", "classification", "--packing"], "train.packing is for language models that write"),
        ([*TAUGHT, "--task", "classification", "--url", "http://h/v1"], "a remote teacher answers models that"),
        (["preview", "--student", "small", "--data", "rows.csv", "--teacher", "big"], "shown for classification"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_loaded(desk, capsys, words, said):
    assert main(words) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not Path("out").exists()


def test_answers_to_texts_are_kept_and_learned_from(desk, capsys):
    words = ["--task", "classification", *TAUGHT[1:7]]
    assert main(["cache", *words, "--to", "answers", "--keep-layers", "pooled", "3", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["rows"], figures["tokens"], figures["bytes_per_token"]) == (18, 18, 8)
    assert "--task classification" in figures["command"] and "--cache answers" in figures["command"]
    run = [
        "distill",
        "--task",
        "classification",
        *words[2:4],
        *words[6:],
        "--cache",
        "answers",
        "--no-compare",
    ]
    plan = ["--epochs", "1", "--batch-size", "6", "--gradient-accumulation-steps", "1"]
    named = ["--method", "8", "--objectives", "forward_kl=1", "distance=1:layers=pooled"]
    assert main([*run, *plan, *named, "--output", "out"]) == 0
    assert json.loads(Path("out/log.jsonl").read_text().splitlines()[0])["distance"] > 0
    wanted = [*run, "--output", "new", "--method", "8", "--objectives", "hidden_mse=1:layers=1:2"]
    assert main(wanted) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "keeps only those of pooled, 3" in said and "cache --task classification" in said
    for kept, why in (("x", "invalid"), ("4", "the teacher big has blocks 0 to 3")):
        with contextlib.suppress(SystemExit):
            assert main(["cache", *words, "--to", "other", "--keep-layers", kept]) == 2
        assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    "method, paths",
    [
        (4, {"task": "masked_lm", "data.class_weights": "balanced"}),
        (4, {"teacher.kind": "remote", "teacher.options.url": "http://h/v1"}),
        (4, {"train.packing": True}),
        (11, {}),
    ],
)
def test_the_run_itself_says_the_same(desk, method, paths):
    """What is told early has the words of the engine, which says it to those who call it from Python."""
    from llm_finetuner.trainer import fit

    named = {
        "task": "classification",
        "student.name": "small",
        "teacher.name": "big",
        "data.source": "rows.csv",
    }
    recipe = build(method, {**named, "output": "out", "train.precision": "fp32", **paths})
    with pytest.raises(RecipeError) as late:
        fit(recipe)
    with pytest.raises(RecipeError) as early:
        fitting.check_task(recipe)
    assert (early.value.what, early.value.hint) == (late.value.what, late.value.hint)


# ---- previews


def preview(capsys, *words: str) -> dict:
    assert main(["preview", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_texts_to_classify_show_their_labels_and_how_often_each_is_given(desk, capsys):
    seen = preview(capsys, "--task", "classification", "--student", "small", "--data", "rows.csv")
    assert seen["labels"] == {"neg": 6, "pos": 12}
    assert "'label' is the class of each" in seen["sentence"] and "18 rows" in seen["sentence"]
    assert [row[-1] for row in seen["rows"]] == [["pos", True]] * 2
    assert seen["rows"][0][0][0].startswith("[CLS] ") and "soft_labels" not in seen


def test_labels_far_down_are_known_from_the_start(desk, capsys):
    """The first rows, which are tokenised, have one label only."""
    with open("sorted.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("text", "label"), *[("good film", "b")] * 300, ("bad film", "a"), ("plot", "")]
        )
    seen = preview(capsys, "--task", "classification", "--student", "small", "--data", "sorted.csv")
    assert seen["labels"] == {"a": 1, "b": 300, "no label": 1}
    assert seen["rows"][0][-1] == ["b", True]


def test_tags_and_hidden_words(desk, capsys):
    seen = preview(capsys, "--task", "token_classification", "--student", "small", "--data", "tags.jsonl")
    assert "".join(words for words, _ in seen["rows"][0]).split() == ["good/O", "film/B", "the/O", "plot/B"]
    assert [words.strip() for words, learned in seen["rows"][0] if learned] == ["O", "B", "O", "B"]
    words = ["--data", "rows.csv", "--text-columns", "text"]
    seen = preview(capsys, "--task", "masked_lm", "--student", "filler", *words)
    text = "".join(words for words, _ in seen["rows"][0]).split()
    written = Path("rows.csv").read_text().splitlines()[1].split(",")[0]
    assert text == ["[CLS]", *written.split(), "[SEP]"] and any(learned for _, learned in seen["rows"][0])


def test_a_source_and_what_is_made_of_it(models):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "small")
    row = {
        "input_ids": tokenizer("good film")["input_ids"],
        "labels": [*tokenizer("bad plot")["input_ids"], -100],
    }
    assert in_words("seq2seq_lm", row, tokenizer, []) == [
        ("[CLS] good film [SEP] -> ", False),
        ("bad plot", True),
    ]


def test_soft_labels_of_a_teacher_are_its_own(desk, capsys):
    """Against the model itself, called as its users call it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    words = ["--task", "classification", "--student", "small", "--data", "rows.csv", "--teacher", "big"]
    seen = preview(capsys, *words)["soft_labels"]
    assert [row["label"] for row in seen] == ["pos", "pos", "neg"]
    model, tokenizer = (
        made.from_pretrained("big") for made in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    for row in seen:
        with torch.no_grad():
            logits_C = model.eval()(**tokenizer(row["text"], return_tensors="pt")).logits[0].double()
        assert set(row["probabilities"]) == {"1", "2", "5", "10"}
        for temperature, told in row["probabilities"].items():
            wanted = (logits_C / float(temperature)).softmax(-1).tolist()
            assert told == pytest.approx({"pos": wanted[0], "neg": wanted[1]}, abs=1e-6)
    assert main(["preview", *words]) == 0
    assert "T = 1    T = 2    T = 5   T = 10" in capsys.readouterr().out


# ---- the menu


def asked_of(**answers) -> list[str]:
    return [question.key for question, _ in questions(answers) if question.make(answers) is not None]


@pytest.mark.parametrize("method", ["on_policy_distillation", "sequence_distillation"])
def test_what_can_only_write_does_not_ask(method):
    assert purpose.pick_task({"method": method}) is None


def test_the_first_question_offers_the_tasks_in_the_order_of_the_table():
    for method in ("vanilla_distillation", "lora", "full"):
        asked = purpose.pick_task({"method": method})
        offered = list(TASKS)
        assert [name for name, *_ in asked.choices] == offered and asked.default == "causal_lm"


def test_questions_that_make_no_sense_are_not_asked():
    given = {"method": "vanilla_distillation", "student.name": "s", "data.source": "d.csv"}
    text, labels = given, {**given, "task": "classification"}
    assert "tuning.kind" in asked_of(**text) and "tuning.kind" in asked_of(**labels)
    of_text, of_labels = ({s.path for s in further(answers)} for answers in (text, labels))
    assert of_text - of_labels == {"train.packing", "data.loss_on", "student.mixer"}
    assert of_labels - of_text == {"data.label_names", "data.class_weights"}
    (kind,) = [question for question, _ in questions(labels) if question.key == "teacher.kind"]
    assert [value for value, *_ in kind.make(labels).choices] == list(OF_ANY_TASK)
    assert set(OF_ANY_TASK) < set(TEACHERS)
    assert "job.k" in asked_of(**text, job="cache") and "job.k" not in asked_of(**labels, job="cache")


def test_a_task_of_the_menu_is_in_the_recipe(keys, desk):
    moves = [DOWN, ENTER, "small", ENTER, ENTER, "big", ENTER, ENTER, "rows.csv", *DATA[1:], ENTER * 9]
    recipe = keys(answers_to("vanilla_distillation"), *moves)
    named = {
        "task": "classification",
        "student.name": "small",
        "teacher.name": "big",
        "data.source": "rows.csv",
    }
    assert recipe == build(4, {**named, "output": "outputs/small-vanilla_distillation"})
    adapter = keys(answers_to("lora"), DOWN, ENTER, "small", ENTER, "rows.csv", *DATA[1:], ENTER * 7)
    given = {name: named[name] for name in ("task", "student.name", "data.source")}
    assert adapter == build("lora", {**given, "output": "outputs/small-lora"})
    assert so_far({"method": "full", "student.name": "small", "data.source": "d"}).task == "causal_lm"


def test_a_classifier_from_the_menu_to_its_end(desk):
    """On a terminal: every question, the summary, the run, and the folder that it leaves."""
    pexpect = pytest.importorskip("pexpect")
    child = spawn(CLI, cwd=desk)
    child.timeout = 240  # torch is loaded on the way
    answers = [
        ("6", "model for"), ("\x1b[B", "Student model"), ("small", "Training data"),
        ("rows.csv", "labels: neg 6, pos 12"), (None, "as you mean them"), ("", "Epochs"), ("1", "Batch size"),
        ("", "Learning rate"), ("", "Longest"), ("", "How many"), ("", "other settings"), ("", "Output folder"),
        ("run", "task"), (None, "classification"), (None, "Start\\?"), ("", "evaluation at step"), (None, "accuracy"),
        (None, "--task classification"),
    ]  # fmt: skip
    for answer, expected in answers:
        if answer is not None:
            child.send(f"{answer}\r")
        child.expect(expected)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert json.loads((desk / "run" / "config.json").read_text())["id2label"] == {"0": "neg", "1": "pos"}


def test_an_evaluation_of_labels_gives_their_accuracy():
    record = {"step": 5, "eval_loss": 0.5, "eval_perplexity": 1.6, "best": True}
    assert evaluation_line(record) == "evaluation at step 5: loss 0.5000, perplexity 1.600, the best so far"
    told = evaluation_line({"step": 5, "eval_loss": 0.5, "eval_accuracy": 0.875, "best": True})
    assert told == "evaluation at step 5: loss 0.5000, accuracy 87.5%, the best so far"
