"""The kinds of teachers and their options. Heavy imports stand inside, so that naming a kind costs nothing.

Each takes (spec, context) and, after *, the options that a recipe sets; each returns a Provider.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Teacher, members_of

if TYPE_CHECKING:
    from llm_finetuner.teachers.provider import Context, Provider


def live(spec: Teacher, context: Context) -> Provider:
    """A model that answers each batch as it comes."""
    from llm_finetuner.named_models import load_teacher
    from llm_finetuner.teachers.matched import live_teacher

    model = load_teacher(spec, context.device, context.task.auto)
    return live_teacher(model, context.task.tokenizer(spec.name), spec.name, context)


def ensemble(
    spec: Teacher,
    context: Context,
    *,
    members: list | None = None,
    weights: list[float] | str | None = None,
    mixture: str | None = None,
) -> Provider:
    """Several teachers as one: members are names or mappings of a teacher's settings, weights are numbers or "loss".

    mixture: probabilities or logits; by default whichever fits the task. The logits of forecasters are their forecasts.
    """
    from llm_finetuner.registry import TEACHERS, resolve
    from llm_finetuner.teachers.ensemble import Ensemble
    from llm_finetuner.teachers.shuffled import Shuffled

    mixture = mixture_of(context.task, weights, mixture)
    built = []
    for member in members_of(spec):
        kind = resolve(TEACHERS, member.kind, "kind of teacher")
        provider = kind(member, context, **member.options)
        built.append(Shuffled(provider) if member.shuffled else provider)
    return Ensemble(built, weights, mixture)


def average(spec: Teacher, context: Context, *, decay: float = 0.999) -> Provider:
    """The moving average of the student's own weights."""
    from llm_finetuner.teachers.average import Average

    return Average(context.task, context.student, decay)


def cached(spec: Teacher, context: Context, *, path: str = "") -> Provider:
    """The answers of a teacher that were written down in the folder `path`: no teacher in memory."""
    from llm_finetuner.teachers import cached as heavy

    return heavy.cached(spec, context, path=path)


def remote(
    spec: Teacher,
    context: Context,
    *,
    url: str = "",
    k: int = 50,
    timeout: float = 60.0,
    retries: int = 4,
    concurrency: int = 4,
    batch: int = 8,
    key_variable: str = "OPENAI_API_KEY",
    cache: str = "",
) -> Provider:
    """The k most probable tokens of each position, asked of a completions endpoint at `url` that knows spec.name.

    timeout: seconds a request. batch: sequences a request. concurrency: requests at a time. key_variable: the
    environment variable that holds the key. cache: folder of the answers; "": one for all runs of the user.
    """
    from llm_finetuner.teachers.remote import connect

    check_writes(context.task, "remote")
    return connect(
        spec, context, url=url, k=k, timeout=timeout, retries=retries, concurrency=concurrency, batch=batch,
        key_variable=key_variable, cache=cache,
    )  # fmt: skip


def across(spec: Teacher, context: Context, *, compare: str = "shared") -> Provider:
    """A model with another tokenizer, heard where both come to an end of a token.

    compare: "shared" brings both distributions to the tokens that they share; "sorted" is for the objective uld.
    """
    from llm_finetuner.teachers import across as heavy

    check_writes(context.task, "across")
    return heavy.across(spec, context, compare=compare)


def live_cached(
    spec: Teacher,
    context: Context,
    *,
    path: str = "",
    k: int = 50,
    mode: str = "top_k",
    keep_layers: list[int | str] | None = None,
) -> Provider:
    """A model whose answers fill the folder `path` during the first epoch, and are read from there in the next ones.

    mode: "top_k" keeps the k best tokens of each position and the tail, and all of them where there are no more; "fp16"
    and "fp32" always all. keep_layers: its blocks whose hidden states are kept too, or "pooled". What the folder holds
    already is not asked again.
    """
    from llm_finetuner.teachers.filling import fill

    return fill(spec, context, path=path, k=k, mode=mode, keep_layers=keep_layers)


def check_writes(task: Any, kind: str) -> None:
    """Raise RecipeError for answers that only models which write give in this form."""
    if not task.writes:
        raise RecipeError(
            f"a {kind} teacher answers models that continue texts, and this one does not", "teacher.kind=live"
        )


def mixture_of(task: Any, weights: list[float] | str | None, mixture: str | None) -> str:
    """How teachers are mixed. Raises RecipeError for ways that take answers to be distributions that are none."""
    if task.exclusive:
        return mixture or "probabilities"
    if mixture == "probabilities" or weights == "loss":
        what = "forecasts" if task.numbers else "several labels a text"
        raise RecipeError(
            f"{what} are no one distribution, so teachers are mixed by their logits and given weights",
            "mixture: logits, and weights as numbers or none",
        )
    return mixture or "logits"
