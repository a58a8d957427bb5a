"""Who teaches a run: the provider of answers, peers that learn beside the student, or a teacher that writes texts."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from llm_finetuner.checks import common_vocabulary
from llm_finetuner.errors import RecipeError
from llm_finetuner.models import loading
from llm_finetuner.models.mean_forecaster import MeanForecaster
from llm_finetuner.named_models import label_counts, load_model, load_teacher
from llm_finetuner.recipe import Recipe, Teacher, members_of
from llm_finetuner.registry import MODELS, TEACHERS, resolve
from llm_finetuner.scheme import Scheme
from llm_finetuner.teachers.ensemble import Ensemble
from llm_finetuner.teachers.matched import live_teacher
from llm_finetuner.teachers.provider import Context, Provider
from llm_finetuner.teachers.shuffled import Shuffled
from llm_finetuner.terms import reads_teacher
from llm_finetuner.writing import write_rows


def asks(scheme: Scheme) -> bool:
    """Whether any term is answered from outside: with alpha = 1 nobody is asked."""
    return scheme.teacher in ("given", "average") and any(reads_teacher(term) for term in scheme.terms)


def untaught(scheme: Scheme) -> bool:
    """Whether there is a teacher in name only: none of its answers has a weight, and it writes nothing."""
    return scheme.teacher == "given" and not asks(scheme) and scheme.writing is None


def role_of(recipe: Recipe) -> Literal["distilled", "tuned"]:
    """What the run's student stands for in a comparison."""
    taught = recipe.inherits or not untaught(recipe.scheme)
    return "distilled" if recipe.distils and taught else "tuned"


def check_control(recipe: Recipe, given: nn.Module | Provider | None) -> None:
    """Raise RecipeError for a shuffled teacher where no answer of it is put in another's place, so it would be itself.

    given: what stands in for the teacher that the recipe names, if anything.
    """
    spec, scheme = recipe.teacher, recipe.scheme
    if spec is None or not recipe.distils:
        return
    inside = spec.kind == "ensemble" and any(member.shuffled for member in members_of(spec))
    if not (spec.shuffled or inside):
        return
    if scheme.writing or scheme.teacher in ("peers", "none") or (inside and scheme.teacher == "average"):
        raise RecipeError(
            f"teacher.shuffled has no effect with {recipe.method}: it moves the answers of a frozen teacher",
            "leave it out, or take a method that learns from such answers",
        )
    if inside and given is not None:
        raise RecipeError(
            "a member of the ensemble is shuffled, and the members were given as objects, as they are",
            "teacher.shuffled for all of them, or name the members",
        )


def build_teacher(
    recipe: Recipe, given: nn.Module | Provider | None, tokenizer: Any, context: Context
) -> Provider:
    """What answers the student's batches; `given` stands in for what the recipe names, `tokenizer` is its own.

    Raises RecipeError, ModelError.
    """
    scheme, spec = recipe.scheme, recipe.teacher
    if scheme.teacher == "average":
        provider = resolve(TEACHERS, "average")(Teacher(), context, **scheme.teacher_options)
    elif given is None:
        spec = _named(recipe)
        provider = resolve(TEACHERS, spec.kind, "kind of teacher")(spec, context, **spec.options)
    elif isinstance(given, Provider):
        provider = given
    else:
        stays = loading.is_quantised(given) or (spec is not None and spec.device)
        model = given if stays else given.to(context.device)
        provider = live_teacher(model, tokenizer, spec.name if spec else "the teacher", context)
    return Shuffled(provider) if spec and spec.shuffled else provider


def measured_teacher(
    recipe: Recipe, given: nn.Module | Provider | None, task: Any, rows: Any, device: torch.device
) -> nn.Module | None:
    """The teacher as one model that can be measured; None where it is none, or not at hand.

    Of numbers also what stands behind a cache that a run filled, and of forecasters the mean of several. rows: to be
    learned from.
    """
    if isinstance(given, nn.Module):
        return given
    spec = recipe.teacher
    if not task.numbers or spec is None or recipe.scheme.teacher != "given":
        return None
    if isinstance(given, Ensemble):
        models = [member.model for member in given.members]
    else:
        models = [_at_hand(member, task, device) for member in members_of(spec)]
    if any(model is None for model in models):
        return None
    for model in models:
        task.meet(model, rows)
    if len(models) == 1:
        return models[0]
    if not task.series:  # models of other numbers have no mean that could be measured
        return None
    weights = spec.options.get("weights") or [1.0] * len(models)
    return MeanForecaster(models, [weight / sum(weights) for weight in weights])


def _at_hand(spec: Teacher, task: Any, device: torch.device) -> nn.Module | None:
    there = spec.name in MODELS or (spec.name and Path(spec.name).expanduser().is_dir())
    return load_teacher(spec, device, task.auto) if there and spec.kind in ("live", "live_cached") else None


def build_peers(
    recipe: Recipe, given: list[nn.Module], rows: Any, context: Context
) -> tuple[list[nn.Module], Provider]:
    """The models that learn beside the student, and what tells which columns all of the group compare.

    Raises RecipeError, ModelError.
    """
    peers, task, group = list(given), context.task, Provider()
    tokenizers = [context.tokenizer] * len(peers)  # objects were compared when they were given
    if not peers:
        seed = recipe.train.seed + 1  # a peer from scratch is another draw than the student
        for i, spec in enumerate(members_of(_named(recipe))):
            if spec.kind != "live":
                raise RecipeError(
                    f"{recipe.method} trains its peers, and a {spec.kind} teacher cannot learn",
                    "name models: teacher.kind=live, or an ensemble of them",
                )
            peer = load_model(spec, context.device, seed + i, task.auto)
            tokenizers.append(task.tokenizer(spec.name))
            if spec.from_scratch and task.writes:
                loading.start_head_bias(peer, label_counts(rows, task.vocabulary(peer)))
            peers.append(peer)
    shared = []
    for peer, tokenizer in zip(peers, tokenizers, strict=True):
        shared.append(
            common_vocabulary(task, context.student, peer, context.tokenizer, tokenizer, context.seed)
        )
        task.check_model(peer, "the peer")
        if loading.is_quantised(peer):
            raise RecipeError("a peer is trained, and weights in 4 or 8 bits cannot be", "load it in full")
        task.check_inputs(rows, peer)
        for weight in peer.parameters():  # as the student's: half precision swallows small steps
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
        peer.train().requires_grad_(True)
    group.columns = min((count for count in shared if count is not None), default=None)
    return peers, group


def write_examples(recipe: Recipe, given: Any, given_tokenizer: Any, rows: Any, context: Context) -> Any:
    """Rows whose completions the teacher wrote, kept in the run's folder. Raises RecipeError, ModelError."""
    if given is None:
        spec = _named(recipe)
        if spec.kind != "live":
            raise RecipeError(
                f"{recipe.method} needs a teacher that can write, not {spec.kind}", "teacher.kind=live"
            )
        given = load_teacher(spec, context.device, context.task.auto)
        given_tokenizer = context.task.tokenizer(spec.name)
    if isinstance(given, Provider):
        raise RecipeError(f"{recipe.method} needs one teacher that can write: a model")
    common_vocabulary(context.task, context.student, given, context.tokenizer, given_tokenizer)
    path = Path(recipe.output) / "written.jsonl"
    return write_rows(
        given, context.tokenizer, rows, recipe.scheme.writing, path, seed=recipe.train.seed,
        max_length=recipe.data.max_length, note=context.note, first=context.rank == 0,
    )  # fmt: skip


def _named(recipe: Recipe) -> Teacher:
    if recipe.teacher is None:
        hint = "give teacher.name (or --teacher), or load_teacher_model(...)"
        raise RecipeError(f"{recipe.method} needs a teacher", hint)
    return recipe.teacher
