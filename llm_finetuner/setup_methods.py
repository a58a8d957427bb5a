"""The setup_ methods of LLMFineTuner, made from the registered functions that they set up."""

import inspect

from llm_finetuner.registry import METHODS, TUNINGS, options_of, resolve

ALIASES = {"temp": "temperature"}  # the guide writes both


def setup_method(name: str):
    """A method that sets up `name`, with the signature of the function behind it: a default is written once."""
    table = TUNINGS if name in TUNINGS else METHODS
    function = resolve(table, name)
    parameters = [
        inspect.Parameter(option, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
        for option, default in options_of(function).items()
    ]
    signature = inspect.Signature(
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *parameters]
    )

    def setup(self, *args, **options) -> None:
        given = signature.bind_partial(self, *args).arguments
        given.pop("self")
        given |= {ALIASES.get(option, option): value for option, value in options.items()}
        (self._set_tuning if table is TUNINGS else self._set_method)(name, given)

    setup.__name__ = f"setup_{name}"
    setup.__doc__ = f"{inspect.getdoc(function)}\n\nRaises RecipeError and OrderError."
    setup.__signature__ = signature
    return setup
