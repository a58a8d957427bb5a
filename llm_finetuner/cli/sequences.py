"""The command evaluate for models of sequences: their error on the test part. Heavy imports stand inside."""

from pathlib import Path
from typing import Any

from llm_finetuner.cli.settings import paths_in
from llm_finetuner.cli.training import check_finished, recipe_in
from llm_finetuner.errors import RecipeError
from llm_finetuner.recipe import Data
from llm_finetuner.recipe_series import REGRESSION
from llm_finetuner.registry import TASKS, resolve


def is_for(given: dict[str, Any]) -> bool:
    """Whether a model of sequences is to be judged, by the flag or by the recipe of its run."""
    named = given.get("--task") == REGRESSION
    run = (Path(given["model"]) / "recipe.yaml").exists()
    return named or ("--task" not in given and run and recipe_in(given["model"]).task == REGRESSION)


def evaluate(given: dict[str, Any], screen) -> Any:
    """evaluate --model RUN [--data FOLDER]: the error on the test part. Raises FinetunerError."""
    name, data = given["model"], _data(given)
    from llm_finetuner.data import signals

    found = signals.read(data.source, data.eval_fraction)
    from llm_finetuner.cli.progress import quiet_libraries

    quiet_libraries()
    from llm_finetuner.benchmark.quality import evaluate as score
    from llm_finetuner.benchmark.verdict import finite
    from llm_finetuner.engine import default_device
    from llm_finetuner.models.loading import load_trained

    task = resolve(TASKS, REGRESSION)()
    model = load_trained(name, default_device(None), merge=True, auto=task.auto)
    task.check_model(model, name)
    rows = task.prepare_rows(found, None, data, model).dataset
    task.check_inputs(rows, model)
    told = task.measure.summary(score(task, model, rows))
    told = {"model": name, "data": data.source, "rows": len(rows), "samples": told["tokens"], **told}
    told = finite({key: value for key, value in told.items() if key not in task.measure.without})
    screen.say(found.describe())
    show = task.measure.show
    low, high = show(told["nmse_db_low"]), show(told["nmse_db_high"])
    screen.facts(
        [
            ("NMSE", f"{show(told['nmse_db'])}, 95 % interval {low} to {high}"),
            ("over", f"{told['samples']:,} samples of {told['rows']:,} test rows; an answer of zeros has 0 dB"),
            ("PSNR", show(told["psnr"])),
            ("coherence", f"{told['coherence']:.4f}"),
        ]
    )  # fmt: skip
    return told


def _data(given: dict[str, Any]) -> Data:
    """The run's data, or those of the flag."""
    name, flags = given["model"], paths_in({**given, "--task": REGRESSION}, distil=False)
    run = (Path(name) / "recipe.yaml").exists()
    if run:
        check_finished(name)
    elif not Path(name).is_dir():
        raise RecipeError(f"there is no {name}", "give the folder of a run, or a model of one")
    own = recipe_in(name).data if run else Data()
    source = flags.get("data.source") or own.source
    if not source:
        raise RecipeError("no data are named", "give a folder or file of sequences with --data")
    return Data(source=source, eval_fraction=own.eval_fraction)
