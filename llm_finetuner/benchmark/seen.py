"""Which rows a forecaster was trained on: its errors there are smaller than those to come."""

import pandas as pd
from torch import nn

from llm_finetuner.data.series import Group
from llm_finetuner.data.windows import Frame


def after_training(group: Group, model: nn.Module) -> int:
    """The first row after those that the model was trained on; 0 where rows or the model do not tell."""
    until = model.config.trained_until
    if until is None or group.frequency is None:
        return 0
    until = pd.Timestamp(until)
    if (until.tz is None) != (group.times.tz is None):  # times of another table
        return 0
    return int(group.times.searchsorted(until, side="right"))


def before(model: nn.Module, frame: Frame, part: str, name: str) -> str | None:
    """A sentence where the model was trained on rows of this part, or of later ones."""
    for group, borders in zip(frame.groups, frame.borders, strict=True):
        begins = borders[part][0]
        if after_training(group, model) > begins:
            return (
                f"{name} was trained on rows up to {model.config.trained_until}, and the {part} part begins at "
                f"{group.times[begins]}: it has seen what it is judged by, and its errors there are too small"
            )
    return None
