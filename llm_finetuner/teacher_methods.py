"""What LLMFineTuner does with teachers: load them, write their answers or texts down, cut students from them."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from llm_finetuner import chain, recipe_file
from llm_finetuner import sweep as search
from llm_finetuner.assembly import Parts, hardest
from llm_finetuner.cache_job import cache_answers
from llm_finetuner.checks import common_vocabulary, read_alike
from llm_finetuner.errors import FinetunerError, ModelError, OrderError, RecipeError
from llm_finetuner.judging import TEACHER_THEN_STUDENT, Judging
from llm_finetuner.models import loading
from llm_finetuner.models.shrink import describe, parse_share, shrink
from llm_finetuner.named_models import batches, cut, load_student, load_teacher
from llm_finetuner.recipe import Recipe, Teacher, shaped
from llm_finetuner.registry import TEACHERS, resolve
from llm_finetuner.scheme import Writing
from llm_finetuner.teachers.ensemble import Ensemble
from llm_finetuner.teachers.filling import fill
from llm_finetuner.teachers.kinds import mixture_of
from llm_finetuner.teachers.matched import live_teacher
from llm_finetuner.teachers.provider import Provider
from llm_finetuner.trainer import OnEvent
from llm_finetuner.writing import write_rows

Model = str | nn.Module


class Teaching(Judging):
    """The part of LLMFineTuner that deals with teachers."""

    _members: list[tuple[nn.Module, Any]] = []  # the live teachers with their tokenizers

    def load_teacher_model(
        self,
        teacher_model_name: Model | Sequence[Model] | None = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        *,
        tokenizer: Any = None,
        weights: Sequence[float] | str | None = None,
        mixture: str | None = None,
        shape: dict[str, Any] | None = None,
        cache: str | Path | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        """Load a frozen teacher: a folder, a hub name, a model; several of them as a list; or the answers in a cache.

        With a name and a cache the first epoch fills it, and the next ones read it. weights: of several, numbers or
        "loss". mixture: of their probabilities or logits (None: by the task). shape: of one that is built here, as a
        line is. device: where it stands, None beside the student. kind="remote" with url=... and other options asks an
        endpoint. Raises ModelError, also when the tokens differ.
        """
        several = not isinstance(teacher_model_name, str | Path | nn.Module | None)
        filled = "cached" if teacher_model_name is None else "live_cached"
        kind = options.pop("kind", None) or (filled if cache else "live")
        given = list(teacher_model_name) if several else [teacher_model_name]
        spec = Teacher(load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit, device=device, shape=shape or {})
        if kind != "live":
            options = {**options, "path": str(cache)} if cache else options
            own = kind == "live_cached" and isinstance(given[0], nn.Module)
            members = [self._member(given[0], spec, tokenizer)] if own else []
            name = _name(given[0]) if own else str(given[0] or "")
            self._set_teacher(replace(spec, name=name, kind=kind, options=options), members)
            return
        if options:
            raise RecipeError(f"a live teacher has no option {next(iter(options))!r}")
        tokenizers = list(tokenizer) if isinstance(tokenizer, list | tuple) else [tokenizer] * len(given)
        members = [self._member(model, spec, t) for model, t in zip(given, tokenizers, strict=True)]
        names = [_name(model) for model in given]
        if several:
            chosen = (
                list(weights) if isinstance(weights, Sequence) and not isinstance(weights, str) else weights
            )
            mixed = {"members": names, "weights": chosen, "mixture": mixture}
            spec = replace(spec, kind="ensemble", options=mixed)
        self._set_teacher(replace(spec, name=names[0] if not several else ""), members)

    def _member(self, given: Model | None, spec: Teacher, tokenizer: Any) -> tuple[nn.Module, Any]:
        if given is None:
            raise ModelError("no teacher was named", "give a folder, a hub name, a model, or cache=...")
        if not isinstance(given, nn.Module):
            named = shaped(replace(spec, name=str(given)), self.recipe.data)
            model = load_teacher(named, self.device, self._task.auto)
            return model, tokenizer or self._task.tokenizer(str(given))
        loading.check_live(given)
        if given is (self._given if self.model is None else self.model):
            raise ModelError(
                "student and teacher are one object", "give a copy as the teacher: copy.deepcopy(model)"
            )
        model = given.eval().requires_grad_(False)
        stays = loading.is_quantised(model) or spec.device
        return (model if stays else model.to(self.device)), tokenizer

    def _set_teacher(self, spec: Teacher, members: list[tuple[nn.Module, Any]]) -> None:
        """Take it as the teacher; where it is refused all stays as it was. Raises FinetunerError."""
        before = self._members, self.recipe, replace(self._parts)
        inherited = self.recipe.inherits
        self._members, self.recipe = members, replace(self.recipe, teacher=spec)
        try:
            if self.model is not None and (inherited or self.recipe.inherits):
                self._begin_anew(self.recipe)
            self._take(self.recipe, members)
        except FinetunerError:
            self._members, self.recipe, self._parts = before
            raise

    def _take(self, recipe: Recipe, members: list[tuple[nn.Module, Any]]) -> None:
        """Put the teacher that the recipe names where training finds it. Raises FinetunerError."""
        spec, self._parts.peers = recipe.teacher, []
        if spec.kind == "live":
            (model, tokenizer), *_ = members
            self._parts.teacher, self._parts.teacher_tokenizer = model, tokenizer
            ours = None if self.model is None else self._tokenizer_if_any()
            if not read_alike(self._task, ours, tokenizer)[0]:
                provider = self._provider(recipe, members)  # refuses what cannot be
                if not self._task.keeps_texts:
                    self._parts.teacher = provider  # the same tokens under other numbers
            elif self.model is not None:
                common_vocabulary(self._task, self.model, model, ours, tokenizer, recipe.train.seed)
        else:
            self._parts.teacher = self._provider(recipe, members)
            self._parts.teacher_tokenizer = None

    def _provider(self, recipe: Recipe, members: list[tuple[nn.Module, Any]]) -> Provider:
        """What answers in place of a single live model. Raises OrderError, RecipeError, DataError."""
        self._need_model()
        context, spec = self._context(), recipe.teacher
        if spec.kind == "live":
            return live_teacher(*members[0], spec.name, context)
        if spec.kind == "ensemble":
            mixture = mixture_of(self._task, spec.options["weights"], spec.options["mixture"])
            built = [live_teacher(model, t, model.name_or_path, context) for model, t in members]
            return Ensemble(built, spec.options["weights"], mixture)
        if members:
            return fill(spec, context, **spec.options, given=members[0])
        return resolve(TEACHERS, spec.kind, "kind of teacher")(spec, context, **spec.options)

    # ---- what teachers leave on disk

    def cache_teacher(
        self, dataset: Any, path: str | Path, k: int = 50, *, mode: str = "top_k", draws: int = 50,
        layers: Sequence[int | str] = (), on_event: OnEvent | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Write down what the teacher answers to the rows: {"bytes_per_token", "mean_kl", "tokens", "top_mass", ...}.

        mean_kl is the cache's own error in nats: KL(teacher || what the cache answers). Train from it with
        load_teacher_model(cache=path). Raises OrderError, DataError, RecipeError.
        """
        self._need_model()
        if not self._members:
            raise OrderError("there is no live teacher to ask", "call load_teacher_model(...) first")
        series = self._task.numbers  # whose table holds both
        train, held_out = self._rows(dataset, None, 0) if series else (self._prepare(dataset).dataset, None)
        parts = replace(self._parts, train=train, held_out=held_out, student=self.model)
        parts = replace(parts, tokenizer=self._tokenizer_if_any())
        return cache_answers(
            self.recipe, path, k=k, mode=mode, draws=draws, layers=layers, parts=parts, on_event=on_event
        )

    def generate_dataset(
        self, dataset: Any, path: str | Path, max_new_tokens: int = 128, *, sampling_temperature: float = 0.0,
        samples: int = 1, on_event: OnEvent | None = None,
    ) -> Any:  # fmt: skip
        """Have the teacher complete the prompts of the rows: prepared rows to train on, kept in `path` (JSON lines).

        The same call goes on where a killed one stopped. Raises OrderError, DataError.
        """
        self._need_model()
        if not self._members:
            raise OrderError(
                "there is no live teacher that could write", "call load_teacher_model(...) first"
            )
        say = on_event or (lambda kind, record: None)
        teacher, theirs = self._members[0]
        common_vocabulary(self._task, self.model, teacher, self.tokenizer, theirs)
        return write_rows(
            teacher, self.tokenizer, self._prepare(dataset).dataset,
            Writing(max_new_tokens, sampling_temperature, samples, keep_data=False), Path(path),
            seed=self.recipe.train.seed, max_length=self.recipe.data.max_length,
            note=lambda text: say("note", {"text": text}),
        )  # fmt: skip

    # ---- students, chains, searches

    def student_from_teacher(
        self,
        keep: float | int = 0.5,
        *,
        blocks: str | list[int] = "uniform",
        width: float = 1.0,
        keep_encoder: bool = False,
        mixer: str = "attention",
        dataset: Any = None,
    ) -> str:
        """Make the student a part of the teacher, and say in one line how much smaller it is.

        keep: the share of the blocks (or 2 for half of them). blocks: uniform, first-last, or their numbers. width: the
        share of heads, channels and hidden width, the important ones as measured on `dataset`. keep_encoder: of a
        teacher with encoder and decoder cut the decoder alone, which numbers are of anyway. mixer: mamba2 puts Mamba-2
        in the place of attention. Raises OrderError.
        """
        if not self._members:
            raise OrderError(
                "there is no live teacher to take blocks from", "call load_teacher_model(...) first"
            )
        self._need_texts("student_from_teacher")
        if self._parts.tuned is not None:
            raise OrderError("a training has begun, so the student is fixed", "call load_model() again first")
        model, tokenizer = self._members[0]
        seen = None
        if dataset is not None:
            seen = batches(self._prepare(dataset).dataset, model.get_input_embeddings().weight.device)
        student = shrink(
            model, keep=keep, blocks=blocks, width=width, keep_encoder=keep_encoder, mixer=mixer,
            seed=self.recipe.train.seed, activations=seen,
        ).float()  # fmt: skip
        self._parts.student = self._given = student
        self._parts.tokenizer, self._untouched = tokenizer or self._parts.tokenizer, None
        divisor = round(1 / keep) if isinstance(keep, float) else keep
        named = isinstance(blocks, str) and (isinstance(keep, int) or abs(divisor * keep - 1) < 1e-6)
        cut = {"mixer": mixer}  # which says, too, that some of its weights are new
        cut |= {"keep_blocks": blocks, "keep_width": width, "keep_encoder": keep_encoder} if named else {}
        name = f"teacher/{divisor}" if named else ""  # blocks by number can only be given here
        self.recipe = replace(self.recipe, student=replace(self.recipe.student, name=name, **cut))
        self._set_teacher(self.recipe.teacher, self._members)  # it may speak of other columns now
        return describe(model, student)

    def _cut_named_student(self, otherwise: bool) -> None:
        """Make the student that is called teacher/2; otherwise: asked for quantised, or with weights of its own."""
        student = self.recipe.student
        if not self._members:
            raise OrderError(
                f"student {student.name!r} is cut from the teacher, and none is loaded",
                "call " + TEACHER_THEN_STUDENT,
            )
        if otherwise:
            raise RecipeError(
                f"student {student.name!r} is cut from the teacher's weights as they are",
                "name a model to load it in 4 or 8 bits; from_scratch goes in a recipe: student.from_scratch",
            )
        self.student_from_teacher(
            parse_share(student.name), blocks=student.keep_blocks, width=student.keep_width,
            keep_encoder=student.keep_encoder, mixer=student.mixer,
        )  # fmt: skip

    def _begin_anew(self, recipe: Recipe, rows: Any = None) -> None:
        """Put the untrained student that the recipe describes in the place of the one there. Raises FinetunerError."""
        if self._parts.tuned is None:
            begun = recipe.inherits
            self._parts.student = self._begun(rows) if begun else load_student(recipe, self.device)

    def _begun(self, rows: Any = None) -> nn.Module:
        """The student with what matters of its teacher's weights; rows say how far gates open. Raises OrderError."""
        if self._members:
            whole = self._members[0][0]
        elif self.recipe.teacher is not None and self.recipe.teacher.name:
            # its answers are on disk, or will be
            whole = load_student(self.recipe, self.device)
        else:
            raise OrderError(
                "init=teacher begins the student with its teacher's weights, and no live teacher is loaded",
                "call load_teacher_model(...) first, then load_model(...)",
            )
        return cut(whole, self.recipe, rows)

    def _load_untouched(self, recipe: Recipe | None = None) -> nn.Module:
        """The student before training."""
        return self._begun(self._parts.train) if self.recipe.inherits else super()._load_untouched(recipe)

    def hard_examples(self, dataset: Any, share: float = 0.2) -> Any:
        """The share of the rows that the student as it is now finds hardest (nats a token), to go on with."""
        self._need_model()
        self._need_texts("hard_examples")
        return hardest(self._task, self.model, self._prepare(dataset).dataset, share, lambda text: None)

    def progressive(
        self, stages: Sequence[str | dict[str, Any]], *, baseline: bool = False, on_event: OnEvent | None = None,
        **settings: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """A chain of distillations: each stage's student is the next one's teacher, each with its verdict.

        stages: student names, or settings that a stage changes, as in a recipe. settings: fields of `recipe.train`.
        The models and the data are those that the recipe names. See chain.py. Raises FinetunerError.
        """
        if "dataset" in settings:
            raise RecipeError(
                "a chain reads the data that the recipe names, so that it can be gone on with: rows cannot be given",
                "call load_dataset_from_source(...) with their file first",
            )
        self._need_data()
        recipe = replace(self._with_train(settings), stages=list(stages))
        return chain.run_chain(recipe, baseline=baseline, on_event=on_event)

    def sweep(
        self, space: dict[str, Any] | list[dict[str, Any]], dataset: Any = None, *, search_by: str = "grid",
        trials: int | None = None, minutes: float | None = None, seeds: int = 1, on_event: OnEvent | None = None,
        **settings: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Try settings and rank them with their uncertainty: {"trials", "best", "report", "recipe", "table"}.

        space: {"temperature": [2, 4], "alpha": [0.3, 0.5]}, or a list of settings. search_by: grid or optuna. settings:
        fields of `recipe.train` that all trials share. See sweep.py. Raises FinetunerError.
        """
        self._need_model()
        parts = Parts(device=self._parts.device)
        if dataset is not None:
            train, held_out = self._rows(dataset, None, self.recipe.data.eval_fraction)
            student = self._begun(train) if self.recipe.inherits else self._parts.student
            parts = replace(self._parts, student=student, train=train, held_out=held_out, tuned=None)
        else:
            self._need_data()
        recipe = self._with_train(settings)
        return search.sweep(
            recipe,
            space,
            search=search_by,
            trials=trials,
            minutes=minutes,
            seeds=seeds,
            parts=parts,
            on_event=on_event,
        )

    def _with_train(self, settings: dict[str, Any]) -> Recipe:
        """The recipe with these fields of `recipe.train`. Raises RecipeError for one that there is not."""
        train = recipe_file.from_dict({"train": {**asdict(self.recipe.train), **settings}}).train
        return replace(self.recipe, train=train)

    def _need_data(self) -> None:
        if self.recipe.data.source is None:
            raise OrderError("no data are named", "call load_dataset_from_source(...) first")


def _name(model: Model | None) -> str:
    return model.name_or_path if isinstance(model, nn.Module) else str(model)
