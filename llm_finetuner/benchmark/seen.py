"""Which rows a forecaster was trained on: its errors there are smaller than those to come."""

from torch import nn

from llm_finetuner.data.series import Group
from llm_finetuner.data.windows import Frame


def after_training(group: Group, model: nn.Module) -> int | None:
    """The first row after those that the model was trained on; None where rows or the model do not tell."""
    until = model.config.trained_until
    if not any(weight.numel() for weight in model.parameters()):
        return 0  # it has learned nothing
    if not isinstance(until, dict):
        return group.count_until(until)
    known = [group.count_until(until[name], name) for name in group.names if name in until]
    counted = group.frequency is None or any(isinstance(end, list) for end in until.values())
    if counted and len(known) < len(group.names):
        return None  # rows under other names may be the same
    return None if None in known else max(known, default=0)  # it never saw series of other names


def before(model: nn.Module, frame: Frame, part: str, name: str) -> str | None:
    """A sentence where the model was trained on rows of this part, or of later ones."""
    for group, borders in zip(frame.groups, frame.borders, strict=True):
        begins = borders[part][0]
        count = after_training(group, model) or 0
        if count > begins:
            return (
                f"{name} was trained on rows up to {group.times[count - 1]}, and the {part} part begins at "
                f"{group.times[begins]}: it has seen what it is judged by, and its errors there are too small"
            )
    return None
