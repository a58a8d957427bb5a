"""A question of the wizard, and those that are made from settings: their types say how to ask."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_finetuner.cli import spoken
from llm_finetuner.cli.answers import NEW_CACHE, members_typed, newest_cache, teacher_answers
from llm_finetuner.cli.fitting import check_models
from llm_finetuner.cli.prompts import Ask, Mark, Pick
from llm_finetuner.cli.purpose import task_of
from llm_finetuner.cli.settings import MEMBERS, Setting, build, fields_of, options_in
from llm_finetuner.methods.mixture import DEFAULT
from llm_finetuner.recipe import Data, Recipe, Train, Tuning
from llm_finetuner.recipe_series import Series
from llm_finetuner.registry import METHODS, TUNINGS, resolve

Answers = dict[str, Any]
Steps = list[tuple["Question", str]]
ONLY_WITH = {"options.exits": ("options.by", "exits"), "options.decay": ("options.by", "average")}


STAGE, NEW_STAGE = (
    "stage.",
    "new_stage.",
)  # keys of a chain's students, and of whether they start from new weights
SECTIONS = {"train": Train, "data": Data, "data.series": Series}  # that check their fields
NO_SETTINGS = ("method", "advanced", "more", "data.look")  # answers that are no setting of a recipe
SHARE = "job.share"  # of the teacher, in place of alpha and beta
FITTED = (  # what is held against the models that were named before
    "options.exits", "options.feature_layers", "options.layers", "options.objectives", "teacher.options.weights",
    "teacher.options.path", "teacher.options.members",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One step. `make` returns what to draw, or None where the question makes no sense for these answers."""

    key: str
    make: Callable[[Answers], Ask | Pick | Mark | None]
    name: str = ""

    @property
    def title(self) -> str:
        plain = self.key.rsplit(".", 1)[-1].replace("_", " ").capitalize()
        return self.name or spoken.TITLES.get(self.key, plain)

    def why(self, setting_help: str = "") -> str:
        return spoken.WHY.get(self.key, setting_help)


def plain(key: str, make: Callable[[Answers], Ask | Pick | Mark | None]) -> tuple[Question, str]:
    question = Question(key, make)
    return question, question.why()


def known(*paths: str) -> Steps:
    """Questions made from fields of the data and the training."""
    found = {s.path: s for s in (*fields_of(Train, "train"), *fields_of(Data, "data"))}
    return [
        (question, question.why(told)) for question, told in (from_setting(found[path]) for path in paths)
    ]


def describe(setting: Setting) -> str:
    return f"{setting.name} = {setting.spell(setting.default)}: {setting.help}"


def from_setting(setting: Setting) -> tuple[Question, str]:
    """A question made from a field or an option: its type says how to ask, the recipe's own check is the validation."""
    question = Question(setting.path, lambda answers: prompt_for(setting, answers))
    return question, question.why(setting.help)


def prompt_for(setting: Setting, answers: Answers) -> Ask | Pick | None:
    """Choices become a list, yes or no too; all else is typed. None where another answer makes it pointless."""
    needs, value = ONLY_WITH.get(setting.path, ("", None))
    if needs and answers.get(needs, value) != value:
        return None
    if bool in setting.kinds:
        return Pick([(True, "yes", "", None), (False, "no", "", None)], setting.default)
    if setting.choices:
        told = spoken.BY if setting.path == "options.by" else {}
        return Pick([(name, name, told.get(name, ""), None) for name in setting.choices], setting.default)

    def parse(typed: str) -> Any:
        value = members_typed(typed) if setting.path == MEMBERS else setting.parse(typed)
        check(setting, value, answers)
        return value

    parse = fitted(parse, setting.path, answers) if setting.path in FITTED else parse
    if setting.path == MEMBERS:
        return Ask(spoken.MEMBERS.get(task_of(answers), spoken.EXAMPLE_TEACHER), parse)
    if setting.path == "teacher.options.path":
        return Ask(newest_cache() if setting.owner == "cached" else NEW_CACHE, parse, is_path=True)
    return Ask(setting.spell(DEFAULT if setting.path == "options.objectives" else setting.default), parse)


def so_far(answers: Answers) -> Recipe:
    """The recipe of the answers, all else as it is without. Raises RecipeError."""
    own = ("job", STAGE, NEW_STAGE)
    paths = {
        key: value for key, value in answers.items() if key not in NO_SETTINGS and not key.startswith(own)
    }
    if answers.get("job") == "write":
        paths["student.name"] = paths.get("teacher.name", "")
    return build(answers["method"], {**paths, **_weights(answers.get(SHARE))})


def _weights(share: float | str | None) -> dict[str, Any]:
    """alpha and beta of a share."""
    if share is None or isinstance(share, str):
        return {} if share is None else {"options.beta": share}
    return {"options.alpha": round(1 - share, 10), "options.beta": share}


def fitted(parse: Callable[[str], Any], path: str, answers: Answers) -> Callable[[str], Any]:
    """`parse`, and what it gives is held against the models that were named before."""

    def parse_and_check(typed: str) -> Any:
        value = parse(typed)
        check_models(so_far({**answers, path: value}))
        return value

    return parse_and_check


def check(setting: Setting, value: Any, answers: Answers) -> None:
    """Hold the value against the section or the method it belongs to. Raises RecipeError."""
    section, name = setting.path.rsplit(".", 1)
    if section in SECTIONS:
        SECTIONS[section](**{name: value})
    elif section == "options":
        resolve(METHODS, setting.owner)(**{name: value})
    elif section == "teacher.options" and setting.owner != "live_cached":
        teacher_answers(name, value)
    elif section == "tuning.options":
        before = {
            s.name: answers[s.path] for s in options_in(TUNINGS, setting.owner, section) if s.path in answers
        }
        Recipe(tuning=Tuning(setting.owner, {**before, name: value}))
