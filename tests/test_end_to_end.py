"""The main job on real text, through every door: menu, command line, recipe file, Python."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import build_gpt2, build_llama
from safetensors.torch import load_file

pexpect = pytest.importorskip("pexpect")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
CLI = str(ROOT / "finetune_cli.py")
ENVIRONMENT = {
    **os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip
BEFORE = [
    ("What is the model for", ""),
    ("Student model", "./small"),
    ("What teaches", ""),
    ("Teacher model", "./big"),
    ("Which weights", ""),
    ("Training data", "gsm8k.jsonl"),
]
BEFORE += [("as you mean them", ""), ("Temperature", "2"), ("Alpha", "0.5")]
FEATURE = [("Layers to match", ""), ("Output weight", "0.5"), ("Feature loss", ""), ("Projection", "")]
AFTER = [
    ("Epochs", "1"),
    ("Batch size", "8"),
    ("Learning rate", "1e-3"),
    ("Longest example", "96"),
    ("How many rows", "120"),
]
AFTER += [("Change other settings", ""), ("Output folder", "")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory, gsm8k):
    """A folder with 200 real questions and answers, a tokenizer trained on them, a GPT-2 and a larger Llama."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("desk")
    lines = (gsm8k / "train.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    (folder / "gsm8k.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    for name, model in (("small", build_gpt2(600, 32, 2)), ("big", build_llama(600, 48, 4))):
        model.save_pretrained(str(folder / name))
        tokenizer.save_pretrained(str(folder / name))
    return folder


def walk_the_menu(folder: Path, number: str, answers: list[tuple[str, str]]) -> str:
    """Answer every question of the wizard and let it train; returns what the screen showed."""
    child = pexpect.spawn(
        sys.executable, [CLI], cwd=str(folder), env=ENVIRONMENT, dimensions=(40, 100), timeout=240, encoding="utf-8"
    )  # fmt: skip
    shown = []
    for expected, answer in [("Quit", number), *answers, ("Train baselines", ""), (r"Start\?", "")]:
        child.expect(expected)
        shown.append(child.before)
        child.send(answer + "\r")
    child.expect("the same by command")
    shown.append(child.before)
    child.expect(pexpect.EOF)
    shown.append(child.before)
    child.close()
    assert child.exitstatus == 0, "".join(shown)[-3000:]
    return "".join(shown)


def reload_plainly(run: Path) -> None:
    """In a process that cannot import us, the folder is an ordinary model that generates."""
    script = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        "t, m = T.from_pretrained(sys.argv[1]), M.from_pretrained(sys.argv[1]); "
        "m.generate(**t('Question: 1 + 1?', return_tensors='pt'), max_new_tokens=3); "
        "assert not [n for n in sys.modules if 'llm_finetuner' in n]; print('projection' in str(m.state_dict().keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(run)], capture_output=True, text=True, env=ENVIRONMENT, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"  # what only training needs is not in the model


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def run_command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, CLI, *words],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(
    ("number", "name", "extra"), [("4", "vanilla_distillation", []), ("5", "feature_distillation", FEATURE)]
)
def test_the_menu_distils_and_leaves_a_plain_model(desk, number, name, extra):
    shown = walk_the_menu(desk, number, [*BEFORE, *extra, *AFTER])
    run = desk / "outputs" / f"small-{name}"
    assert "question" in shown and "answer" in shown  # the recognised shape was shown before training
    reload_plainly(run)
    verdict = json.loads((run / "metrics.json").read_text())
    assert {model["role"] for model in verdict["models"]} == {"teacher", "untouched", "distilled"}
    assert verdict["paid"] == "unknown"  # no baseline was trained, so nothing is claimed
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(records) == 4  # 108 of the 120 rows train, 8 x 4 a step, and the smaller last step
    terms = {"cross_entropy", "forward_kl"} | ({"hidden_mse"} if extra else set())
    assert all(terms <= record.keys() for record in records)


def test_every_door_trains_the_same_model(desk):
    """The recipe the menu saved, the command it printed in other words, and the Python calls: bit for bit."""
    menu = desk / "outputs" / "small-vanilla_distillation"
    if not menu.exists():
        walk_the_menu(desk, "4", [*BEFORE, *AFTER])
    run_command(desk, "run", str(menu / "recipe.yaml"), "output=by_recipe", "--no-compare")
    run_command(
        desk, "distill", "--student", "./small", "--teacher", "./big", "--data", "gsm8k.jsonl", "--temperature", "2",
        "--alpha", "0.5", "--epochs", "1", "--batch-size", "8", "--learning-rate", "1e-3", "--max-length", "96",
        "--num-samples", "120", "--output", "by_command", "--no-compare",
    )  # fmt: skip
    script = """
from finetune_cli import LLMFineTuner
from llm_finetuner.data.text import split
finetuner = LLMFineTuner("./small", "by_python")
finetuner.load_model(method="vanilla_distillation")
finetuner.load_teacher_model("./big")
finetuner.setup_vanilla_distillation(temperature=2.0, alpha=0.5)
dataset = finetuner.load_dataset_from_source("gsm8k.jsonl", num_samples=120)
tokenized, _ = finetuner.prepare_dataset(dataset, max_length=96)
finetuner.train(tokenized, num_epochs=1, batch_size=8, learning_rate=1e-3, eval_fraction=0.1)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=desk, capture_output=True, text=True,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    want = weights(menu)
    for run in ("by_recipe", "by_command", "by_python"):
        got = weights(desk / run)
        assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) for k in want), run
