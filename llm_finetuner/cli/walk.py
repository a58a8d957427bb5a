"""Walks through the questions, forwards and back. Answers given once stay as defaults."""

import dataclasses
from typing import Any

from llm_finetuner.cli import imports, prompts, series_questions
from llm_finetuner.cli.asking import NEW_STAGE, STAGE, so_far
from llm_finetuner.cli.chains import chain_of
from llm_finetuner.cli.hub import names_in, prepare
from llm_finetuner.cli.prompts import BACK, Ask, Pick
from llm_finetuner.cli.purpose import task_of
from llm_finetuner.cli.questions import Question, questions
from llm_finetuner.cli.settings import fields_of
from llm_finetuner.errors import FinetunerError, ModelError, RecipeError
from llm_finetuner.recipe import Data, Recipe
from llm_finetuner.recipe_series import FORECASTING, REGRESSION

COLUMNS = ("Name the columns", "Which are read; the last one is learned")
OTHERWISE = ("Read it otherwise", "Columns, gaps, times, how it is cut")


def _number(key: str) -> int:
    """Which student of a chain a key is of."""
    return int(key.removeprefix(STAGE)) if key.startswith(STAGE) else 0


class Walk:
    """One way through the questions of a method. `forward()` asks what is not answered; `back()` takes one back.

    job: train, chain, cache or write.
    """

    def __init__(self, method: str, screen: Any, job: str = "train"):
        self.answers: dict[str, Any] = {"method": method, "job": job}
        self.typed: dict[
            str, Any
        ] = {}  # answers that differ from what was offered: defaults when asked again
        self.done: list[str] = []
        self.screen = screen

    def forward(self) -> Recipe | object:
        """Ask until nothing is left to ask; the recipe, or BACK from the first question."""
        while True:
            step = self._next()
            if step is None:
                try:
                    return self.recipe()
                except RecipeError as error:  # settings that are wrong together only
                    self.screen.error(error)
                    self.back()
                    continue
            question, why = step
            answer = self._look() if question.key == "data.look" else self._ask(question, why)
            if answer is BACK:
                if not self.back():
                    return BACK
            else:
                self.answers[question.key] = answer
                self.done.append(question.key)

    def back(self) -> bool:
        """Take the last answer back; False where there is none."""
        if self.done:
            self.answers.pop(self.done.pop(), None)
            if not prompts.take_back():
                prompts.note("(back)")
            return True
        return False

    def recipe(self) -> Recipe:
        """The recipe of the answers. Raises RecipeError."""
        recipe = so_far(self.answers)
        students = [self.answers[key] for key in sorted(self.answers, key=_number) if key.startswith(STAGE)]
        new = [int(k.removeprefix(NEW_STAGE)) for k in self.answers if k.startswith(NEW_STAGE)]
        return chain_of(recipe, [name for name in students if name], new) if students else recipe

    def _next(self) -> tuple[Question, str] | None:
        for question, why in questions(self.answers):
            asked = question.key in self.done
            if not asked and (question.key == "data.look" or question.make(self.answers) is not None):
                return question, why
        return None

    def _ask(self, question: Question, why: str) -> Any:
        prompt = question.make(self.answers)
        offered = prompt.default
        if question.key in self.typed:
            prompt = dataclasses.replace(prompt, default=self.typed[question.key])
        answer = prompts.ask_plain(question.title, why, prompt)
        if answer is BACK:
            return BACK
        self.typed.pop(question.key, None)
        if answer != offered:
            self.typed[question.key] = answer
        return prompt.parse(answer) if isinstance(prompt, Ask) else answer

    # ---- data

    def _look(self) -> Any:
        """Show how the data are read; go on, go back, name the columns, or leave bad rows out."""
        while True:
            choices = [("back", "Other data", "Back to the question for the data", None)]
            if task_of(self.answers) != REGRESSION:  # whose files name no columns
                choices.insert(0, ("columns", *(OTHERWISE if self._of_series else COLUMNS), None))
            default, failed = choices[0][0], self._show()
            if failed is None:
                choices.insert(0, ("yes", "Yes, go on", "", None))
                default = "yes"
            else:
                self.screen.error(failed)
                if "on-bad-row" in failed.hint:
                    choices.insert(0, ("skip", "Leave bad rows out", "They are counted and listed", None))
                    default = "skip"
                elif isinstance(failed, ModelError):
                    choices.insert(
                        0, ("model", "Another model", "Back to the question for the student", None)
                    )
                    default = "model"
                elif not series_questions.mends(failed):
                    default = "back"
            title = "Are the data read as you mean them?" if failed is None else "What now?"
            answer = prompts.ask(title, "", Pick(choices, default))
            if answer == "model":
                models = ("student.name", "teacher.name", f"{STAGE}1")
                while self.done[-1] not in models:
                    self.back()
                return BACK
            if answer in (BACK, "back"):
                for path in ("data.text_columns", "data.on_bad_row", *series_questions.OF_TABLE):
                    self.answers.pop(path, None)
                while answer == "back" and self.done[-1] != "data.source":
                    self.back()
                return BACK
            if answer == "yes":
                return answer
            if answer == "skip":
                self.answers["data.on_bad_row"] = "skip"
            elif answer == "columns":
                changed = self._changed(failed)
                self.answers |= {} if changed is BACK else changed

    @property
    def _of_series(self) -> bool:
        return task_of(self.answers) == FORECASTING

    def _changed(self, failed: FinetunerError | None) -> Any:
        """Answers to how the data are read; or BACK."""
        if self._of_series:
            return series_questions.read_otherwise(self.answers, failed)
        setting = next(s for s in fields_of(Data, "data") if s.path == "data.text_columns")
        given = setting.spell(self.answers.get(setting.path))
        told = "Separated by commas; auto: recognise them."
        named = prompts.ask("Columns", told, Ask(given, setting.parse))
        return BACK if named is BACK else {setting.path: named}

    def _show(self) -> FinetunerError | None:
        """Print the preview; what went wrong, if something did."""
        from llm_finetuner.cli.preview import look

        prompts.note("Reading the data ... (the first time torch is loaded, which takes a while)")
        imports.wait()  # a broken library is no mistake of the data, so it is raised
        try:
            recipe = self.recipe()
            prepare(names_in(recipe), self.screen.warn)
            sight = look(recipe)
        except FinetunerError as error:
            return error
        sight.show(self.screen)
        return None
