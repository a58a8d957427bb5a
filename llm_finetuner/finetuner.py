"""LLMFineTuner: the whole tool as one object. Each call edits one Recipe; train() hands it to the engine."""

import copy
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from llm_finetuner import assembly, recipe_file, share
from llm_finetuner.assembly import Parts
from llm_finetuner.checks import common_vocabulary
from llm_finetuner.data import sources, text
from llm_finetuner.engine import default_device
from llm_finetuner.errors import DataError, ModelError, OrderError, RecipeError
from llm_finetuner.forecast_methods import Forecasting, plan_of
from llm_finetuner.judging import Judging
from llm_finetuner.layer_maps import layer_pairs
from llm_finetuner.models import loading
from llm_finetuner.models.shrink import parse_share
from llm_finetuner.named_models import load_student
from llm_finetuner.recipe import Data, Model, Recipe, Train, Tuning
from llm_finetuner.recipe_series import Series
from llm_finetuner.registry import MODELS, menu_entry
from llm_finetuner.run import is_run
from llm_finetuner.setup_methods import setup_method
from llm_finetuner.teacher_methods import Teaching
from llm_finetuner.teachers.provider import Provider
from llm_finetuner.terms import kind_of
from llm_finetuner.trainer import OnEvent, TrainResult


class LLMFineTuner(Teaching, Forecasting, Judging):
    """Fine-tune or distil a language model and find out whether it paid.

    model_name: a folder, a hub name, or a transformers model (then give its tokenizer too); of forecasters also
    time_llm, patch or linear. task: causal_lm, classification, forecasting, or another of docs/tasks.md.
    output_dir: the run's folder; train() writes a plain Hugging Face folder there. series: of forecasting, the fields
    of `data.series` (lookback, horizon, split, ...). shape: sizes of a model that is built. init: an s4d
    begins with what matters of its teacher's weights where one is loaded; "seed": never; "teacher": it has to be loaded
    first. device: None takes a GPU where there is one. The settings are in `.recipe`.
    """

    def __init__(
        self,
        model_name: str | nn.Module,
        output_dir: str | Path = Recipe.output,
        *,
        task: str = Recipe.task,
        tokenizer: Any = None,
        series: dict[str, Any] | Series | None = None,
        shape: dict[str, Any] | None = None,
        init: str = Model.init,
        seed: int = 0,
        device: str | None = None,
    ):
        live = isinstance(model_name, nn.Module)
        name = loading.check_live(model_name).name_or_path if live else str(model_name)
        if shape and name not in MODELS:
            raise RecipeError(
                f"shape is of a model that is built here, and {name or 'the model'} has one",
                f"models that are built: {', '.join(MODELS)}",
            )
        data = Data(series=plan_of(model_name if live else name, task, series))
        self.recipe = Recipe(
            task=task, student=Model(name, shape=shape or {}, init=init), data=data, train=Train(seed=seed),
            output=str(output_dir),
        )  # fmt: skip
        self.device = default_device(device)
        self._given = model_name if live else None
        self._parts = Parts(tokenizer=tokenizer, device=device)
        self._written: set[str] = set()  # folders that this object has trained into

    # ---- models

    def load_model(
        self,
        method: str | int | None = None,
        adapter: str | None = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        from_scratch: bool = False,
    ) -> None:
        """Load the student for a method: its name or menu number (None: lora, of forecasters full).

        adapter: how a distillation student is tuned.
        from_scratch takes the configuration only and draws the weights from the seed. A student called teacher/2 is
        cut from the teacher, which is loaded first. Raises RecipeError, ModelError, OrderError.
        """
        method = ("full" if self._task.numbers else "lora") if method is None else method
        _, learned, tuning, _ = menu_entry(method)
        if adapter is not None and learned == "fine_tuning" and adapter != tuning:
            raise RecipeError(
                f"method {method!r} and adapter {adapter!r} contradict each other", "give one of them"
            )
        tuning = adapter or tuning
        four = load_in_4bit or (tuning == "qlora" and not load_in_8bit)
        if self._given is None and parse_share(self.recipe.student.name) is not None:
            self._cut_named_student(load_in_8bit or four or from_scratch)
        student = replace(
            self.recipe.student, load_in_4bit=four, load_in_8bit=load_in_8bit, from_scratch=from_scratch
        )
        self.recipe = replace(self.recipe, method=learned, options={}, student=student, tuning=Tuning(tuning))
        if self._given is not None:
            if load_in_4bit or load_in_8bit or from_scratch:
                raise RecipeError(
                    "a model given as an object is taken as it is", "give its name to load it otherwise"
                )
            if tuning == "qlora" and not loading.is_quantised(self._given):
                raise ModelError(
                    "QLoRA needs a model loaded in 4 or 8 bits", "give its name, or load it in 4 bits"
                )
            given = self._given if self._untouched is None else copy.deepcopy(self._untouched)
            self._parts.student = given if loading.is_quantised(given) else given.to(self.device)
        elif self.recipe.inherits:
            self._parts.student = self._begun()
        else:
            self._parts.student = load_student(self.recipe, self.device)
            self.tokenizer  # noqa: B018  a folder without tokenizer should fail now, not after training
        self._parts.tuned, self._last, self._phases = None, None, []
        if self._parts.teacher is not None and self._task.labels:
            self._set_teacher(self.recipe.teacher, self._members)  # its labels are those of the student

    # ---- data

    def load_dataset_from_source(
        self, source: Any, dataset_config: str | None = None, split: str = "train",
        num_samples: int | None = None, data_files: str | list[str] | None = None,
        on_bad_row: str = Data.on_bad_row, *, only: dict[str, Any] | None = None,
    ):  # fmt: skip
        """Read a file, folder, glob or hub data set into a datasets.Dataset. Raises DataError with file and line.

        only: rows with these values in these columns, one task of many: {"subject": "math"}. For a forecaster a file is
        read into a pandas DataFrame, checked as `series` says; of sequences into their parts.
        """
        if self._task.numbers:
            return self._load_numbers(source, dataset_config, num_samples, data_files, only)
        if isinstance(source, str | Path):
            self._set_data(
                source=str(source), config=dataset_config, split=split, samples=num_samples, files=data_files,
                on_bad_row=on_bad_row, only=only or {},
            )  # fmt: skip
        rows = sources.read(
            source, config=dataset_config, split=split, files=data_files, samples=num_samples, on_bad_row=on_bad_row,
            bad_rows_path=Path(self.recipe.output) / "bad_rows.jsonl", shapes_of_text=self._task.shapes_of_text,
        )  # fmt: skip
        return assembly.only(rows.dataset, only or {}, str(source))

    def prepare_dataset(
        self, dataset: Any, text_columns: list[str] | None = None, max_length: int = Data.max_length,
        *, loss_on: str = Data.loss_on, prefix: str | None = Data.prefix, mask: str = Data.mask,
        label_names: list[str] | None = None,
    ) -> tuple[Any, list[str]]:  # fmt: skip
        """Tokenise: (rows of input_ids, attention_mask and labels with -100 where nothing counts, columns used).

        loss_on "completion" counts completions only, where the data have them. prefix stands before every source of
        seq2seq_lm, also of those that `predict` is given. mask "fresh" has `train` hide other tokens of masked_lm in
        each epoch. label_names: what the numbers 0, 1, ... of the label, or of tags, are called. Later calls that are
        given text read it in the same way. Raises DataError, RecipeError.
        """
        self._need_texts("prepare_dataset")
        self._set_data(
            text_columns=text_columns, max_length=max_length, loss_on=loss_on, prefix=prefix, mask=mask,
            label_names=label_names,
        )  # fmt: skip
        done = self._prepare(dataset)
        return done.dataset, done.columns

    def _set_data(self, **settings: Any) -> None:
        self.recipe = replace(self.recipe, data=replace(self.recipe.data, **settings))

    # ---- methods

    setup_lora = setup_method("lora")
    setup_qlora = setup_method("qlora")
    setup_adalora = setup_method("adalora")
    setup_vanilla_distillation = setup_method("vanilla_distillation")
    setup_feature_distillation = setup_method("feature_distillation")
    setup_relation_distillation = setup_method("relation_distillation")
    setup_distillation = setup_method("distillation")
    setup_self_distillation = setup_method("self_distillation")
    setup_online = setup_method("online_distillation")
    setup_on_policy = setup_method("on_policy_distillation")
    setup_sequence_distillation = setup_method("sequence_distillation")
    setup_forecast_distillation = setup_method("forecast_distillation")
    setup_regression_distillation = setup_method("regression_distillation")

    def _set_tuning(self, kind: str, options: dict) -> None:
        self._need_model()
        if kind == "qlora" and not loading.is_quantised(self.model):
            raise ModelError("QLoRA needs a model held in 4 or 8 bits", 'load_model(method="qlora")')
        if self._parts.tuned is not None:
            raise OrderError(
                "a training has begun, so the tuning is fixed", "call load_model() again to start anew"
            )
        self.recipe = replace(self.recipe, tuning=Tuning(kind, options))

    def _set_method(self, method: str, options: dict) -> None:
        self._need_model()
        recipe = replace(self.recipe, method=method, options=options)
        self._need_teacher(recipe)
        self._check_layers(recipe)
        self.recipe = recipe
        for said in self.recipe.warnings():
            warnings.warn(said, stacklevel=3)

    def _check_layers(self, recipe: Recipe) -> None:
        """Raise RecipeError for blocks that a model does not have, now and not when training begins."""
        depth, teacher = self._task.depth(self.model), self._parts.teacher
        theirs = teacher.depth if isinstance(teacher, Provider) else teacher and self._task.depth(teacher)
        for term in recipe.terms:
            if kind_of(term) not in ("logits", "embeddings") and theirs:
                layer_pairs(term.layers, depth, theirs)
        if recipe.scheme.exits:
            layer_pairs(recipe.scheme.exits, depth, depth)

    def _need_teacher(self, recipe: Recipe) -> None:
        """Raises OrderError. A method with peers trains the models that were loaded as teachers."""
        if recipe.needs_teacher and self._parts.teacher is None and not self._parts.peers:
            raise OrderError(f"{recipe.method} needs a teacher", "call load_teacher_model(...) first")
        if recipe.scheme.teacher == "peers" and not self._parts.peers:
            if not self._members:
                raise OrderError(f"{recipe.method} trains its peers, and a cache cannot learn", "load models")
            for model, tokenizer in self._members:
                common_vocabulary(self._task, self.model, model, self._tokenizer_if_any(), tokenizer)
            self._parts.peers = [copy.deepcopy(model) for model, _ in self._members]

    # ---- training

    def train(
        self,
        dataset: Any,
        num_epochs: float = Train.epochs,
        batch_size: int = Train.batch_size,
        learning_rate: float | None = None,
        gradient_accumulation_steps: int = Train.gradient_accumulation_steps,
        *,
        epochs: float | None = None,
        method: str | None = None,
        eval_dataset: Any = None,
        eval_fraction: float | None = None,
        class_weights: str | dict[str, float] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        on_event: OnEvent | None = None,
        **settings: Any,
    ) -> TrainResult:
        """Train the student as it is now and write it to output_dir. Raises FinetunerError.

        dataset: rows, prepared or not; of a forecaster a table or file; of sequences a folder, file, pair of arrays or
        what was loaded. method="standard" trains without the teacher.
        eval_dataset, or a share of the rows (eval_fraction; 0.1 where eval_every or patience ask for evaluations),
        picks the best weights; of sequences as many again are the test part that evaluate scores. class_weights:
        "balanced", or what labels weigh in cross-entropy, by name. settings: the other fields of `recipe.train`. A
        folder with a run of another object is written over with a warning; none with overwrite=True.
        Each record of .history has step, epoch, loss (the weighted total), every term unweighted under its objective's
        name (a position that counts), teacher_nll, agreement, tokens_per_second, padding, learning_rate, grad_norm and
        seconds; with watch_every also layers and histograms, in the steps that it names.
        """
        self._need_model()
        epochs = num_epochs if epochs is None else epochs
        plan = self._plan(epochs, batch_size, learning_rate, gradient_accumulation_steps, settings)
        self.recipe = recipe = replace(self.recipe, train=plan)
        if method == "standard":
            recipe = replace(recipe, method="fine_tuning", options={})
        elif method is not None:
            raise RecipeError(
                f"train(method={method!r}) is not known", 'only "standard" (without the teacher) is'
            )
        self._need_teacher(recipe)
        if self._task.numbers:
            eval_fraction = self._share(dataset, eval_dataset, eval_fraction)
        elif eval_fraction is None:
            asked = settings.get("eval_every") or settings.get("patience")
            eval_fraction = Data.eval_fraction if asked and eval_dataset is None else 0
        data = replace(recipe.data, eval_fraction=eval_fraction, class_weights=class_weights)
        recipe = replace(recipe, data=data)
        self._parts.train, self._parts.held_out = self._rows(dataset, eval_dataset, eval_fraction)
        recipe = replace(recipe, data=replace(data, source=self.recipe.data.source))  # a file that was named
        if recipe.inherits or self.recipe.inherits:
            self._begin_anew(recipe, self._parts.train)
        self._keep_untouched()
        self._warn_of_another_run(overwrite or resume)
        for said in self._task.doubts(self._parts.train, self.model):
            warnings.warn(said, stacklevel=2)
        recipe, self._last = share.train(recipe, self._parts, resume=resume, on_event=on_event)
        self._phases.append((recipe, self._last.history))
        return self._last

    fit = train  # as users of forecasters call it

    def _warn_of_another_run(self, meant: bool) -> None:
        """Say that the folder holds a run which this object did not make: a script that is run again is no mistake."""
        folder = os.path.abspath(self.recipe.output)
        if is_run(folder) and folder not in self._written and not meant:
            warnings.warn(
                f"{self.recipe.output} already holds a run, which is written over; give another output_dir to keep "
                "it, resume=True to go on with it, or overwrite=True where that is meant",
                stacklevel=3,
            )
        self._written.add(folder)

    def _plan(self, epochs, batch_size, learning_rate, accumulation, settings: dict) -> Train:
        values = {**settings, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
        values["gradient_accumulation_steps"] = accumulation
        if "seed" in settings:
            raise RecipeError(
                "the seed is set before anything is drawn from it", "LLMFineTuner(..., seed=...)"
            )
        values["seed"] = self.recipe.train.seed
        return recipe_file.from_dict({"train": values}).train

    def _rows(self, dataset, eval_dataset, eval_fraction) -> tuple[Any, Any]:
        if self._task.numbers:
            return self._own_parts(dataset)
        train = self._prepare(dataset).dataset
        if self._parts.tuned is not None:
            self._check_labels_stay(train)
        self._task.fit(self.model, train, self.recipe.train.seed)  # held-out labels get the same numbers
        held_out = None if eval_dataset is None else self._prepare(eval_dataset).dataset
        if held_out is None and eval_fraction:
            train, held_out = text.split(train, eval_fraction, self.recipe.train.seed)
        return train, held_out

    def _check_labels_stay(self, rows: Any) -> None:
        """Raise OrderError for rows of other labels than a student was trained on: it would get a new scoring layer."""
        try:
            self._task.check_names(self.model, rows)
        except DataError as error:
            raise OrderError(
                f"a training has begun, so the labels are fixed: {error.what}",
                "call load_model() again to start anew with the labels of these rows",
            ) from error

    def _keep_untouched(self) -> None:
        """A student given as an object cannot be loaded again: keep a copy to compare with, while it is untouched."""
        if self._parts.tuned is None and self._given is not None and self._untouched is None:
            self._untouched = copy.deepcopy(self._given)
