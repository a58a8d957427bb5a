"""A run, written down: frozen dataclasses of names and numbers (recipe_file.py reads and writes them).

What is learned (`method` and its `options`) and which weights move (`tuning`) are two choices. Live objects handed to
LLMFineTuner travel beside the recipe, never in it.
"""

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any

from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe_sections import (
    PLAIN_METHODS,
    Data,
    Model,
    Teacher,
    Train,
    Tuning,
    check_adapter,
    members_of,
)
from llm_finetuner.recipe_series import FORECASTING, OF_MODELS, OF_NUMBERS, OF_SEQUENCES, REGRESSION
from llm_finetuner.registry import (
    METHODS,
    MODELS,
    OPTIMIZERS,
    SCHEDULES,
    TASKS,
    TEACHERS,
    TUNINGS,
    fill_options,
    options_of,
    plain,
    resolve,
    unknown,
)
from llm_finetuner.scheme import Scheme, Term

NUMBERS = {FORECASTING: "forecasts", REGRESSION: "answers"}  # what a temperature, which cancels, would soften


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs to be repeated. Raises RecipeError naming the field, the value and what was expected."""

    method: str = "fine_tuning"
    options: dict[str, Any] = field(default_factory=dict)
    task: str = "causal_lm"
    student: Model = Model()
    tuning: Tuning = Tuning()
    teacher: Teacher | None = None
    data: Data = Data()
    train: Train = Train()
    stages: list[dict[str, Any]] = field(
        default_factory=list
    )  # a chain: what each stage changes (see chain.py)
    output: str = "outputs/run"

    def __post_init__(self):
        for what, table, name in (
            ("task", TASKS, self.task),
            ("optimizer", OPTIMIZERS, self.train.optimizer),
            ("schedule", SCHEDULES, self.train.schedule),
            ("kind of teacher", TEACHERS, self.teacher.kind if self.teacher else "live"),
        ):
            if name not in table and ":" not in name:
                raise unknown(what, name, table)
        method = resolve(METHODS, self.method, "method")
        tuning = resolve(TUNINGS, self.tuning.kind, "tuning")
        object.__setattr__(self, "options", fill_options(self.method, method, self.options))
        filled = fill_options(self.tuning.kind, tuning, self.tuning.options)
        if isinstance(filled.get("target_modules"), str):
            filled["target_modules"] = [filled["target_modules"]]
        object.__setattr__(self, "tuning", Tuning(self.tuning.kind, filled))
        check_adapter(filled)
        if self.teacher is not None:
            kind = resolve(TEACHERS, self.teacher.kind, "kind of teacher")
            options = fill_options(self.teacher.kind, kind, self.teacher.options)
            teacher = _with_members(replace(self.teacher, options=options), self.data)
            object.__setattr__(self, "teacher", shaped(teacher, self.data))
            for member in members_of(self.teacher):
                fill_options(member.kind, resolve(TEACHERS, member.kind, "kind of teacher"), member.options)
        object.__setattr__(self, "student", shaped(self.student, self.data))
        scheme = method(**self.options)  # raises now what would be wrong later
        if scheme.on_policy and self.train.max_tokens:
            raise RecipeError(
                f"{self.method} and train.max_tokens: how long the student's own texts get is not known before",
                "leave max_tokens out and set batch_size; packing works",
            )

    @property
    def scheme(self) -> Scheme:
        """What the method comes to, without the terms that do not count."""
        scheme = resolve(METHODS, self.method)(**self.options)
        return scheme.with_terms(lambda terms: (term for term in terms if term.counts))

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms of the student's loss that count."""
        return self.scheme.terms

    @property
    def distils(self) -> bool:
        """Whether anybody teaches: a teacher, peers, or the student itself."""
        return self.method not in PLAIN_METHODS

    @property
    def needs_teacher(self) -> bool:
        """Whether the recipe has to name a teacher."""
        return self.scheme.teacher in ("given", "peers")

    @property
    def inherits(self) -> bool:
        """Whether a student that is built here begins with what matters of its teacher's weights."""
        if self.student.init != "auto":
            return self.student.init == "teacher"
        loaded = self.teacher is not None and self.teacher.kind in ("live", "live_cached")
        return self.student.name in OF_SEQUENCES and self.scheme.teacher == "given" and loaded

    def warnings(self) -> list[str]:
        """Settings that will have no effect, or another effect than users expect."""
        said = []
        scheme = self.scheme
        names = {term.objective for term in (*scheme.terms, *scheme.exit_terms)}
        heated = any("temperature" in term.options for term in (*scheme.terms, *scheme.exit_terms))
        numbers = self.task in OF_NUMBERS
        if self.options.get("temperature") is not None and (numbers or not heated):
            why = "output_weight is 0" if "output_weight" in self.options else "alpha is 1"
            why = f"{NUMBERS[self.task]} are numbers, and it softens probabilities" if numbers else why
            said.append(f"temperature={self.options['temperature']} has no effect: {why}")
        truth_alone = names in ({"cross_entropy"}, {"mse"}) and not self.inherits
        if self.needs_teacher and truth_alone and scheme.writing is None:
            what = "beta=0" if "beta" in self.options else "alpha=1"
            said.append(
                f"{what} gives all weight to the ground truth: this is plain fine-tuning, the teacher is not used"
            )
        cut = self.student.name.strip().startswith("teacher/")  # then the student is made of it
        if self.student.mixer != Model.mixer and self.student.name and not cut:
            said.append(
                f"student.mixer={self.student.mixer} has no effect: it is for a student named teacher/1, teacher/2"
            )
        if self.distils and not self.needs_teacher and self.teacher is not None and not cut:
            source = self.teacher.name or self.teacher.options.get("path") or self.teacher.kind
            said.append(f"the teacher {source} is not used: {self.method} has the student teach itself")
        if self.data.prefix and self.task != "seq2seq_lm":
            said.append(f"data.prefix has no effect: {self.task} has no sources that it could stand before")
        if self.data.class_weights and "cross_entropy" not in names:
            said.append("data.class_weights has no effect: it is for cross-entropy, which has no weight here")
        if self.data.mask == "fresh" and self.task != "masked_lm":
            said.append(f"data.mask has no effect: {self.task} hides no tokens")
        if self.train.patience and self.train.eval_every == 0:
            said.append("patience has no effect: train.eval_every is 0")
        return said

    def to_dict(self) -> dict[str, Any]:
        return plain(dataclasses.asdict(self))


def check_labelled(recipe: Recipe, labels: bool) -> None:
    """Raise RecipeError for settings of labels where the answers of the task are none."""
    for name in ("label_names", "class_weights"):
        if vars(recipe.data)[name] and not labels:
            raise RecipeError(
                f"data.{name} is for labels, and a model for {recipe.task} answers in tokens", "leave it out"
            )


def with_method(recipe: Recipe, method: str, **options) -> Recipe:
    """The same run with another method; without a teacher, and its weights, where the method needs none."""
    alone = method == "fine_tuning"
    student = replace(recipe.student, init="seed") if alone else recipe.student
    teacher = None if alone else recipe.teacher
    return replace(recipe, method=method, options=options, student=student, teacher=teacher)


def shaped(model: Model, data: Data) -> Model:
    """A model that is built here, with what the series ask of it: its look-back, horizon, quantiles, description."""
    if model.name not in MODELS:
        return model
    make = resolve(MODELS, model.name)
    asked = {name: vars(data.series)[name] for name in OF_MODELS if name in options_of(make)}
    return replace(model, shape=fill_options(model.name, make, {**model.shape, **asked}))


def _with_members(teacher: Teacher, data: Data) -> Teacher:
    """An ensemble with the shapes of those of its members that are built here; any other teacher as it is."""
    if teacher.kind != "ensemble":
        return teacher
    members = []
    for given, member in zip(teacher.options["members"], members_of(teacher), strict=True):
        settings = {"name": given} if isinstance(given, str) else given
        built = member.name in MODELS
        members.append({**settings, "shape": shaped(member, data).shape} if built else given)
    return replace(teacher, shape={}, options={**teacher.options, "members": members})
