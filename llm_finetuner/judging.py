"""What LLMFineTuner does with a model after (or before) training: evaluate, generate, benchmark, compare, hand over."""

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_finetuner import comparison, export_job
from llm_finetuner.assembly import Parts, fit_length
from llm_finetuner.benchmark import text as generation
from llm_finetuner.benchmark.quality import eval_mode, evaluate
from llm_finetuner.checks import common_vocabulary, read_alike
from llm_finetuner.data import sources
from llm_finetuner.errors import DataError, ModelError, OrderError, RecipeError
from llm_finetuner.export.beside import stop_early
from llm_finetuner.export.hub import upload
from llm_finetuner.export.merged import Merged
from llm_finetuner.models import loading
from llm_finetuner.models.shrink import parse_share
from llm_finetuner.recipe import Data, Recipe
from llm_finetuner.registry import TASKS, resolve
from llm_finetuner.teachers.matched import live_teacher
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.trainer import OnEvent, TrainResult
from llm_finetuner.tuning.tuned import Tuned

TEACHER_THEN_STUDENT = (
    "load_teacher_model(...) with one live teacher first, then load_model(...) or student_from_teacher(...)"
)
OF_SERIES = (
    "forecast(history) gives the steps to come, evaluate(table) and cross_validation(table) score them"
)
OF_SEQUENCES = "predict(inputs) answers, evaluate(data) scores"


class Judging:
    """The half of LLMFineTuner that only reads: it holds the recipe, the live parts and the last result."""

    recipe: Recipe
    device: torch.device
    benchmarked_against: str = ""
    _parts: Parts
    _given: nn.Module | None  # the student, where it came as an object
    _untouched: nn.Module | None = None
    _last: TrainResult | None = None
    _phases: list[tuple[Recipe, list[dict]]] = []  # (recipe, history) of each train() since load_model()
    _evaluate_series: Callable[..., dict[str, Any]]  # in forecast_methods.py

    @property
    def model(self) -> nn.Module | None:
        """The student as it is now; None before load_model()."""
        return self._parts.tuned.model if self._parts.tuned else self._parts.student

    @property
    def tokenizer(self) -> Any:
        """The student's tokenizer, loaded when it is first needed. Raises ModelError, OrderError."""
        if self._parts.tokenizer is None and not self._task.numbers:
            cut = parse_share(self.recipe.student.name) is not None
            if cut:
                self._need_model()
            if cut or not self.recipe.student.name:
                raise ModelError(
                    "the model came without a tokenizer", "LLMFineTuner(model, ..., tokenizer=...)"
                )
            self._parts.tokenizer = self._task.tokenizer(self.recipe.student.name)
        return self._parts.tokenizer

    def evaluate(
        self, dataset: Any, batch_size: int = 8, *, exit_layer: int | None = None, sample: int | None = None,
        level: Sequence[float] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """What the task is judged by with its 95 % interval, loss in nats, tokens, accuracy, calibration error and the
        figures of the task; with a teacher also agreement and KL. Of `sample` evenly spaced rows (None: the task's own
        number; 0: none) what costs more: ROUGE of the targets that seq2seq_lm writes, pseudo-perplexity of masked_lm.
        Of a forecaster: its figures on the test part of the table (benchmark/forecast_figures.py), with `level`, in
        percent, those of intervals too. Raises OrderError, DataError, RecipeError."""
        self._need_model()
        if self._task.series:
            return self._evaluate_series(dataset, batch_size, exit_layer, level)
        if level:
            raise RecipeError("level is of the intervals of forecasts", "leave it out")
        rows = self._prepare(dataset).dataset
        self._task.check_names(self.model, rows)
        self._task.check_inputs(rows, self.model)
        model, tokenizer = self._stopped(exit_layer), self._tokenizer_if_any()
        quality = evaluate(
            self._task,
            model,
            rows,
            batch_size=batch_size,
            teacher=self._heard(rows),
            vocabulary=self._shared(),
        )
        if self._task.numbers:
            told = self._task.measure.summary(quality)
            return {name: value for name, value in told.items() if name not in self._task.measure.without}
        if sample == 0 or tokenizer is None:
            return self._task.measure.summary(quality)
        more = self._task.sampled_figures(model, tokenizer, rows, self._data(), sample, batch_size)
        return {**self._task.measure.summary(quality), **more}

    def _heard(self, rows: Any) -> nn.Module | Provider | None:
        """What answers these rows: the teacher, or what reads them for it; None where it has answers to others only."""
        teacher, theirs = self._parts.teacher, self._parts.teacher_tokenizer
        if teacher is not None and self._task.series:
            self._meet(teacher, rows.frame.part("train"))
        if isinstance(teacher, nn.Module) and not self._alike():
            teacher = live_teacher(teacher, theirs, "the teacher", self._context())
        if isinstance(teacher, Provider):
            return self._fitting(teacher, rows)
        if teacher is not None:
            self._task.check_inputs(rows, teacher)
        return teacher

    def _meet(self, teacher: nn.Module | Provider, rows: Any) -> None:
        """Show the training rows to a teacher that is fitted to them, before it is asked about others."""
        if isinstance(teacher, Provider):
            teacher.meet(rows)
        else:
            self._task.meet(teacher, rows)

    def _fitting(self, teacher: Provider, rows: Any) -> Provider | None:
        """The teacher, or None for stored answers that do not hold these rows: the student is scored without it."""
        try:
            teacher.check(rows)
        except DataError as error:
            if not teacher.stored:
                raise
            warnings.warn(f"scored without the teacher: {error.what}", stacklevel=3)
            return None
        return teacher

    def generate(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int = 64,
        *,
        exit_layer: int | None = None,
        **options: Any,
    ) -> list[str]:
        """The continuation of each prompt, without the prompt; greedy unless do_sample=True.

        exit_layer: stop after this block, where self-distillation trained an exit. Raises OrderError, ModelError.
        """
        self._need_writer(self._task.writes)
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        return generation.generate(
            self._stopped(exit_layer), self.tokenizer, prompts, max_new_tokens=max_new_tokens, **options
        )

    def predict(self, texts: str | Sequence[Any], batch_size: int = 32) -> list[Any]:
        """What the model makes of each text; what that is says `predict` of its task in tasks/.

        Labels with scores of a classifier, words with tags of a tagger, tokens for masks, or the target text; of
        sequences [N, L, I] answers [L, O]. Raises OrderError; RecipeError for a model that continues texts.
        """
        self._need_model()
        if self._task.series:
            self._need_texts("predict")
        if not isinstance(texts, Iterable):
            raise DataError(
                f"predict reads a list, and this is {texts!r:.40}", "also one alone in a list: [...]"
            )
        texts = [texts] if isinstance(texts, str) else list(texts)
        data = self._data()
        parts = (texts[start : start + batch_size] for start in range(0, len(texts), batch_size))
        with eval_mode(self.model):
            return [
                said for part in parts for said in self._task.predict(self.model, self.tokenizer, part, data)
            ]

    def _stopped(self, exit_layer: int | None) -> nn.Module:
        """The student, or the part of it that ends at an exit."""
        if exit_layer is None:
            return self.model
        whole = copy.deepcopy(self._parts.tuned).merge() if self._parts.tuned else self.model
        return stop_early(whole, self.recipe.output, exit_layer)

    def benchmark(
        self,
        test_prompts: Sequence[str],
        references: Sequence[str] | None = None,
        use_finetuned: bool = False,
    ) -> dict[str, float]:
        """ROUGE and more of greedy completions: {metric: number}. use_finetuned=False measures the untouched student.

        Of seq2seq_lm the prompts are sources, and targets are scored. Scored against the references, or the teacher's
        greedy answers, or the second half of each prompt; which one is in `.benchmarked_against`.
        """
        self._need_writer(self._task.generates)
        if use_finetuned and self._last is None:
            raise OrderError("nothing has been trained yet", "call train(...) first, or use_finetuned=False")
        model = self.model if use_finetuned or self._last is None else self._load_untouched()
        scores, self.benchmarked_against = generation.benchmark(
            self._task, model, self.tokenizer, list(test_prompts), references,
            teacher=comparison.writer(self._parts.teacher), data=self._data(),
        )  # fmt: skip
        return scores

    def compare(
        self, dataset: Any, prompts: Sequence[str] | None = None, references: Sequence[str] | None = None,
        *, baseline: bool = False, seeds: int = 1, on_event: OnEvent | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Did it pay? Compare teacher, untouched and trained student on held-out rows, and write the report.

        baseline=True also trains the student on cross-entropy alone, for the same steps and for the same compute (of
        forecasters always, for the same steps). seeds: as many pairs of runs with and without the teacher. Returns the
        verdict; report.html, report.md and metrics.json are in output_dir.
        """
        if self._last is None:
            raise OrderError("nothing has been trained yet", "call train(...) first")
        taught = [recipe for recipe, _ in self._phases if recipe.needs_teacher]
        always = self._task.numbers and taught  # then a baseline is trained
        if (baseline or seeds > 1 or always) and len(self._phases) > 1:
            raise OrderError(
                f"the student was trained in {len(self._phases)} phases: no single baseline run matches that",
                "train in one phase" if always else "compare without baseline, or train in one phase",
            )
        rows = self._prepare(dataset).dataset
        self._task.check_names(self.model, rows)
        self._shared()  # another student may have put the teacher's labels in its own order
        subject = comparison.Subject(
            recipe=taught[-1] if taught else self._phases[-1][0], parts=self._parts, tokenizer=self.tokenizer,
            untouched=self._load_untouched, rows=rows,
            history=comparison.joined([history for _, history in self._phases]),
        )  # fmt: skip
        pairs = comparison.pairs_of(subject, prompts, references)
        return comparison.compare(subject, *pairs, baseline=baseline, seeds=seeds, on_event=on_event)

    def merge(self, folder: str | Path | None = None) -> Path:
        """Fold the adapter into the weights and write the plain model; default folder: output_dir/merged."""
        if self._last is None:
            raise OrderError("nothing has been trained yet", "call train(...) first")
        if self._task.numbers and self._parts.tuned.peft is None:
            raise RecipeError(
                "this model carries no adapter, so there is nothing to merge",
                f"{self.recipe.output} is a plain folder as it is",
            )
        target = Path(folder or Path(self.recipe.output) / "merged")
        Merged().write(self._in_one_piece(), self.tokenizer, self._task, target)
        return target

    def export(self, format: str, folder: str | Path | None = None) -> dict[str, Any]:
        """Write the student as it is now as merged, onnx or folded (of Time-LLM); default folder: output_dir/<format>.

        Returns "folder", "bytes", "parameters" and what else the exporter tells (export/). Raises OrderError,
        ModelError; RecipeError for a folder that is there already.
        """
        self._need_model()
        target = Path(folder or Path(self.recipe.output) / format)
        exporter = export_job.prepare(format, target)
        return export_job.write(exporter, self._in_one_piece(), self.tokenizer, self._task, target)

    def _in_one_piece(self) -> nn.Module:
        """A copy of the student, its adapter folded into the weights."""
        if self._last is not None and loading.is_quantised(self.model) and self.recipe.student.name:
            # 4 bits would round the merged weights a second time
            return loading.load_trained(self.recipe.output, self.device, merge=True, auto=self._task.auto)
        return copy.deepcopy(self._parts.tuned or Tuned(self.model)).merge()

    def upload_to_huggingface(
        self, repo_name: str, token: str | None = None, create_new: bool = False, private: bool = False
    ) -> str:
        """Upload the trained model to the hub and return its address. The token is used, never written."""
        if self._last is None:
            raise OrderError("nothing has been trained yet", "call train(...) first")
        return upload(self.recipe.output, repo_name, token=token, create_new=create_new, private=private)

    def _prepare(self, dataset: Any):
        """Rows as the recipe's data section says; rows that are prepared already pass through."""
        if self._task.numbers:
            return self._task.prepare_rows(dataset, None, self._data(), self.model)
        live = type(dataset).__name__ == "Dataset"
        rows = dataset if live else sources.read(dataset, shapes_of_text=self._task.shapes_of_text).dataset
        tokenizer = None if "input_ids" in rows.column_names else self.tokenizer
        return self._task.prepare_rows(rows, tokenizer, self._data(), self.model)

    def _data(self) -> Data:
        """How texts are read, with no more tokens than the model has positions."""
        data = self.recipe.data
        as_it_is = self.model is None or self._task.numbers
        return data if as_it_is else fit_length(data, self.model, lambda note: None)

    @property
    def _task(self):
        return resolve(TASKS, self.recipe.task, "task")()

    def _need_model(self) -> None:
        if self.model is not None:
            return
        name = self.recipe.student.name
        if parse_share(name) is not None:
            raise OrderError(
                f"no model is loaded: {name} is cut from a live teacher", "call " + TEACHER_THEN_STUDENT
            )
        raise OrderError("no model is loaded", "call load_model(...) first")

    def _need_texts(self, what: str) -> None:
        """Raises RecipeError for a model that reads numbers."""
        if self._task.numbers:
            reads, hint = (
                ("series", OF_SERIES) if self._task.series else ("sequences of numbers", OF_SEQUENCES)
            )
            raise RecipeError(f"{what} is for texts, and a model for {self.recipe.task} reads {reads}", hint)

    def _need_writer(self, fits: bool) -> None:
        """Raises OrderError without a model, RecipeError for one whose task does not fit."""
        self._need_model()
        self._need_texts("writing")
        if not fits:
            raise RecipeError(
                f"a model for {self.recipe.task} does not continue texts",
                "predict(texts) asks it, evaluate(rows) scores it",
            )

    def _shared(self) -> int | None:
        if not isinstance(self._parts.teacher, nn.Module):
            return None
        tokenizers = self._parts.tokenizer, self._parts.teacher_tokenizer
        if self._task.keeps_texts and not self._alike():
            tokenizers = None, None  # each reads the texts itself
        return common_vocabulary(self._task, self.model, self._parts.teacher, *tokenizers)

    def _alike(self) -> bool:
        """Whether the teacher reads the student's rows as they are."""
        return read_alike(self._task, self._parts.tokenizer, self._parts.teacher_tokenizer)[0]

    def _context(self) -> Context:
        """What a teacher is built for."""
        return Context(
            self._task, self.model, self._tokenizer_if_any(), self.device, lambda text: None, self.recipe.train.seed,
            self.recipe.output,
        )  # fmt: skip

    def _tokenizer_if_any(self) -> Any:
        """The student's tokenizer; None for a model that came as an object without one."""
        return self._parts.tokenizer if self._given is not None else self.tokenizer

    def _load_untouched(self, recipe: Recipe | None = None) -> nn.Module:
        if self._untouched is not None:
            return copy.deepcopy(self._untouched)  # a baseline trains what it is given
        return comparison.load_untouched(recipe or self.recipe, self.device, self._parts.train)
