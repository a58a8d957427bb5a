"""Tags of words and hidden tokens: gradients of whole steps against float64 references, and folders that load."""

import copy

import datasets
import pytest
import torch
from label_tokenizers import bert
from test_gradients import assert_close
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
)

from llm_finetuner.assembly import Parts
from llm_finetuner.data import label_names
from llm_finetuner.errors import RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.models import labels
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.trainer import fit

V, NAMES = 30, ["O", "NAME", "PLACE"]


def config(width, layers, **more):
    return BertConfig(
        vocab_size=V, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * width,
        max_position_embeddings=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3,
        **more,
    )  # fmt: skip


def tagger(width=16, layers=2, seed=0):
    torch.manual_seed(seed)
    model = BertForTokenClassification(config(width, layers, num_labels=len(NAMES)))
    labels.rename(model, NAMES, 0)
    return model


def filler(width=16, layers=2, seed=0):
    torch.manual_seed(seed)
    return BertForMaskedLM(config(width, layers))


def distilbert(width=16, layers=2, seed=0):
    torch.manual_seed(seed)
    return DistilBertForMaskedLM(
        DistilBertConfig(
            vocab_size=V, dim=width, n_layers=layers, n_heads=2, hidden_dim=2 * width, max_position_embeddings=24,
            dropout=0.0, attention_dropout=0.0, initializer_range=0.3,
        )
    )  # fmt: skip


def prepared(outputs, count=8):
    torch.manual_seed(0)
    rows = []
    for i in range(count):
        length = 4 + i % 5
        counted = torch.rand(length) < 0.5
        counted[i % length] = True  # also the first of a row: nothing is shifted
        said = torch.where(counted, torch.randint(0, outputs, (length,)), -100)
        ids = torch.randint(5, V, (length,))
        rows.append({"input_ids": ids.tolist(), "attention_mask": [1] * length, "labels": said.tolist()})
    rows = datasets.Dataset.from_list(rows)
    return label_names.put(rows, NAMES) if outputs == len(NAMES) else rows


CASES = {
    "tags": ("token_classification", tagger, tagger, len(NAMES)),
    "hidden tokens": ("masked_lm", filler, filler, V),
    "hidden tokens, DistilBERT from BERT": ("masked_lm", distilbert, filler, V),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (3, 3)])
def test_all_terms_give_the_gradient_of_the_definition(tmp_path, case, batch, accumulation):
    """DistilBERT's three: labels, answers at a temperature, and the cosine of hidden states."""
    task, build, build_teacher, outputs = CASES[case]
    student, teacher, rows = build().double(), build_teacher(16, 4, seed=1).double(), prepared(outputs)
    own = copy.deepcopy(student)
    recipe = Recipe(
        task=task, method="distillation", student=Model("s"), teacher=Teacher("t"), output=str(tmp_path / "run"),
        options={"objectives": {
            "cross_entropy": 0.5, "forward_kl": {"weight": 2.0, "temperature": 2.0},
            "hidden_cosine": {"weight": 1.0, "layers": [[1, 3]]},
        }},
        train=Train(
            steps=1, batch_size=batch, gradient_accumulation_steps=accumulation, learning_rate=1.0, warmup=0,
            schedule="constant", max_grad_norm=0, optimizer="test_gradients:sgd", precision="fp32", save_every=0,
        ),
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    fit(recipe, Parts(student=student, teacher=copy.deepcopy(teacher), train=rows, device="cpu"))
    got = {name: before[name] - p.detach() for name, p in student.named_parameters()}
    total, count = 0.0, 0
    for row in rows:
        ids, told = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        at = told != -100
        said = own(ids, output_hidden_states=True)
        with torch.no_grad():
            heard = teacher.eval()(ids, output_hidden_states=True)
        log_s, log_t = (torch.log_softmax(x.logits[0][at] / 2, -1) for x in (said, heard))
        states = (x.hidden_states[-1][0] for x in (said, heard))
        total = total - 0.5 * torch.log_softmax(said.logits[0], -1)[at, told[at]].sum()
        total = total + 2 * 4 * (log_t.exp() * (log_t - log_s)).sum()
        apart = 1 - torch.nn.functional.cosine_similarity(*states, dim=-1)  # of all tokens, hidden or not
        total = total + apart.mean() * at.sum()
        count += int(at.sum())
    names, weights = zip(*own.named_parameters(), strict=True)
    assert_close(
        got, dict(zip(names, torch.autograd.grad(total / count, weights, allow_unused=True), strict=True))
    )


def test_packing_is_refused(tmp_path):
    recipe = Recipe(
        task="masked_lm", student=Model("s"), output=str(tmp_path / "p"), train=Train(packing=True)
    )
    with pytest.raises(RecipeError, match="packing"):
        fit(recipe, Parts(student=filler(), train=prepared(V), device="cpu"))


def test_tags_and_hidden_tokens_are_learned_and_the_folders_load(tmp_path):
    tokenizer = bert()
    words = [word for word in tokenizer.get_vocab() if word.isalpha()][:6]
    tagged = [
        {"tokens": [words[i % 6], words[(i * 5 + 1) % 6]], "tags": [NAMES[i % 3], NAMES[(i * 5 + 1) % 3]]}
        for i in range(48)
    ]
    texts = [{"text": " ".join([words[i % 6]] * 6)} for i in range(48)]  # what is hidden stands beside it
    plan = {"batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 3e-3}
    for task, kind, rows, auto in (
        ("token_classification", BertForTokenClassification, tagged, AutoModelForTokenClassification),
        ("masked_lm", BertForMaskedLM, texts, AutoModelForMaskedLM),
    ):
        torch.manual_seed(0)
        sized = config(32, 2)
        sized.vocab_size = len(tokenizer)
        kind(sized).save_pretrained(tmp_path / "s")
        tokenizer.save_pretrained(tmp_path / "s")
        tuner = LLMFineTuner(tmp_path / "s", tmp_path / task, task=task)
        tuner.load_model(method="full")
        tuner.train(datasets.Dataset.from_list(rows), num_epochs=12, **plan)
        found = tuner.evaluate(datasets.Dataset.from_list(rows))
        assert found["accuracy"] > 0.8, (task, found)
        loaded = auto.from_pretrained(tmp_path / task)
        ids = torch.arange(2, 8)[None]
        assert torch.equal(loaded.eval()(ids).logits, tuner.model.eval()(ids).logits)
        if task == "token_classification":
            assert set(loaded.config.label2id) == set(NAMES) and found["macro_f1"] > 0.8
        asked = " ".join(words[:2])
        if task == "token_classification":
            (said,) = tuner.predict(asked)
            assert [one["word"] for one in said] == words[:2] and all(one["label"] in NAMES for one in said)
        else:
            (said,) = tuner.predict(" ".join([words[0], tokenizer.mask_token, *[words[0]] * 4]))
            assert len(said) == 1 and said[0]["token"] == words[0]
        with pytest.raises(RecipeError, match="does not continue texts"):
            tuner.generate(asked)
