"""How much memory and time a run of models of sequences will take: arithmetic on their sizes, as in estimate.py.

    a layer, sample     a matrix over the channels and the gate's matrices, 2 operations a weight
    a channel, row      two Fourier transforms of twice the row's length n, 5 n log2 n each
    a channel, pass     its kernel: 8 operations a mode and sample, in each direction

Transforms, and what is done element by element, come to a small part of the speed of a plain matrix product (SLOW).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

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
from llm_finetuner.recipe import Model, Recipe
from llm_finetuner.registry import MODELS, resolve

if TYPE_CHECKING:
    from llm_finetuner.models.s4d import S4DConfig

SLOW = 5  # times a product's time that other operations take


def look_ahead(recipe: Recipe, examples: int, length: int) -> tuple[Sized, Estimate]:
    """The sizes and the estimate for this machine; examples: rows to train on, of `length` samples.

    Raises RecipeError, ModelError.
    """
    plan, held = recipe.train, teachers_heard(recipe)
    configs = [_config(model) for model in held]
    if recipe.inherits and held and held[0].name not in MODELS:
        from llm_finetuner.models.build_s4d import begun_config

        configs = [begun_config(configs[0], recipe.student.shape), *configs]
    else:
        configs = [_config(recipe.student), *configs]
    work, *others = [_measured(config, plan.batch_size, length) for config in configs]
    student = replace(work[0], trainable=work[0].parameters)
    models = Sized(student, list(zip(held, (sizes for sizes, _ in others), strict=True)))
    examples = max(1, round(examples * recipe.data.hard_share))
    a_step = plan.batch_size * plan.gradient_accumulation_steps
    steps, _ = steps_of(plan, examples)
    operations = 3 * work[1] + sum(one for _, one in others)
    seconds = (
        steps
        * plan.gradient_accumulation_steps
        * (operations / ((matmul_speed() or math.inf) * EFFICIENCY) + A_PASS)
    )
    found = memory(recipe, models, length, on_gpu())
    samples = steps * a_step * length
    return models, Estimate(steps, examples, samples, found, seconds, counted=("rows", "samples"))


def _measured(config: S4DConfig, rows: int, length: int) -> tuple[Sizes, float]:
    """(sizes, operations of a forward pass of so many rows, the slow ones weighed)."""
    from llm_finetuner.models.s4d import parameter_count

    H, parts, directions = config.model_dim, 1 + config.complex_valued, 1 + config.bidirectional
    gate = {"off": 0, "layer": 1, "shared": 1 / config.num_layers, "channel": 1}[config.gate]
    matrices = parts**2 * H**2 + gate * (1 + parts) * H**2 + (H**2 if config.gate == "channel" else 0)
    n = 2 * length
    transforms = H * parts * 5 * n * math.log2(n)
    kernel = 8 * H * config.state_dim / 2 * length * directions
    layer = 2 * rows * length * matrices + rows * SLOW * transforms + kernel
    sizes = Sizes(parameter_count(config), 0, parts * H, config.num_layers, parts * config.output_dim)
    return sizes, config.num_layers * layer


def _config(model: Model) -> S4DConfig:
    from llm_finetuner.models.build import empty
    from llm_finetuner.models.s4d import S4DConfig

    if model.name in MODELS:
        return empty(resolve(MODELS, model.name), model.shape).config
    with reading(model.name):
        return S4DConfig.from_pretrained(model.name)
