"""Every error a user can cause. The command line prints them in two lines; anything else keeps its traceback.

FinetunerError
|-- RecipeError      a setting is wrong: field, value given, what was expected
|-- DataError        a file, row or column is wrong: where, what, what to do
|   `-- TooShort     a series has too few rows
|-- ModelError       a model or tokenizer cannot be loaded or does not fit the job
|-- OrderError       a method was called before what it needs
|-- TrainingError    a run cannot go on: NaN, out of memory, disk full
`-- CheckpointError  nothing to resume from, or what is there is damaged
"""

# What to do where labels are numbers and names are wanted: nobody else knows which of them is 0.
NAME_NUMBERS = "say what 0, 1, ... are called: data.label_names: [...] (label_names=[...], --label-names a,b)"


class FinetunerError(Exception):
    """`what` went wrong, and `hint`: what the user can do next."""

    def __init__(self, what: str, hint: str = ""):
        super().__init__(f"{what}\n{hint}" if hint else what)
        self.what = what
        self.hint = hint


class RecipeError(FinetunerError, ValueError):
    """A setting is wrong."""


class DataError(FinetunerError, ValueError):
    """The data cannot be used as they are."""


class TooShort(DataError):
    """A series has too few rows for what is asked; `short: drop` leaves such out."""


class ModelError(FinetunerError, ValueError):
    """A model or tokenizer cannot be loaded or does not fit the job."""


class OrderError(FinetunerError, RuntimeError):
    """A method was called before what it needs."""


class TrainingError(FinetunerError, RuntimeError):
    """A run cannot go on."""


class CheckpointError(FinetunerError, RuntimeError):
    """There is nothing to resume from, or what is there is damaged."""
