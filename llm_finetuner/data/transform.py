"""A source text -> the target text that a model with encoder and decoder makes of it.

    article | document | dialogue | text | report    highlights | summary | abstract
    source                                           target
    instruction [+ input]                            output | response
    input                                            output
    prompt                                           completion | response
    question [+ context]                             answer
    translation: {language: text} of two languages, the second is the target
    columns named by the user, the last is the target; "translation.de" is one language of a column

Tried in this order; column names are compared without regard to case. Of several sources each stands on its own line,
and may be blank where another is not. Labels are the target as the tokenizer writes it: not shifted, and without the
token that a decoder starts from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_finetuner.data import rows
from llm_finetuner.data.examples import check_options
from llm_finetuner.data.shapes import Shape
from llm_finetuner.data.text import Prepared
from llm_finetuner.errors import DataError

if TYPE_CHECKING:
    import datasets

# source with its synonyms, one more source where there is one, target with its synonyms
PAIRS = (
    (("article", "document", "dialogue", "text", "report"), "", ("highlights", "summary", "abstract")),
    (("source",), "", ("target",)),
    (("instruction",), "input", ("output", "response")),
    (("input",), "", ("output",)),
    (("prompt",), "", ("completion", "response")),
    (("question",), "context", ("answer",)),
)
TRANSLATION = "translation"
EXPECTED = (
    "recognised are: article | document | dialogue | text + highlights | summary | abstract, source + target, "
    "instruction [+ input] + output, input + output, prompt + completion, question [+ context] + answer, "
    "translation of two languages; or name the columns, the target last: "
    "text_columns=[...] / --text-columns a,b"
)


def recognise(dataset: "datasets.Dataset", text_columns: Sequence[str] | str | None = None) -> Shape:
    """Which columns are the source and which is the target, the last one. Raises DataError."""
    if text_columns:
        return _named(dataset, text_columns)
    for asked, more, learned in PAIRS:
        source, extra, target = (rows.find(dataset, n, _is_text) for n in (asked, (more,), learned))
        if source and target:
            return Shape("transform", (source, *([extra] if extra else []), target))
    if held := rows.find(dataset, (TRANSLATION,), lambda value: isinstance(value, dict)):
        languages = _languages(dataset, held)
        if len(languages) == 2:
            return Shape("transform", tuple(f"{held}.{language}" for language in languages))
        raise DataError(
            f"column {held!r} holds {len(languages)} languages: {', '.join(languages)}",
            f"name two, the target last: text_columns=['{held}.de', '{held}.en']",
        )
    listed = ", ".join(dataset.column_names) or "none"
    raise DataError(f"no source and target among the columns found: {listed}", EXPECTED)


@dataclass(frozen=True)
class Side:
    """How the texts of one side become token ids: what stands before them, around them, and where they are cut."""

    tokenizer: Any
    frame: rows.Frame
    max_length: int
    prefix: str = ""
    target: bool = False

    def __call__(self, texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        """(ids, whether the text was longer) of each; a target without a token is empty: it would teach to say nothing.

        Raises DataError where max_length leaves no room.
        """
        room = self.frame.room(self.max_length)
        if not texts:
            return []
        named = {"text_target" if self.target else "text": [self.prefix + text for text in texts]}
        found = []
        for ids in self.tokenizer(**named, add_special_tokens=False, verbose=False)["input_ids"]:
            if ids[-1:] == self.frame.back[:1]:  # data may have written EOS already
                ids = ids[:-1]
            kept = [] if self.target and not ids else self.frame.around(ids[:room])
            found.append((kept, len(ids) > room))
        return found


def sources(tokenizer: Any, max_length: int, prefix: str = "") -> Side:
    """The side of what is given."""
    return Side(tokenizer, rows.frame(tokenizer), max_length, prefix)


def targets(tokenizer: Any, max_length: int) -> Side:
    """The side of what is learned. Raises DataError for a tokenizer without an end of text."""
    return Side(tokenizer, target_frame(tokenizer), max_length, target=True)


def target_frame(tokenizer: Any) -> rows.Frame:
    """What stands around a target: EOS behind it, where the tokenizer writes no end (BERT: [SEP]) by itself.

    Raises DataError for a tokenizer without an end of text.
    """
    front, back = rows.frame(tokenizer, target=True)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in back:
        back = [*back, tokenizer.eos_token_id]
    if not back:
        raise DataError(
            "this tokenizer has no end-of-text token: the model would not learn where to stop",
            "give it one (tokenizer.eos_token), or take a model with encoder and decoder: T5, BART",
        )
    return rows.Frame(front, back)


def describe(shape: Shape) -> str:
    """One plain sentence for the user on how rows are read."""
    *given, last = shape.columns
    asked = " and ".join(f"'{column}'" for column in given)
    return f"source and target: {asked} is given, '{last}' is learned"


def prepare(
    dataset: "datasets.Dataset",
    tokenizer: Any,
    *,
    text_columns: Sequence[str] | str | None = None,
    max_length: int = 512,
    prefix: str = "",
    on_bad_row: str = "stop",
) -> Prepared:
    """Tokenise sources, each behind `prefix`, and targets; both are cut at `max_length` and keep their last token, EOS.

    input_ids and labels differ in length; the token counts of stats are of the sources, counted_tokens of the targets.
    Rows that have input_ids and labels are taken as they are. Raises DataError for a tokenizer without an end of text,
    for bad rows (on_bad_row="skip" leaves them out) and if nothing is left.
    """
    check_options(dataset, max_length, on_bad_row)
    builder = rows.Unshifted()
    if "input_ids" in dataset.column_names:
        rows.take_ready(dataset, builder, aligned=False)
        return Prepared(builder.dataset(), None, ["input_ids"], builder.stats())
    shape = recognise(dataset, text_columns)
    source, target = sources(tokenizer, max_length, prefix), targets(tokenizer, max_length)
    held = [_column(dataset, name) for name in shape.columns]
    for batch in rows.good_batches(dataset, held, lambda row: _read(row, shape), on_bad_row, builder):
        given, wanted = source([pair[0] for _, pair in batch]), target([pair[1] for _, pair in batch])
        for (ids, cut), (labels, also_cut) in zip(given, wanted, strict=True):
            builder.truncated += cut or also_cut
            builder.add_labels(ids, [1] * len(ids), labels)
        builder.flush()
    return Prepared(builder.dataset(), shape, list(shape.columns), builder.stats())


def _named(dataset: "datasets.Dataset", wanted: Sequence[str] | str) -> Shape:
    wanted = wanted.split(",") if isinstance(wanted, str) else wanted
    chosen = []
    for name in map(str.strip, wanted):
        held, language = _parts(dataset, name)
        held = rows.column(dataset, held)
        if language and language not in _languages(dataset, held):
            raise DataError(
                f"column {held!r} has no language {language!r}",
                f"languages found: {', '.join(_languages(dataset, held)) or 'none'}",
            )
        chosen.append(f"{held}.{language}" if language else held)
    if len(chosen) < 2:
        raise DataError(f"only one column is named: {chosen[0]}", EXPECTED)
    return Shape("transform", tuple(chosen))


def _parts(dataset: "datasets.Dataset", name: str) -> tuple[str, str]:
    """ "translation.de" -> (translation, de), unless a column is called so; other names -> (name, "")."""
    if name in dataset.column_names or "." not in name:
        return name, ""
    held, language = name.rsplit(".", 1)
    return held, language


def _column(dataset: "datasets.Dataset", name: str) -> str:
    return _parts(dataset, name)[0]


def _languages(dataset: "datasets.Dataset", held: str) -> list[str]:
    """The keys of a column of {language: text} that hold text in the sample, in order."""
    cells = [row[held] for row in rows.sample(dataset) if isinstance(row[held], dict)]
    return [key for key in (cells[0] if cells else ()) if any(_is_text(cell.get(key)) for cell in cells)]


def _read(row: dict, shape: Shape) -> tuple[str, str]:
    """(source, target) of the row. Raises DataError."""
    *given, last = shape.columns
    hint = "mend the row, or leave such rows out: on_bad_row='skip'"
    texts = [_cell(row, name) for name in shape.columns]
    for name, value in zip(shape.columns, texts, strict=True):
        if value is not None and not isinstance(value, str):
            raise DataError(f"column '{name}' holds {type(value).__name__}, not text", hint)
    *sources, target = texts
    sources = [text for text in sources if _is_text(text)]
    if not sources:
        raise DataError(f"the source is blank: {', '.join(given)}", hint)
    if not _is_text(target):
        raise DataError(f"the target is blank: {last}", hint)
    return "\n".join(sources), target


def _cell(row: dict, name: str) -> Any:
    if name in row:
        return row[name]
    held, language = name.rsplit(".", 1)
    return (row[held] or {}).get(language)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
