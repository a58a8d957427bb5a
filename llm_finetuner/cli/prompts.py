"""Questions on the terminal, by questionary: Enter takes the default, Esc or Ctrl-B goes back, Ctrl-C leaves.

An answered question shrinks to one line, which goes when one goes back; keys that were hit before a question was
drawn are dropped. Raises KeyboardInterrupt for Ctrl-C and Ctrl-D.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import questionary
from prompt_toolkit import print_formatted_text
from prompt_toolkit.application import get_app_session
from prompt_toolkit.completion import PathCompleter
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.input.typeahead import get_typeahead
from prompt_toolkit.key_binding import KeyBindings, merge_key_bindings
from prompt_toolkit.keys import Keys
from prompt_toolkit.utils import get_cwidth
from questionary.prompts.common import InquirerControl

from llm_finetuner.cli import shown
from llm_finetuner.errors import RecipeError

_due: list[Callable[[], None]] = []  # what is to be done when the next question stands on the screen
BACK = object()  # the answer of someone who wants the question before
STYLE = questionary.Style(
    [("instruction", "fg:ansibrightblack"), ("answer", "fg:ansicyan bold"), ("pointer", "fg:ansicyan bold")]
)


@dataclass(frozen=True)
class Ask:
    """A line to type. `parse` turns it into the value, and raises RecipeError for the message at the prompt."""

    default: str
    parse: Callable[[str], Any] = str
    is_path: bool = False


@dataclass(frozen=True)
class Pick:
    """One of several: (value, title, what it means, shortcut key or None)."""

    choices: list[tuple[Any, str, str, str | None]]
    default: Any = None


@dataclass(frozen=True)
class Mark:
    """Any number of: (value, title)."""

    choices: list[tuple[str, str]]
    default: tuple[str, ...] = ()


def ask(title: str, why: str, prompt: Ask | Pick | Mark) -> Any:
    """Ask until the answer is valid; the value, or BACK."""
    answer = ask_plain(title, why, prompt)
    return prompt.parse(answer) if isinstance(prompt, Ask) and answer is not BACK else answer


def ask_plain(title: str, why: str, prompt: Ask | Pick | Mark) -> Any:
    """The answer as it was typed or picked (what may be a default again), or BACK."""
    forget_typing()  # nobody answers a question that is not on the screen yet
    draw = {Ask: _line, Pick: _pick, Mark: _mark}[type(prompt)]
    question = draw(title, why, prompt)
    app = question.application
    app.key_bindings = merge_key_bindings([app.key_bindings, _keys(prompt)])
    app.erase_when_done = True
    app.after_render += _do_what_is_due
    app.ttimeoutlen, app.timeoutlen = 0.05, 0.1  # a lone Esc is answered at once
    try:
        answer = question.unsafe_ask()
    except EOFError:
        raise KeyboardInterrupt from None
    if answer is BACK:
        return BACK
    asked, spelled = f"? {title}  ", _spell(answer, prompt)
    print_formatted_text(FormattedText([("bold", asked), ("fg:ansicyan", spelled)]), style=STYLE)
    shown.answered(get_cwidth(asked + spelled))
    return answer


def once_drawn(action: Callable[[], None]) -> None:
    """Do it, once, as soon as the next question stands on the screen."""
    _due[:] = [action]


def _do_what_is_due(_app: Any) -> None:
    while _due:
        _due.pop()()


def take_back() -> bool:
    """Erase the last answer from the screen; False where something stands below it, or there is none."""
    width = shown.take_last()
    if width is None:
        return False
    output = get_app_session().output
    output.cursor_up(max(1, -(-width // output.get_size().columns)))
    output.write_raw("\r")
    output.erase_down()
    output.flush()
    return True


def note(words: str) -> None:
    """A plain line between questions."""
    shown.written()
    print_formatted_text(words)


def forget_typing() -> None:
    """Drop the keys that were hit while nothing asked for them, so that none of them answers the next question.

    Ctrl-C among them still leaves: raises KeyboardInterrupt.
    """
    keys = get_app_session().input
    if sys.platform != "win32" and os.isatty(keys.fileno()):
        early = any(press.key == Keys.ControlC for press in get_typeahead(keys))
        if early or b"\x03" in _pending(keys.fileno()):
            raise KeyboardInterrupt


def _pending(terminal: int) -> bytes:
    """What was typed and not read yet, whole lines or not."""
    import termios

    before, by_key = termios.tcgetattr(terminal), termios.tcgetattr(terminal)
    by_key[3] &= ~termios.ICANON
    by_key[6][termios.VMIN] = by_key[6][termios.VTIME] = 0  # read what there is, and wait for nothing
    termios.tcsetattr(terminal, termios.TCSANOW, by_key)
    try:
        return os.read(terminal, 2**16)
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def _keys(prompt: Ask | Pick | Mark) -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", eager=True)
    @keys.add("c-b", eager=True)
    def _back(event) -> None:
        event.app.exit(result=BACK)

    if isinstance(prompt, Ask):

        @keys.add("enter", eager=True)
        def _accept(event) -> None:
            if not event.current_buffer.text.strip():
                event.current_buffer.text = prompt.default
            event.current_buffer.validate_and_handle()

        @keys.add("right", filter=_empty(), eager=True)
        def _edit_default(event) -> None:
            event.current_buffer.insert_text(prompt.default)

    if isinstance(prompt, Pick):
        _add_numbers(keys, prompt)
    return keys


def _add_numbers(keys: KeyBindings, prompt: Pick) -> None:
    """Numbers of more than one digit: questionary's shortcuts are single characters."""
    numbers = [key if key and key.isdigit() else "" for *_, key in prompt.choices]
    typed = [""]
    if max(map(len, numbers), default=0) < 2:
        return

    def point(event) -> None:
        typed[0] += event.key_sequence[0].key
        while typed[0] and typed[0] not in numbers:  # what was meant may begin later
            typed[0] = typed[0][1:]
        if typed[0]:
            controls = event.app.layout.find_all_controls()
            next(c for c in controls if isinstance(c, InquirerControl)).pointed_at = numbers.index(typed[0])

    for digit in "0123456789":
        keys.add(digit, eager=True)(point)


def _empty():
    from prompt_toolkit.application import get_app
    from prompt_toolkit.filters import Condition

    return Condition(lambda: not get_app().current_buffer.text)


def _wrapped(title: str, why: str) -> str:
    """The explanation, folded to the terminal: questionary cuts long lines."""
    width = max(shutil.get_terminal_size().columns - 4, 20)
    first = max(width - len(title) - 4, 0)
    if len(why) <= first:
        return why
    return "\n  " + "\n  ".join(textwrap.wrap(why, width))


def _line(title: str, why: str, prompt: Ask):
    def message(typed: str) -> bool | str:
        try:
            prompt.parse(typed)
        except RecipeError as error:
            return f"{error.what}; {error.hint}" if error.hint else error.what
        return True

    return questionary.text(
        title, instruction=f"{_wrapped(title, why)}\n >", validate=message, style=STYLE,
        placeholder=FormattedText([("fg:ansibrightblack", prompt.default)]),
        completer=PathCompleter(expanduser=True) if prompt.is_path else None, complete_while_typing=False,
        validate_while_typing=False,
    )  # fmt: skip


def _pick(title: str, why: str, prompt: Pick):
    choices = [
        questionary.Choice(label, value, shortcut_key=key or False, description=told or None)
        if len(key or "") < 2
        else _Numbered(label, value, key, told)
        for value, label, told, key in prompt.choices
    ]
    shortcuts = any(key for *_, key in prompt.choices)
    return questionary.select(
        title, choices, default=prompt.default, use_shortcuts=shortcuts, use_jk_keys=False, style=STYLE,
        instruction=_wrapped(title, why) or " ",
    )  # fmt: skip


class _Numbered(questionary.Choice):
    """A choice under a number of two digits, which `_add_numbers` makes work."""

    def __init__(self, label: str, value: Any, number: str, told: str):
        super().__init__(label, value, shortcut_key=False, description=told or None)
        self.number = number

    def get_shortcut_title(self) -> str:
        return f"{self.number}) "


def _mark(title: str, why: str, prompt: Mark):
    choices = [
        questionary.Choice(label, value, checked=value in prompt.default) for value, label in prompt.choices
    ]
    return questionary.checkbox(
        title, choices, use_jk_keys=False, style=STYLE, instruction=_wrapped(title, why)
    )


def _spell(answer: Any, prompt: Ask | Pick | Mark) -> str:
    if isinstance(prompt, Pick):
        return next(label for value, label, *_ in prompt.choices if value == answer)
    return ", ".join(answer) or "none" if isinstance(answer, list) else str(answer)
