"""The layer rules of the architecture, held by reading the imports of every file."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "llm_finetuner"
LAYERS = [  # bottom first; a name is a folder, or a file without .py
    {
        "objectives",
        "kernels",
        "models",
        "log_space",
        "sequences",
        "ranges",
        "ramp",
        "chunks",
        "layer_maps",
        "output",
        "errors",
    },
    {
        "engine",
        "data",
        "tuning",
        "scheme",
        "recipe",
        "recipe_file",
        "recipe_sections",
        "recipe_series",
        "registry",
        "optim",
        "checkpoint",
        "run",
        "assets",
    },
    {
        "assembly",
        "task",
        "terms",
        "learner",
        "response",
        "checks",
        "named_models",
        "teaching",
        "rollout",
        "writing",
        "tasks",
        "teachers",
        "methods",
        "benchmark",
        "report",
        "search",
        "export",
        "gauges",
    },
    {"trainer"},
    {
        "finetuner",
        "judging",
        "setup_methods",
        "teacher_methods",
        "comparison",
        "finished",
        "seeds",
        "share",
        "chain",
        "cache_job",
        "writing_job",
        "export_job",
        "forecast_methods",
        "forecasting_job",
        "quickstart",
        "sweep",
    },
    {"cli"},
    {"finetune_cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS, 1) for name in names}
SIBLINGS_APART = {"tasks", "methods", "objectives"}
ONLY_IN = {  # who alone may import it, at the top or inside a function
    "accelerate": ("engine.py",),
    "rich": ("cli/",),
    "questionary": ("cli/",),
    "optuna": ("search/optuna_search.py",),
    "onnxruntime": ("export/parity.py",),
    "bitsandbytes": ("tuning/qlora.py", "models/loading.py", "optim.py"),  # optim.py: the 8-bit AdamW
}
LIGHT = {
    "errors",
    "registry",
    "recipe",
    "recipe_file",
    "recipe_sections",
    "recipe_series",
    "methods",
    "cli",
    "finetune_cli",
}
HEAVY = ["torch", "transformers", "datasets", "peft"]  # what LIGHT must not bring in when it is imported
FILES = sorted(file for file in [*PACKAGE.rglob("*.py"), ROOT / "finetune_cli.py"] if file.exists())


def place(file: Path) -> str:
    """`tasks/causal_lm.py`: where the file stands in the package."""
    return file.relative_to(ROOT).as_posix().removeprefix("llm_finetuner/")


def home(file: Path) -> str:
    """`tasks`: what LAYERS calls the place of the file."""
    return place(file).split("/")[0].removesuffix(".py")


def imports(file: Path) -> list[str]:
    """Dotted names of all that the file imports, in functions too; `from a import b` gives a.b."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            names += [".".join([*package, *filter(None, [node.module]), alias.name]) for alias in node.names]
    return names


def our_file(name: str) -> Path | None:
    """The file of ours an imported name leads to, or None: a.b.c is a/b/c.py, a/b.py or a/b/__init__.py."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        stem = ROOT.joinpath(*parts[:end])
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if file in FILES:
                return file
    return None


@pytest.mark.parametrize("file", [file for file in FILES if file != PACKAGE / "__init__.py"], ids=place)
def test_imports_keep_the_layers(file):
    assert home(file) in LEVEL, f"{place(file)} has no layer: give {home(file)!r} one in LAYERS"
    for name in imports(file):
        top, other = name.split(".")[0], our_file(name)
        allowed = ONLY_IN.get(top)
        assert allowed is None or place(file).startswith(allowed), f"{place(file)}: {top} only in {allowed}"
        if other in (None, file, PACKAGE / "__init__.py"):
            continue
        assert home(other) in LEVEL, f"{place(other)} has no layer: give {home(other)!r} one in LAYERS"
        assert LEVEL[home(other)] <= LEVEL[home(file)], f"{place(file)} imports {name}: arrows run down only"
        siblings = home(other) == home(file) in SIBLINGS_APART and file.name != "__init__.py"
        assert not siblings, f"{place(file)} imports its sibling {name}"


def test_no_file_imports_itself_in_a_circle():
    graph = {file: {our_file(name) for name in imports(file)} - {None, file} for file in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError and names the circle


def test_light_files_bring_in_nothing_heavy():
    names = [file.relative_to(ROOT).with_suffix("").as_posix() for file in FILES if home(file) in LIGHT]
    code = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += f"sys.exit(', '.join(name for name in {HEAVY} if name in sys.modules) or 0)"
    modules = [name.removesuffix("/__init__").replace("/", ".") for name in names]
    run = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, f"on import of {', '.join(modules)}: {run.stderr}"


@pytest.mark.parametrize("file", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=place)
def test_files_are_short_and_ascii(file):
    text = file.read_text(encoding="utf-8")
    assert text.isascii(), f"{place(file)}: {sorted(set(filter(lambda c: not c.isascii(), text)))}"
    assert len(text.splitlines()) <= 350, f"{place(file)} is longer than 350 lines; where is the seam?"


def test_every_folder_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in FILES if PACKAGE in file.parents}
    assert {name for name in listed if "_shipped" not in name} == folders
