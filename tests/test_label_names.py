"""Numbers as labels, named by the user: which row learns what, and that nobody guesses."""

import datasets
import pytest
from classifiers import build_bert, build_tokenizer, save
from label_tokenizers import bert
from test_in_place import NAMES as TAGS
from test_in_place import tagger

from llm_finetuner.data import label_names, labelled, tagged
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models import labels
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.trainer import fit

PLAN = {"num_epochs": 1, "batch_size": 4, "gradient_accumulation_steps": 1, "overwrite": True}
NAMED = ["negative", "positive"]
SST = [
    {"sentence": f"{word} film", "label": number} for word, number in (("bad", 0), ("good", 1), ("nice", 1))
] * 4


def rows_of(*listed) -> datasets.Dataset:
    return datasets.Dataset.from_list(list(listed))


def numbers(rows, known, given=NAMED, **options):
    done = labelled.prepare(rows, build_tokenizer(), labels=known, label_names=given, **options)
    return done.dataset["labels"][:]


# ---- one label a text


@pytest.mark.parametrize(
    "values", [[0, 1, None], ["0", "1", ""], [0.0, 1.0, -1.0], [False, True, None], [0, 1, -100]]
)
def test_a_number_is_its_name_in_the_order_of_the_model(values):
    rows = rows_of(*({"text": "good film", "label": value} for value in values))
    assert numbers(rows, NAMED) == [[0], [1], [-100]]
    assert numbers(rows, NAMED[::-1]) == [[1], [0], [-100]]
    assert labelled.names(rows, labelled.recognise(rows), NAMED) == NAMED


def test_names_that_came_with_the_numbers_give_way_to_the_users():
    rows = rows_of(*({"text": "good film", "label": number} for number in (0, 1)))
    rows = rows.cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))
    assert numbers(rows, NAMED[::-1]) == [[1], [0]]
    with pytest.raises(DataError, match="label '0' in column 'label' is not known.*\n.*data.label_names"):
        numbers(rows, NAMED, None)


@pytest.mark.parametrize(
    ("value", "known", "said"),
    [
        (2, NAMED, "row 1: label 2 has no name: label_names names 0 to 1"),
        ("positive", NAMED, "row 1: label 'positive' is no number, and label_names names numbers"),
        (0, ["good", "bad"], "label_names has 'negative', and the labels of the model are good, bad"),
    ],
)
def test_what_has_no_name_is_told(value, known, said):
    with pytest.raises(DataError, match=said):
        numbers(rows_of({"text": "good film", "label": value}), known)


def test_some_names_of_a_model_with_more_labels():
    assert numbers(rows_of({"text": "good film", "label": 1}), ["neutral", *NAMED]) == [[2]]


# ---- several labels a text


def test_lists_of_numbers_and_lists_with_a_value_for_every_label():
    few = rows_of(
        {"text": "a", "labels": [1]}, {"text": "b", "labels": [0, 2]}, {"text": "c", "labels": None}
    )
    assert numbers(few, ["z", "y", "x"], ["x", "y", "z"]) == [[0, 1, 0], [1, 0, 1], [-100] * 3]
    for cast in (int, float):
        full = rows_of(
            {"text": "a", "labels": [cast(0), cast(1), cast(1)]}, {"text": "b", "labels": [cast(1)] * 3}
        )
        assert numbers(full, ["z", "y", "x"], ["x", "y", "z"]) == [[1, 1, 0], [1, 1, 1]]
        with pytest.raises(DataError, match="lists give values to x, y, z, and the labels of the model are"):
            numbers(full, ["z", "y", "x", "w"], ["x", "y", "z"])


# ---- tags


def test_tags_that_are_numbers():
    rows = rows_of({"tokens": ["the", "cat", "."], "tags": [0, 2, -1]}, {"tokens": ["dog"], "tags": [1]})
    made = [
        tagged.prepare(rows, bert(), labels=known, label_names=TAGS).dataset["labels"][:]
        for known in (TAGS, TAGS[::-1])
    ]
    assert made[0] == [[-100, 0, 2, -100, -100], [-100, 1, -100]]
    assert made[1] == [[-100, 2, 0, -100, -100], [-100, 1, -100]]
    foreign = rows.cast_column("tags", datasets.List(datasets.ClassLabel(names=["a", "b", "c"])))
    for unnamed in (rows, foreign):
        with pytest.raises(
            DataError, match="the tag 0 of word 1 .* among the 3 labels.*\n.*data.label_names"
        ):
            tagged.prepare(unnamed, bert(), labels=TAGS)
    with pytest.raises(DataError, match="row 1: label 2 has no name"):
        tagged.prepare(rows, bert(), labels=TAGS, label_names=TAGS[:2])


# ---- runs


@pytest.fixture
def folder(tmp_path):
    plain = ["LABEL_0", "LABEL_1"]
    save(
        tmp_path, build_tokenizer(), s=build_bert(names=plain), named=build_bert(names=NAMED[::-1]),
        t=build_bert(32, 3, seed=1, names=NAMED[::-1]),
    )  # fmt: skip
    return tmp_path


def test_sst2_beside_a_teacher_that_says_negative_and_positive(folder):
    """Refused with what to do; then every row is heard under its name, which the teacher has in another order."""
    rows = datasets.Dataset.from_list(SST)

    def tuner(student="s"):
        made = LLMFineTuner(folder / student, folder / "run", task="classification")
        made.load_model(method="vanilla_distillation")
        return made

    guessed = tuner()
    prepared, _ = guessed.prepare_dataset(rows)
    guessed._task.fit(guessed.model, prepared, 0)  # now "0" and "1"
    with pytest.raises(ModelError, match="0, 1 against positive, negative\n.*data.label_names"):
        guessed.load_teacher_model(str(folder / "t"))
    told = tuner()
    prepared, _ = told.prepare_dataset(rows, label_names=NAMED)
    assert label_names.of(prepared) == NAMED
    told._task.fit(told.model, prepared, 0)
    told.load_teacher_model(str(folder / "t"))
    told.setup_vanilla_distillation()
    told.train(prepared, **PLAN)
    assert labels.names_of(told.model) == NAMED == labels.names_of(told._parts.teacher)
    assert told.evaluate(rows)["tokens"] == len(SST)  # text too, as the last call said
    other = tuner("named")
    with pytest.raises(
        DataError, match="label '0' in column 'label' is not known; known are 'positive', 'negative'"
    ):
        other.train(rows, method="standard", **PLAN)
    other.prepare_dataset(rows, label_names=NAMED)
    other.train(rows, method="standard", **PLAN)
    assert labels.names_of(other.model) == NAMED[::-1]


def test_a_recipe_names_the_numbers_of_both_its_parts(folder):
    for name in ("train.jsonl", "dev.jsonl"):
        datasets.Dataset.from_list(SST).to_json(folder / name)
    recipe = Recipe(
        task="classification", method="vanilla_distillation", student=Model(str(folder / "s")),
        teacher=Teacher(str(folder / "t")), output=str(folder / "run"),
        data=Data(source=str(folder / "train.jsonl"), eval_source=str(folder / "dev.jsonl"), label_names=NAMED),
        train=Train(steps=1, batch_size=4, gradient_accumulation_steps=1),
    )  # fmt: skip
    model = fit(recipe).tuned.model
    assert labels.names_of(model) == NAMED
    with pytest.raises(ModelError, match="data.label_names"):
        fit(Recipe(**{**vars(recipe), "data": Data(source=str(folder / "train.jsonl"))}))


def test_prepared_rows_of_numbers_are_named_and_not_turned(folder):
    """Their numbers are taken as they are, so names in another order than the model's are refused."""
    tuner = LLMFineTuner(folder / "named", folder / "run", task="classification")
    tuner.load_model(method="full")
    ready = rows_of({"input_ids": [2, 5, 3], "labels": [1]}, {"input_ids": [2, 6, 3], "labels": [0]})
    done, _ = tuner.prepare_dataset(ready, label_names=NAMED)
    with pytest.raises(DataError, match="prepared for the labels negative, positive, the model has positive"):
        tuner.train(done, **PLAN)
    done, _ = tuner.prepare_dataset(ready, label_names=NAMED[::-1])
    tuner.train(done, **PLAN)


@pytest.mark.parametrize("names", [[], ["a", "a"], [False, True], [0, 1], ["a", " "], "a,b"])
def test_mistakes_in_the_names(names):
    with pytest.raises(RecipeError, match="data.label_names must be a list of names, each once"):
        Data(label_names=names)


def test_tags_of_a_model_with_names(tmp_path):
    save(tmp_path, bert(), s=tagger())
    tuner = LLMFineTuner(tmp_path / "s", tmp_path / "run", task="token_classification")
    tuner.load_model(method="full")
    rows = rows_of(*({"tokens": ["the", "cat"], "tags": [0, 1]} for _ in range(4)))
    done, _ = tuner.prepare_dataset(rows, label_names=["PLACE", "O"])
    assert done["labels"][0] == [-100, TAGS.index("PLACE"), TAGS.index("O"), -100]
