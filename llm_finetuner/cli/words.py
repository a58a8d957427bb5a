"""A recipe as the words of the command that gives it again."""

import json
from typing import Any

from llm_finetuner.cli.settings import (
    KEPT,
    MEMBERS,
    SHAPES,
    Setting,
    build,
    fields_of,
    kind_of_teacher,
    options_in,
    settings,
    task_of,
)
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Model, Recipe, Teacher, members_of
from llm_finetuner.recipe_series import OF_MODELS
from llm_finetuner.registry import MENU, MODELS, TEACHERS, menu_entry, options_of, resolve

WHOLE = ("options.objectives", "data.only", "data.class_weights", *SHAPES)  # mappings that are one setting


def words_of(recipe: Recipe) -> list[str]:
    """The command's words after `python finetune_cli.py` that give this recipe again."""
    distil = recipe.distils
    entry = next((e for e in MENU.values() if e[1:3] == (recipe.method, recipe.tuning.kind)), None)
    entry = entry or next((e for e in MENU.values() if e[1] == recipe.method), menu_entry(4 if distil else 6))
    words = ["distill" if distil else "finetune", "--method", entry[0]]
    extra: list[str] = []
    known = {s.path: s for s in reversed(settings(distil))}
    for s in options_in_use(recipe, distil):
        known[s.path] = s
    if recipe.tuning.kind != entry[2]:
        words += [known["tuning.kind"].flag, recipe.tuning.kind]
    changed = _changed(recipe, entry[0], distil)
    members = changed.get(MEMBERS)
    if members and not (len(members) > 1 and all(isinstance(m, str) and _safe(m) for m in members)):
        # a kind without its members is refused, so all of it is set together
        for path in [
            path for path in changed if path == "teacher.kind" or path.startswith("teacher.options.")
        ]:
            extra += _assignment(path, changed.pop(path))
    elif members:
        words += [known[MEMBERS].flag, *changed.pop(MEMBERS)]
        changed.pop("teacher.kind", None)
    for path, value in changed.items():
        setting = known.get(path)
        if setting is None or _lost(setting, value):
            extra += _assignment(path, value)
        elif isinstance(value, bool):
            words.append(setting.flag if value else setting.flag.replace("--", "--no-", 1))
        else:
            words += [setting.flag, *setting.words(value)]
    return words + extra


def options_in_use(recipe: Recipe, distil: bool) -> list[Setting]:
    """The options as the recipe's own kind of teacher has them; another kind's may have the same name."""
    kind = recipe.teacher.kind if distil and recipe.teacher else "live"
    return options_in(TEACHERS, kind, "teacher.options") if kind in TEACHERS else []


def _changed(recipe: Recipe, entry: str, distil: bool) -> dict[str, Any]:
    """What differs from the menu entry as it is, by path."""
    plain = flatten(build(entry, {"task": recipe.task, "tuning.kind": recipe.tuning.kind}).to_dict())
    plain["task"] = task_of(None, recipe.method)  # another one is said, for flags are read by it
    if distil:
        plain.update({s.path: s.default for s in fields_of(Teacher, "teacher")})
        plain.update({s.path: s.default for s in options_in_use(recipe, distil)})
        plain.update({f"teacher.{name}": getattr(Teacher, name) for name in KEPT})
        plain["teacher.options"] = {}
    plain["teacher"] = None
    flat = flatten(recipe.to_dict())
    for path, model in zip(SHAPES, (recipe.student, recipe.teacher), strict=True):
        if model is not None:
            flat[path], plain[path] = shape_given(model), {}
    if recipe.teacher is not None and MEMBERS in flat:
        given = zip(flat[MEMBERS], members_of(recipe.teacher), strict=True)
        flat[MEMBERS] = [one.name if _is_plain(told, one) else told for told, one in given]
    changed = {path: value for path, value in flat.items() if path not in plain or plain[path] != value}
    if kind_of_teacher(changed) == changed.get("teacher.kind") and MEMBERS not in changed:
        changed.pop("teacher.kind", None)
    return changed


def _is_plain(told: Any, member: Teacher) -> bool:
    """Whether the name says all of a member: its shape is as it is anyway."""
    built = isinstance(told, dict) and told.keys() == {"name", "shape"} and member.name in MODELS
    return built and not shape_given(member)


def shape_given(model: Model) -> dict[str, Any]:
    """What a model's shape says beside what the series ask of it and what is so anyway."""
    usual = options_of(resolve(MODELS, model.name)) if model.name in MODELS else {}
    return {
        name: value
        for name, value in model.shape.items()
        if name not in OF_MODELS and (name not in usual or value != usual[name])
    }


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"seed": 1}} -> {"train.seed": 1}; mappings that are one setting stay whole."""
    paths: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict) and value and f"{prefix}{name}" not in WHOLE
        paths.update(flatten(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value})
    return paths


def _assignment(path: str, value: Any) -> list[str]:
    return ["--set", f"{path}={json.dumps(value)}"]


def _safe(word: str) -> bool:
    return bool(word) and not word.startswith("-") and "," not in word


def _lost(setting: Setting, value: Any) -> bool:
    """Whether the value would not survive being typed: text that reads as None, starts with a dash, ..."""
    if isinstance(value, bool):
        return False
    words = setting.words(value)
    return any(word.startswith("-") for word in words) or _typed(setting, words) != value


def _typed(setting: Setting, words: list[str]) -> Any:
    try:
        return setting.parse(words if setting.is_list else words[0])
    except RecipeError:
        return None
