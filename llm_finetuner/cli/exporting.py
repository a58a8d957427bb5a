"""The command export. Heavy imports stand inside the function."""

from collections.abc import Iterator
from typing import Any

from llm_finetuner.cli.hub import prepare
from llm_finetuner.cli.plain import count, size
from llm_finetuner.cli.training import check_finished
from llm_finetuner.run import is_run


def export(given: dict[str, Any], screen) -> Any:
    """export RUN_OR_MODEL --to FORMAT [--output FOLDER]."""
    name = given["model"]
    if is_run(name):
        check_finished(name)
    prepare([name], screen.warn)
    screen.say("Exporting ...", "dim")
    from llm_finetuner.cli.progress import quiet_libraries

    quiet_libraries()
    from llm_finetuner.export_job import export_model

    told = export_model(name, given["to"], given.get("output"))
    screen.facts(_facts(told))
    return told


def _facts(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was written, and how it compares, line by line."""
    for graph in told.get("graphs", ()):
        yield graph["file"], f"{count(graph['parameters'])} parameters, {size(graph['bytes'])}"
        for way in ("inputs", "outputs"):
            yield way, ", ".join(f"{name} [{', '.join(map(str, axes))}]" for name, axes in graph[way].items())
    if "difference" in told:
        apart, allowed = told["difference"], told["allowed"]
        yield "against PyTorch", f"logits differ by {apart:.1e} at most; {allowed:.1e} is allowed"
    yield "in all", f"{count(told['parameters'])} parameters, {size(told['bytes'])}"
    yield "in", told["folder"]
