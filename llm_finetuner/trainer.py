"""The training loop. There is one."""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llm_finetuner import checkpoint, recipe_file
from llm_finetuner.assembly import Parts, assemble
from llm_finetuner.benchmark.quality import evaluate
from llm_finetuner.data import label_names
from llm_finetuner.data.order import Order
from llm_finetuner.engine import Engine, in_memory
from llm_finetuner.errors import CheckpointError, RecipeError, TrainingError
from llm_finetuner.export.beside import save_beside
from llm_finetuner.gauges import Gauges, tags
from llm_finetuner.named_models import has_new_weights, made_here
from llm_finetuner.optim import default_rate, rate, set_apart, set_rate
from llm_finetuner.recipe import Recipe
from llm_finetuner.registry import OPTIMIZERS, SCHEDULES, resolve
from llm_finetuner.run import Log, Signals, spare_models, with_whole_paths, writing
from llm_finetuner.teachers.provider import Provider
from llm_finetuner.tuning.tuned import Tuned

OnEvent = Callable[[str, dict], None]
EVALUATIONS = 10  # a run, where eval_every is not given


@dataclass
class TrainResult:
    """metrics: figures of the whole run. history: one record an optimizer step, with the evaluation made after it.

    tuned: the trained student, and the adapter it carries.
    """

    metrics: dict[str, Any]
    history: list[dict[str, Any]] = field(repr=False)
    tuned: Tuned = field(repr=False)


def fit(
    recipe: Recipe, parts: Parts | None = None, *, resume: bool = False, on_event: OnEvent | None = None
) -> TrainResult:
    """Run a recipe to its end, from its newest whole checkpoint where `resume` is set. Raises FinetunerError.

    Ctrl-C and SIGTERM finish the step, write a checkpoint and raise KeyboardInterrupt or SystemExit(143).
    """
    say = on_event or (lambda kind, record: None)
    if recipe.stages:
        raise RecipeError(
            "a recipe with stages is a chain, not a run", "the command run takes it, or chain.run_chain"
        )
    spare_models(recipe)
    with writing(recipe.output):  # now, and not after the models were loaded
        Path(recipe.output).mkdir(parents=True, exist_ok=True)
    with in_memory(recipe.train.batch_size), Signals() as signals:
        return _Run(recipe, parts or Parts(), resume, say, signals).train()


class _Run:
    """The state of one run: what is learning, how far it is, and the best it has been."""

    def __init__(self, recipe: Recipe, parts: Parts, resume: bool, say: OnEvent, signals: Signals):
        plan = recipe.train
        self.recipe, self.signals = recipe, signals
        self.folder = Path(recipe.output)
        self.engine = Engine(plan.seed, plan.precision, parts.device, plan.trackers, recipe.output)
        self.say = say if self.engine.main else (lambda kind, record: None)
        self.interrupted = False
        self.built = built = assemble(recipe, parts, self.engine.device, self._note, self.engine.rank)
        parameters = [p for p in built.learner.parameters() if p.requires_grad]
        optimizer = resolve(OPTIMIZERS, plan.optimizer)(parameters, plan.weight_decay, self.engine.device)
        set_apart(optimizer, built.learner)
        self.learner, self.optimizer = self.engine.prepare(built.learner, optimizer)
        self.parameters = parameters
        self.order = Order(
            built.task.lengths(built.train),
            plan.batch_size, plan.batch_size * plan.gradient_accumulation_steps, plan.seed,
            self.engine.rank, self.engine.world, max_tokens=plan.max_tokens, packed=plan.packing,
        )  # fmt: skip
        if plan.packing:
            built.task.check_packing(built.learner.student)
        if plan.watch_every > built.steps:
            self._note(f"watch_every has no effect: the run has {built.steps} steps")
        watched = plan.watch_every if self.engine.main else 0  # gradients are the same on every process
        self.gauges = Gauges(built.learner, watched, self.engine.draw if plan.trackers else None)
        self.schedule = resolve(SCHEDULES, plan.schedule)
        usual = default_rate(recipe.tuning.kind, has_new_weights(recipe.student))
        self.peak_rate = plan.learning_rate or usual
        if plan.patience and built.held_out is None:
            self._note("patience has no effect: no rows are held out")
        self.best, self.best_step, self.worse = (math.inf,), 0, 0
        self.start = self._resume() if resume else self._begin()
        self.log = Log(self.folder, self.start, self.engine.main)
        self._announce()

    def train(self) -> TrainResult:
        plan, built = self.recipe.train, self.built
        eval_every = max(1, built.steps // EVALUATIONS) if plan.eval_every is None else plan.eval_every
        save_every = eval_every if plan.save_every is None else plan.save_every
        began, step = time.perf_counter(), self.start
        for step in range(self.start + 1, built.steps + 1):
            if plan.patience and self.worse >= plan.patience:
                self._note(f"stopped early: no better evaluation in the last {self.worse}")
                step -= 1
                break
            record = self._step(step)
            self.say("step", record)
            last = step == built.steps
            if built.held_out is not None and ((eval_every and step % eval_every == 0) or last):
                record.update(self._evaluate(step))
            self.log.add(record)
            self.engine.track(record | tags(record), step)
            if self.engine.world == 1:  # nobody has to agree, so what came since counts too
                self.interrupted = self.signals.asked is not None
            if (save_every and step % save_every == 0) or self.interrupted or (last and save_every):
                self._save(step)
            if self.interrupted:
                self.engine.end()
                self.signals.leave()
        result = self._finish(step, time.perf_counter() - began)
        if built.teacher is not None:
            built.teacher.flush()  # after the student is safe
        return result

    def _step(self, step: int) -> dict[str, Any]:
        """One optimizer step over all its batches; every term is divided once, by the positions of the whole step."""
        began = time.perf_counter()
        built, engine = self.built, self.engine
        numbers, counts = zip(*self.order.step(step), strict=True)
        drawn = [built.examples(n, step) for n in numbers]
        if built.rollout is not None:
            drawn = built.rollout(built.learner.student, drawn, step, engine.rank)
        packing = [self.recipe.train.packing] * len(drawn)
        window = list(map(built.task.collate, drawn, counts, packing))
        about = [[built.task.count(b), built.task.tokens(b), *built.task.cost(b)] for b in window]
        count, tokens, read, places = engine.sum(torch.tensor(about).sum(0).to(engine.device)).tolist()
        sums: dict[str, torch.Tensor] = {}
        self.learner.train()
        self.optimizer.zero_grad()  # a step that failed half way, out of memory say, left some
        for i, batch in enumerate(map(engine.place, window)):
            with engine.quiet(self.learner, last=i == len(window) - 1):
                answer = built.teacher(batch, built.learner.teacher_want) if built.teacher else None
                loss, seen = self.learner(batch, answer, (step - 1) / max(1, built.steps - 1))
                # the engine averages gradients over processes, and count is already of all of them
                engine.backward(loss * (engine.world / max(count, 1)))
            for name, value in seen.items():
                sums[name] = sums.get(name, 0.0) + value.double()
        asked = torch.tensor([float(self.signals.asked is not None), 1.0], device=engine.device)
        *totals, (asked, _) = engine.sum(torch.stack([*sums.values(), asked.double()])).tolist()
        self.interrupted = asked > 0  # on any process, so that all of them leave after the same step
        # each over the positions that it speaks of, where there are any
        means = {name: total / of if of else None for name, (total, of) in zip(sums, totals, strict=True)}
        means["loss"] = means["loss"] or 0.0
        nll = means.get("teacher_nll")  # infinite for a teacher whose answers are a few draws
        engine.unscale()
        before = self.gauges.before(step)
        norm = engine.clip(self.parameters, self.recipe.train.max_grad_norm)
        found = {"loss": means["loss"]}
        if engine.precision != "fp16":  # whose scaler leaves such steps out by itself
            found["norm of the gradient"] = float(norm)
        for name, value in found.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {name} is {value} at step {step}; the weights were not changed by it",
                    f"lower the learning rate (now {self.peak_rate:g}); checkpoints before this step are kept",
                )
        now = self.peak_rate * rate(self.schedule, step, built.steps, self.recipe.train.warmup)
        set_rate(self.optimizer, now)
        self.optimizer.step()
        built.tuned.after_step(step)
        watched = self.gauges.after(before)
        if built.teacher is not None:
            built.teacher.follow(epoch_ends=step % built.steps_per_epoch == 0)
        seconds = time.perf_counter() - began
        return {
            "step": step,
            "epoch": step / built.steps_per_epoch,
            **means,
            "teacher_nll": nll if nll is not None and math.isfinite(nll) else None,
            "agreement": means.get("agreement"),
            "tokens_per_second": tokens / seconds,
            "padding": 1 - read / places,
            "learning_rate": now,
            "grad_norm": float(norm),
            "seconds": seconds,
            **watched,
        }

    def _evaluate(self, step: int) -> dict[str, float]:
        """What the held-out rows give; keeps the weights where it is the best so far (`Measure.rank`)."""
        built, plan = self.built, self.recipe.train
        quality = evaluate(
            built.task, built.learner.student, built.held_out, batch_size=plan.batch_size,
            vocabulary=_width(built.learner.provider),
        )  # fmt: skip
        loss, measure = quality.loss, built.task.measure
        if not math.isfinite(loss):  # before a checkpoint keeps such weights
            raise TrainingError(
                f"the evaluation at step {step} gives a loss of {loss}: the weights are damaged",
                f"start again with a lower --learning-rate (now {self.peak_rate:g})",
            )
        better = measure.rank(quality) < self.best
        self.worse = 0 if better else self.worse + 1
        if better:
            self.best, self.best_step = measure.rank(quality), step
            if plan.keep_best and self.engine.main:
                place, weights = self.folder / "checkpoints" / "best", checkpoint.trainable(built.learner)
                checkpoint.save(place, weights, built.tuned.state(), {"step": step})
        said = {"eval_loss": loss, f"eval_{measure.key}": measure.value(quality)}
        self.say("evaluation", {"step": step, **said, "best": better})
        return said

    def _begin(self) -> int:
        """Forget the checkpoints of an earlier run in this folder, and write down what this one is."""
        if self.engine.main:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
            (self.folder / "training.json").unlink(missing_ok=True)
            with writing(self.folder):
                used = with_whole_paths(replace(self.recipe, data=self.built.data))
                recipe_file.save(used, self.folder / "recipe.yaml")
        return 0

    def _resume(self) -> int:
        found = checkpoint.newest(self.folder, self._note)
        if found is None:
            raise CheckpointError(
                f"there is no whole checkpoint in {self.folder}", "start the run without resume"
            )
        weights, state, about = found
        for name, now in self._order().items():
            if about["order"].get(name) != now:
                raise CheckpointError(
                    f"the run was started with {name} {about['order'].get(name)}, now it is {now}",
                    "resume with the settings and the data of that run: they decide which examples a step sees",
                )
        checkpoint.restore(self.built.learner, weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.built.tuned.load_state(state["tuning"])
        for part, kept in zip(self._moving(), state["moving"], strict=True):
            part.load_state(kept)
        self.engine.load_scaler_state(state["scaler"])
        checkpoint.set_random_state(state["random"])
        self.best, self.best_step, self.worse = tuple(about["best"]), about["best_step"], about["worse"]
        return about["step"]

    def _save(self, step: int) -> None:
        moving = [part.state() for part in self._moving()]  # on every process: some write down what is theirs
        if self.engine.main:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "tuning": self.built.tuned.state(),
                "moving": moving,
                "scaler": self.engine.scaler_state(),
                "random": checkpoint.random_state(),
            }
            best = {name: getattr(self, name) for name in ("best", "best_step", "worse")}
            about = {"order": self._order(), "step": step, **best}
            path = self.folder / "checkpoints" / f"step_{step:07d}"
            checkpoint.save(path, checkpoint.trainable(self.built.learner), state, about)
            checkpoint.prune(self.folder)
            self.say("checkpoint", {"step": step, "path": str(path)})
        self.engine.wait()

    def _moving(self) -> list:
        """What else changes from step to step: a teacher that follows the student, a buffer of its own samples."""
        return [part for part in (self.built.teacher, self.built.rollout) if part is not None]

    def _order(self) -> dict[str, Any]:
        """What decides which examples a step sees, and what their labels mean."""
        names, rows = ("batch_size", "gradient_accumulation_steps", "seed"), self.built.train
        chosen = {name: getattr(self.recipe.train, name) for name in names} | {"mask": self.recipe.data.mask}
        return {
            **chosen,
            "number of examples": len(rows),
            "labels": label_names.of(rows) if self.built.task.labels else None,
        }

    def _finish(self, step: int, seconds: float) -> TrainResult:
        """Put the best weights back, write the model as a plain Hugging Face folder, and sum up."""
        built, best = self.built, self.best_step or step
        if self.recipe.train.keep_best and self.best_step and self.best_step != step:
            self.engine.wait()
            weights, tuning, _ = checkpoint.load(self.folder / "checkpoints" / "best")
            checkpoint.restore(built.learner, weights)
            built.tuned.load_state(tuning)
        history, headline = self.log.records, f"eval_{built.task.measure.key}"
        kept = next((record for record in history if record["step"] == self.best_step), {})
        metrics = {
            "steps": step,
            "best_step": best,
            "seconds": sum(record["seconds"] for record in history),
            "wall_seconds": seconds,
            "final_loss": history[-1]["loss"] if history else None,
            **{name: kept.get(name) for name in ("eval_loss", headline)},
            "parameters": built.learner.student.num_parameters(),
        }
        if self.engine.main:
            built.tuned.save(self.folder, whole=made_here(self.recipe))
            save_beside(built.learner, built.tokenizer, self.folder)
            if built.tokenizer is not None:
                built.tokenizer.save_pretrained(str(self.folder))
            (self.folder / "training.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        self.engine.wait()
        self.engine.end()
        self.say("done", {**metrics, "output": str(self.folder)})
        return TrainResult(metrics, history, built.tuned)

    def _note(self, text: str) -> None:
        self.say("note", {"text": text})

    def _announce(self) -> None:
        built, student = self.built, self.built.learner.student
        beside = sum(peer.num_parameters() for peer in built.learner.peers)
        settings = {
            "steps": built.steps,
            "epochs": built.steps / built.steps_per_epoch,
            "examples": len(built.train),
            "eval_examples": len(built.held_out) if built.held_out is not None else 0,
            "tokens": int(self.order.lengths.sum()),
            "read": built.task.measure.read,
            "parameters": student.num_parameters(),
            "trainable_parameters": student.num_parameters(only_trainable=True),
            "teacher_parameters": built.teacher.parameters if built.teacher else beside,
            "device": str(self.engine.device),
            "precision": self.engine.precision,
            "learning_rate": self.peak_rate,
            "class_weights": built.class_weights,
            "warnings": [*self.recipe.warnings(), *built.task.doubts(built.train, student)],
            "output": str(self.folder),
            "resumed_from": self.start,
        }
        with writing(self.folder):
            self.engine.start_trackers("llm-finetuner", settings, self.start)
        self.say("plan", settings)


def _width(provider: Provider) -> int | None:
    """How many columns of the logits name a token of both, where they are the first ones."""
    return provider.columns if isinstance(provider.columns, int) else None
