"""Writes the tables of options in docs/*.md from the signatures that they describe.

    python docs/options.py            # after a change of an option, a default or a docstring
    python docs/options.py --check    # exit code 1 where a page is not fresh

A table stands between two comments, which stay:

    <!-- options: method feature_distillation -->
    <!-- end -->

Kinds: method NAME, teacher NAME, objectives NAME ..., call MODULE:FUNCTION, fields CLASS NAME ..., maps, methods.
"""

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llm_finetuner import layer_maps, recipe, recipe_series  # noqa: E402
from llm_finetuner.registry import METHODS, OBJECTIVES, TEACHERS, options_of, resolve  # noqa: E402

BLOCK = re.compile(r"(<!-- options: (\w+)((?: [\w.:]+)*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
DEPTHS = (4, 12)  # of the example of the layer maps: student and teacher
REQUIRED = "(to be given)"


def main(arguments: Sequence[str]) -> int:
    """Renew all pages, or with --check tell which are not fresh."""
    stale = []
    for page in sorted(Path(__file__).parent.glob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = renewed(before)
        if after == before:
            continue
        stale.append(page.name)
        if "--check" not in arguments:
            page.write_text(after, encoding="utf-8")
    if stale:
        print(f"{'not fresh' if '--check' in arguments else 'renewed'}: {', '.join(stale)}")
    return int(bool(stale) and "--check" in arguments)


def renewed(text: str) -> str:
    """A page with its tables written anew. Raises KeyError for a kind of table that there is not."""

    def table(match: re.Match) -> str:
        begin, kind, names, _, end = match.groups()
        return f"{begin}{TABLES[kind](names.split())}\n{end}"

    return BLOCK.sub(table, text)


def of_function(function: Callable) -> str:
    """The docstring, and a row for every option."""
    parameters = inspect.signature(function).parameters.values()
    options = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("parts", "on_event")]
    rows = [(f"`{p.name}`", default_of(p.default), annotation(p.annotation)) for p in options]
    said = escaped(inspect.getdoc(function) or "")
    return (
        f"{said}\n\n{grid(('option', 'default', 'kind'), rows)}" if rows else f"{said}\n\nIt has no options."
    )


def of_method(names: list[str]) -> str:
    return of_function(resolve(METHODS, names[0], "method"))


def of_teacher(names: list[str]) -> str:
    return of_function(resolve(TEACHERS, names[0], "kind of teacher"))


def of_call(names: list[str]) -> str:
    return of_function(resolve({}, names[0]))


def of_objectives(names: list[str]) -> str:
    """A row for every objective: its name, options, and the first paragraph of its docstring."""
    rows = []
    for name in names:
        function = resolve(OBJECTIVES, name, "objective")
        options = ", ".join(f"`{option}={default!r}`" for option, default in options_of(function).items())
        said = (inspect.getdoc(function) or "").split("\n\n")[0]
        rows.append((f"`{name}`", options or "none", escaped(" ".join(said.split()))))
    return grid(("objective", "options", "what it is"), rows)


def of_fields(names: list[str]) -> str:
    """A row for each of these fields of a section of the recipe; without names, for all."""
    section, *wanted = names
    rows = []
    for field in dataclasses.fields({**vars(recipe_series), **vars(recipe)}[section]):
        if wanted and field.name not in wanted:
            continue
        known = field.default is not dataclasses.MISSING
        default = field.default if known else field.default_factory()
        rows.append((f"`{field.name}`", default_of(default), annotation(field.type)))
    return grid(("setting", "default", "kind"), rows)


def of_maps(_: list[str]) -> str:
    """A row for every named layer map, with its pairs for an example."""
    student, teacher = DEPTHS
    rows = [
        (f"`{name}`", ", ".join(f"{s}-{t}" for s, t in layer_maps.layer_pairs(name, student, teacher)))
        for name in layer_maps.NAMED
    ]
    pairs = layer_maps.layer_pairs(None, student, teacher)
    rows.append(("left out", ", ".join(f"{s}-{t}" for s, t in pairs)))
    return grid(("map", f"student block - teacher block, {student} blocks from {teacher}"), rows)


def of_methods(_: list[str]) -> str:
    """A row for every method: its name, its options, and its first line."""
    rows = []
    for name in METHODS:
        function = resolve(METHODS, name, "method")
        said = (inspect.getdoc(function) or "").splitlines()[0]
        rows.append((f"`{name}`", ", ".join(f"`{option}`" for option in options_of(function)), escaped(said)))
    return grid(("method", "options", "loss"), rows)


TABLES: dict[str, Callable[[list[str]], str]] = {
    "method": of_method,
    "teacher": of_teacher,
    "call": of_call,
    "objectives": of_objectives,
    "fields": of_fields,
    "maps": of_maps,
    "methods": of_methods,
}


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def default_of(value: Any) -> str:
    """As YAML writes it."""
    if value is inspect.Parameter.empty:
        return REQUIRED
    if value is None or isinstance(value, bool) or value == "":
        return f"`{json.dumps(value)}`"
    return f"`{value}`"


def annotation(kind: Any) -> str:
    """`float | None` as words. Annotations are text where a file postpones them."""
    text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    for old, new in (("collections.abc.", ""), ("typing.", ""), (" | ", " or "), ("None", "null")):
        text = text.replace(old, new)
    return text


def escaped(text: str) -> str:
    """A docstring as Markdown: KL(p || q) is not the edge of a table, 1 / (a * b) no emphasis."""
    parts = text.replace("|", r"\|").split("`")
    return "`".join(x if i % 2 else x.replace("*", r"\*").replace("<", "&lt;") for i, x in enumerate(parts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
