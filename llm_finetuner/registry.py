"""Names of everything that can be chosen, and where it lives. Imports nothing heavy, so nothing imports in a circle."""

import difflib
import importlib
import inspect
import numbers
from typing import Any

from llm_finetuner.errors import RecipeError

OBJECTIVES = {
    "cross_entropy": "llm_finetuner.objectives.supervised:cross_entropy",
    "mse": "llm_finetuner.objectives.supervised:mse",
    "huber": "llm_finetuner.objectives.supervised:huber",
    "forward_kl": "llm_finetuner.objectives.divergence:forward_kl",
    "reverse_kl": "llm_finetuner.objectives.divergence:reverse_kl",
    "adaptive_kl": "llm_finetuner.objectives.divergence:adaptive_kl",
    "alpha_beta": "llm_finetuner.objectives.divergence:alpha_beta",
    "total_variation": "llm_finetuner.objectives.divergence:total_variation",
    "logit_mse": "llm_finetuner.objectives.divergence:logit_mse",
    "jsd": "llm_finetuner.objectives.mixture:jsd",
    "skew_forward_kl": "llm_finetuner.objectives.mixture:skew_forward_kl",
    "skew_reverse_kl": "llm_finetuner.objectives.mixture:skew_reverse_kl",
    "hidden_mse": "llm_finetuner.objectives.feature:hidden_mse",
    "hidden_cosine": "llm_finetuner.objectives.feature:hidden_cosine",
    "hidden_normalized": "llm_finetuner.objectives.feature:hidden_normalized",
    "hidden_nmse": "llm_finetuner.objectives.feature:hidden_nmse",
    "embedding_mse": "llm_finetuner.objectives.feature:embedding_mse",
    "cka": "llm_finetuner.objectives.feature:cka",
    "attention_mse": "llm_finetuner.objectives.attention:attention_mse",
    "attention_kl": "llm_finetuner.objectives.attention:attention_kl",
    "value_relation": "llm_finetuner.objectives.attention:value_relation",
    "distance": "llm_finetuner.objectives.relation:distance",
    "angle": "llm_finetuner.objectives.relation:angle",
    "similarity": "llm_finetuner.objectives.relation:similarity",
    "token_relation": "llm_finetuner.objectives.relation:token_relation",
    "span_kl": "llm_finetuner.objectives.across:span_kl",
    "uld": "llm_finetuner.objectives.across:uld",
    "output_mse": "llm_finetuner.objectives.series:output_mse",
    "pinball": "llm_finetuner.objectives.series:pinball",
    "spectrum": "llm_finetuner.objectives.series:spectrum",
    "multi_scale": "llm_finetuner.objectives.series:multi_scale",
}
METHODS = {
    "fine_tuning": "llm_finetuner.methods.fine_tuning:fine_tuning",
    "vanilla_distillation": "llm_finetuner.methods.vanilla:vanilla_distillation",
    "feature_distillation": "llm_finetuner.methods.feature:feature_distillation",
    "relation_distillation": "llm_finetuner.methods.relation:relation_distillation",
    "distillation": "llm_finetuner.methods.mixture:distillation",
    "self_distillation": "llm_finetuner.methods.self_teaching:self_distillation",
    "online_distillation": "llm_finetuner.methods.online:online_distillation",
    "on_policy_distillation": "llm_finetuner.methods.on_policy:on_policy_distillation",
    "sequence_distillation": "llm_finetuner.methods.sequence:sequence_distillation",
    "forecast_distillation": "llm_finetuner.methods.forecasting:forecast_distillation",
    "regression_distillation": "llm_finetuner.methods.regression:regression_distillation",
}
TUNINGS = {
    "full": "llm_finetuner.tuning.full:full",
    "frozen": "llm_finetuner.tuning.frozen:frozen",
    "lora": "llm_finetuner.tuning.lora:lora",
    "qlora": "llm_finetuner.tuning.qlora:qlora",
    "adalora": "llm_finetuner.tuning.adalora:adalora",
}
TASKS = {
    "causal_lm": "llm_finetuner.tasks.causal_lm:CausalLM",
    "classification": "llm_finetuner.tasks.classification:Classification",
    "multi_label_classification": "llm_finetuner.tasks.classification:SeveralLabels",
    "token_classification": "llm_finetuner.tasks.in_place:TokenClassification",
    "masked_lm": "llm_finetuner.tasks.in_place:MaskedLM",
    "seq2seq_lm": "llm_finetuner.tasks.seq2seq:Seq2Seq",
    "forecasting": "llm_finetuner.tasks.forecasting:Forecasting",
    "sequence_regression": "llm_finetuner.tasks.sequence_regression:SequenceRegression",
}
MODELS = {  # that transformers does not give, built from a few settings (student.shape, teacher.shape)
    "time_llm": "llm_finetuner.models.build:time_llm",
    "patch": "llm_finetuner.models.build:patch",
    "linear": "llm_finetuner.models.build:linear",
    "repeat-last": "llm_finetuner.models.build:repeat_last",
    "seasonal-naive": "llm_finetuner.models.build:seasonal_naive",
    "s4d": "llm_finetuner.models.build_s4d:s4d",
}
TEACHERS = {
    "live": "llm_finetuner.teachers.kinds:live",
    "ensemble": "llm_finetuner.teachers.kinds:ensemble",
    "average": "llm_finetuner.teachers.kinds:average",
    "cached": "llm_finetuner.teachers.kinds:cached",
    "remote": "llm_finetuner.teachers.kinds:remote",
    "across": "llm_finetuner.teachers.kinds:across",
    "live_cached": "llm_finetuner.teachers.kinds:live_cached",
}
EXPORTERS = {
    "merged": "llm_finetuner.export.merged:Merged",
    "onnx": "llm_finetuner.export.onnx:Onnx",
    "folded": "llm_finetuner.export.folded:Folded",
}
OPTIMIZERS = {"adamw": "llm_finetuner.optim:adamw", "adamw_8bit": "llm_finetuner.optim:adamw_8bit"}
SCHEDULES = {
    "constant": "llm_finetuner.optim:constant",
    "linear": "llm_finetuner.optim:linear",
    "cosine": "llm_finetuner.optim:cosine",
}

# The numbered menu that users of the guide know: number -> (name, method, tuning, one line).
MENU = {
    1: ("lora", "fine_tuning", "lora", "LoRA: train small low-rank matrices beside the frozen weights"),
    2: ("qlora", "fine_tuning", "qlora", "QLoRA: LoRA on a model held in 4 bits, for little memory"),
    3: ("adalora", "fine_tuning", "adalora", "AdaLoRA: LoRA that moves its rank to where it helps"),
    4: (
        "vanilla_distillation",
        "vanilla_distillation",
        "full",
        "Vanilla distillation: learn a teacher's output probabilities",
    ),
    5: (
        "feature_distillation",
        "feature_distillation",
        "full",
        "Feature distillation: learn a teacher's hidden states too",
    ),
    6: ("full", "fine_tuning", "full", "Full fine-tuning: train every weight"),
    7: (
        "relation_distillation",
        "relation_distillation",
        "full",
        "Relation distillation: learn how a teacher's hidden states stand to each other",
    ),
    8: ("distillation", "distillation", "full", "Any mixture of losses: weigh objectives yourself"),
    9: (
        "self_distillation",
        "self_distillation",
        "full",
        "Self-distillation: no teacher, for early exits or steadier weights",
    ),
    10: (
        "online_distillation",
        "online_distillation",
        "full",
        "Online distillation: models that learn together and teach each other",
    ),
    11: (
        "on_policy_distillation",
        "on_policy_distillation",
        "full",
        "On-policy distillation: the teacher corrects what the student writes itself",
    ),
    12: (
        "sequence_distillation",
        "sequence_distillation",
        "full",
        "Sequence-level distillation: learn texts that the teacher writes first",
    ),
    13: (
        "forecast_distillation",
        "forecast_distillation",
        "full",
        "Forecast distillation: learn a series from its truth and a teacher's forecasts",
    ),
    14: (
        "regression_distillation",
        "regression_distillation",
        "full",
        "Regression distillation: learn numbers at every sample from the truth, a teacher and its hidden states",
    ),
}


def unknown(what: str, given: Any, known) -> RecipeError:
    """An error for a name that is not in a table, with the nearest one that is."""
    near = difflib.get_close_matches(str(given), [str(name) for name in known], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return RecipeError(f"unknown {what} {given!r}", f"{hint}choose one of: {', '.join(map(str, known))}")


def resolve(table: dict[str, str], name: str, what: str = "name") -> Any:
    """Return the object called `name`; "module:attr" names one that is not in the table. Raises RecipeError."""
    if not isinstance(name, str) or (name not in table and ":" not in name):
        raise unknown(what, name, table)
    module, _, attr = table.get(name, name).partition(":")
    try:
        return getattr(importlib.import_module(module), attr)
    except (ImportError, AttributeError, ValueError) as error:
        if name in table:
            raise  # ours, so a bug or a broken installation: keep the traceback
        raise RecipeError(
            f"{what} {name!r} cannot be imported: {error}", "give 'module:attr' of a module on the path"
        ) from error


def options_of(function) -> dict[str, Any]:
    """The options (keyword-only parameters) of a registered function, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def fill_options(what: str, function, given: dict[str, Any]) -> dict[str, Any]:
    """`given` over the function's defaults; an option the function does not have raises RecipeError."""
    known = options_of(function)
    for name in given:
        if name not in known:
            raise (
                unknown(f"option of {what}", name, known)
                if known
                else RecipeError(f"{what} has no options, got {name!r}")
            )
    return {**known, **{name: plain(value) for name, value in given.items()}}


def plain(value: Any) -> Any:
    """Ranges, tuples and numpy numbers as what YAML can hold."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, range | tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, numbers.Real) and type(value) not in (bool, int, float):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def menu_entry(method: str | int) -> tuple[str, str, str, str]:
    """The menu line of a name or number: (name, method, tuning, one line)."""
    by_name = {entry[0]: entry for entry in MENU.values()}
    entry = MENU.get(int(method)) if str(method).isdigit() else by_name.get(str(method))
    if entry is None:
        raise unknown("method", method, by_name)
    return entry
