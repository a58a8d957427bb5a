"""What the pages in docs/ say holds: recipes, snippets, commands, quoted messages, tables; and nothing is left out."""

import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import sentences

from finetune_cli import LLMFineTuner, main
from llm_finetuner import chain, layer_maps, recipe_file
from llm_finetuner.recipe import members_of
from llm_finetuner.registry import METHODS, OBJECTIVES, TEACHERS
from llm_finetuner.terms import check_options
from llm_finetuner.trainer import fit

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
INDEX = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
NAMES = sorted({"methods.md", *re.findall(r"\]\((\w+\.md)", INDEX)} - {"log.md"})
TEXT = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in NAMES}
README = (ROOT / "README.md").read_text(encoding="utf-8")

pages = pytest.mark.parametrize("page", TEXT, ids=str)


def by_name(path: Path) -> str:
    return path.stem


# ---- recipes


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_every_recipe_says_what_it_shows_and_resolves(path):
    assert path.read_text(encoding="utf-8").startswith("# ")
    recipe = recipe_file.load(path)
    for stage in chain.stages_of(recipe) or [recipe]:
        for term in (*stage.scheme.terms, *stage.scheme.exit_terms, *stage.scheme.peer_terms):
            check_options(term)
        assert not stage.warnings() or stage.options["output_weight"] == 0
        if stage.needs_teacher:
            for member in members_of(stage.teacher):
                assert member.name or member.options


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_every_recipe_has_a_page(path):
    said = README + "".join(TEXT.values())
    assert f"`{path.stem}`" in said or f"recipes/{path.name}" in said


RUN = {  # a few that are cheap: what is changed so that two steps take seconds
    "relation": [],
    "self_exits": [],
    "born_again": [],
}


@pytest.mark.parametrize("name", RUN)
def test_a_recipe_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for split in ("train", "test"):
        lines = [json.dumps({"text": text}) for text in sentences(12, seed=len(split))]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    changes = [f"data.source={tmp_path}", f"output={tmp_path / 'run'}", "train.steps=2", "train.batch_size=2"]
    recipe = recipe_file.load(ROOT / "recipes" / f"{name}.yaml", [*changes, *RUN[name]])
    if recipe.stages:
        said = chain.run_chain(recipe, compare=False)
        assert [stage["metrics"]["steps"] for stage in said["stages"]] == [2] * len(recipe.stages)
    else:
        assert fit(recipe).metrics["steps"] == 2


# ---- snippets


def snippets(kind: str) -> list:
    """Every fenced block of a language, with the page it stands on."""
    found = [(n, b) for n, text in TEXT.items() for b in re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)]
    return [pytest.param(block, id=f"{name}-{number}") for number, (name, block) in enumerate(found)]


@pytest.mark.parametrize("block", snippets("yaml"))
def test_yaml_is_a_recipe(block, tmp_path):
    path = tmp_path / "snippet.yaml"
    path.write_text(block, encoding="utf-8")
    recipe = recipe_file.load(path)
    for stage in chain.stages_of(recipe) or [recipe]:
        for term in stage.terms:
            check_options(term)


@pytest.mark.parametrize("block", snippets("python"))
def test_python_names_what_there_is(block):
    """Imports succeed, and every call of the finetuner fits the signature of a method that exists."""
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(getattr(module, alias.name) for alias in node.names)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _of_finetuner(node.func)]
    assert calls
    for call in calls:
        signature = inspect.signature(inspect.getattr_static(LLMFineTuner, call.func.attr))
        given = {keyword.arg: None for keyword in call.keywords}
        signature.bind(None, *[None] * len(call.args), **given)


def _of_finetuner(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "finetuner"
    )


def inline_calls() -> list:
    """Calls written within the text: `load_teacher_model("gpt2-xl", device="auto")`, `finetuner.sweep([...], rows)`."""
    found = [
        code for text in TEXT.values() for code in re.findall(r"`(?:finetuner\.)?(\w+\([^`\n]*\))`", text)
    ]
    return [code for code in found if code.split("(")[0] in dir(LLMFineTuner)]


@pytest.mark.parametrize("code", inline_calls())
def test_calls_in_the_text_fit(code):
    call = ast.parse(code).body[0].value
    signature = inspect.signature(inspect.getattr_static(LLMFineTuner, call.func.id))
    given = {keyword.arg: None for keyword in call.keywords}
    positional = [None] * len([a for a in call.args if not (isinstance(a, ast.Constant) and a.value is ...)])
    signature.bind_partial(None, *positional, **given)


# ---- commands


def commands() -> list[str]:
    """Command lines of all pages: indented ones, and those between backticks."""
    form = r"^ {4}python finetune_cli\.py ([^#\n]*)|`python finetune_cli\.py ([^`\n]*)`"
    found = [a or b for text in TEXT.values() for a, b in re.findall(form, text, re.MULTILINE)]
    headers = [re.sub(r"\\\n#\s*", "", path.read_text(encoding="utf-8")) for path in RECIPES]
    return found + [
        c for text in headers for c in re.findall(r"^#\s+python finetune_cli\.py (.*)$", text, re.MULTILINE)
    ]


def starts_with(word: str) -> list[str]:
    return sorted({command.strip() for command in commands() if command.split()[0] == word})


@pytest.mark.parametrize("command", starts_with("run"))
def test_run_commands_resolve(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(command) if not word.startswith("output=")]
    assert main([*words, f"output={tmp_path}", "--dry-run"]) == 0, command
    assert "student:" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted({command.strip() for command in commands()}))
def test_commands_parse(command):
    from llm_finetuner.cli.parser import parser

    parser().parse_args(shlex.split(command))


# ---- messages that pages quote


def messages() -> list[re.Pattern]:
    """Every text of the package, what is filled in left open."""
    found = []
    for path in (ROOT / "llm_finetuner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node.value]
            else:
                continue
            if sum(len(part) for part in parts if part) >= 8:
                found.append(re.compile("".join(".+" if part is None else re.escape(part) for part in parts)))
    return found


def quoted() -> list:
    """(page, message): the first column of the tables that begin with "You see"."""
    found = []
    for name, text in TEXT.items():
        for table in re.findall(r"\| You see \|.*?\n\|---\|---\|\n((?:\|.*\n)+)", text):
            for line in table.splitlines():
                cell = re.split(r"(?<!\\)\|", line)[1]
                found += [
                    pytest.param(code, id=f"{name}-{code[:40]}") for code in re.findall(r"`([^`]+)`", cell)
                ]
    return found


@pytest.fixture(scope="module")
def texts() -> list[re.Pattern]:
    return messages()


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_one_that_the_program_says(message, texts):
    assert any(text.fullmatch(message) for text in texts), message


# ---- nothing is left out, nothing is stale


@pytest.mark.parametrize("name", sorted({*METHODS, *OBJECTIVES, *TEACHERS}))
def test_every_name_has_its_options_on_a_page(name):
    kinds = {**{n: "teacher" for n in TEACHERS}, **{n: "objectives" for n in OBJECTIVES}}
    kind = kinds.get(name, "method")
    assert re.search(rf"<!-- options: {kind}(?: \w+)* {name}\b", "".join(TEXT.values())), name


def test_every_layer_map_is_told_of():
    assert all(f"| `{name}` |" in TEXT["features.md"] for name in layer_maps.NAMED)


def test_tables_of_options_are_fresh():
    command = [sys.executable, str(ROOT / "docs" / "options.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"run: python docs/options.py\n{done.stdout}{done.stderr}"


@pages
def test_links_lead_somewhere(page):
    for target, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", TEXT[page]):
        path = ROOT / "docs" / target if target else ROOT / "docs" / page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}, heading


@pages
def test_every_page_says_what_a_gain_is_held_against(page):
    assert f"docs/{page})" in README
    assert "what-a-gain-must-be-held-against" in TEXT[page] or page == "notation.md"


def test_the_recipes_named_in_the_text_are_there():
    named = {name for text in TEXT.values() for name in re.findall(r"recipes/(\w+)\.yaml", text)}
    assert named <= {path.stem for path in RECIPES}


def test_headers_of_recipes_are_filled_in():
    assert not any("Expect: {" in path.read_text(encoding="utf-8") for path in RECIPES)
