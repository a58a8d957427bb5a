"""How much memory and time a run of forecasters will take: their operations are counted on models without storage.

As estimate.py, of windows in place of tokens: a window of one channel passes the blocks as so many patches, and stands
behind a prompt in Time-LLM. Operations are those of one forward pass of a whole batch, counted by torch itself.
"""

from typing import Any

from llm_finetuner.cli.estimate import (
    A_PASS,
    EFFICIENCY,
    Estimate,
    Sized,
    Sizes,
    matmul_speed,
    memory,
    on_gpu,
    reading,
    steps_of,
)
from llm_finetuner.cli.needed import teachers_heard
from llm_finetuner.cli.series_sight import SeriesSight
from llm_finetuner.recipe import Model, Recipe
from llm_finetuner.registry import MODELS, TASKS, TUNINGS, resolve


def look_ahead(recipe: Recipe, sight: SeriesSight) -> tuple[Sized, Estimate]:
    """The sizes and the estimate for this machine. Raises RecipeError, ModelError."""
    plan, held = recipe.train, teachers_heard(recipe)
    at_once = round(plan.batch_size * sight.each)  # windows of one channel in a forward pass
    (student, places, own), *others = [measure(model, recipe, at_once) for model in (recipe.student, *held)]
    models = Sized(student, list(zip(held, (sizes for sizes, _, _ in others), strict=True)))
    examples = max(1, round(sight.examples * recipe.data.hard_share))
    a_step = plan.batch_size * plan.gradient_accumulation_steps
    steps, _ = steps_of(plan, examples)
    passes = steps * plan.gradient_accumulation_steps
    learning = recipe.scheme.teacher == "peers"
    work = own * (
        2 if student.trainable < student.parameters else 3
    )  # a frozen trunk still passes gradients on
    work += sum(operations * (3 if learning else 1) for *_, operations in others)
    seconds = passes * (work / (matmul_speed() * EFFICIENCY) + A_PASS)
    found = memory(recipe, models, places * sight.each, on_gpu())
    windows = steps * a_step * sight.each
    return models, Estimate(
        steps, examples, windows, found, seconds, counted=("windows", "windows of one channel")
    )


def measure(model: Model, recipe: Recipe, at_once: int) -> tuple[Sizes, int, int]:
    """(sizes, places that a window takes in the blocks, operations of a forward pass). Raises ModelError."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from llm_finetuner.models import forecasters
    from llm_finetuner.models.naive import Naive

    empty, learns = _empty(model, recipe), model is recipe.student
    simple = isinstance(empty, forecasters.WITHOUT_BLOCKS)
    inner = empty.config if simple else empty.config.get_text_config()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        context = torch.empty(at_once, empty.config.lookback)
        None if isinstance(empty, Naive) else empty.requires_grad_(False).core(context)
    places = 1 if simple else empty.patches + len(getattr(empty, "slots", ()))
    blocks, width = (0, empty.config.lookback) if simple else (inner.num_hidden_layers, inner.hidden_size)
    whole, answers = empty.num_parameters(), empty.config.outputs
    sizes = Sizes(whole, _trainable(empty, recipe) if learns else 0, width, blocks, answers)
    return sizes, places, counter.get_total_flops()


def _trainable(empty: Any, recipe: Recipe) -> int:
    """Weights that move; the adapter is put into the model."""
    tuning = recipe.tuning
    kind = "lora" if tuning.kind == "qlora" else tuning.kind  # the same adapter, unquantised
    resolve(TUNINGS, kind)(empty, 100, resolve(TASKS, recipe.task)(), **tuning.options)
    return sum(weight.numel() for weight in empty.parameters() if weight.requires_grad)


def _empty(model: Model, recipe: Recipe) -> Any:
    """The model without storage. Raises ModelError."""
    import torch
    import transformers

    from llm_finetuner.models import forecasters  # noqa: F401  they are known to transformers then
    from llm_finetuner.models.build import empty
    from llm_finetuner.models.shrink import choose_in_stacks, parse_share
    from llm_finetuner.models.stacks import depths_of, with_blocks
    from llm_finetuner.named_models import student_source

    if model.name in MODELS:
        return empty(resolve(MODELS, model.name), model.shape)
    divisor = parse_share(model.name)
    name = model.name if divisor is None else student_source(recipe)
    with reading(name):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        if divisor is not None:
            config = with_blocks(
                config, choose_in_stacks(depths_of(config), divisor, model.keep_blocks, False)
            )
        with torch.device("meta"):
            return transformers.AutoModel.from_config(config)
