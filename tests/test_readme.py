"""What the README says runs: its Python block on local models, its commands as far as their settings."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import build_gpt2, save_model, sentences

from finetune_cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}python finetune_cli\.py *([^#\n]*)", README, re.MULTILINE)


@pytest.fixture
def desk(tmp_path, tokenizer, monkeypatch):
    """Folders named as the README names models, and its data file."""
    for name, width in (("gpt2", 16), ("gpt2-medium", 32)):
        save_model(tmp_path / name, build_gpt2(len(tokenizer), width), tokenizer)
    for name in ("data.jsonl", "train.jsonl"):
        (tmp_path / name).write_text("".join(f'{{"text": "{text}"}}\n' for text in sentences(8)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_python_block(desk, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(block, {})
    assert (desk / "outputs" / "small" / "report.html").exists()
    assert "report.html" in capsys.readouterr().out


def test_commands_that_start_a_run_resolve_to_a_recipe(desk, capsys, monkeypatch):
    started = [c for c in COMMANDS if c.split()[:1] and c.split()[0] in ("distill", "finetune", "run")]
    assert len(started) >= 3
    for command in started:
        words = shlex.split(command)
        words = [str(ROOT / word) if word.endswith(".yaml") else word for word in words]
        assert main([*words, "--dry-run"]) == 0, command
        assert "student:" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted({c.split()[0] for c in COMMANDS if c.strip()}))
def test_every_command_named_has_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0 and "usage" in capsys.readouterr().out


def test_pictures_and_pages_are_there():
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / target).exists(), target
