"""Recipes of published methods for encoders and T5: they run as they stand, on tiny models in place of named ones."""

import json
from pathlib import Path

import pytest
import torch
from label_tokenizers import bert, t5
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from llm_finetuner import chain, recipe_file
from llm_finetuner.trainer import fit

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
TEXTS = ["the cat sees the dog", "the dog played .", "x sees the cat playing", "the dog sees the cat - ."] * 3
SAYS = {  # the losses in the log of each stage
    "distilbert": [{"cross_entropy", "forward_kl", "hidden_cosine"}],
    "minilm": [{"attention_kl", "value_relation"}],
    "tinybert": [{"cross_entropy"}, {"embedding_mse", "hidden_mse", "attention_mse"}, {"forward_kl"}],
    "t5_summarization": [{"cross_entropy"}, {"cross_entropy", "forward_kl"}],
}
LOSSES = set().union(*(names for stages in SAYS.values() for names in stages))


def save_bert(folder, width, layers, seed):
    torch.manual_seed(seed)
    tokenizer = bert()
    BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=12,
            intermediate_size=2 * width, max_position_embeddings=64,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)


def save_t5(folder, width, layers, seed):
    torch.manual_seed(seed)
    tokenizer = t5()
    T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=layers, num_heads=2,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> dict[str, str]:
    """Folders of tiny models and data, by the hub's names."""
    desk = tmp_path_factory.mktemp("hub")
    folders = {
        "google-bert/bert-base-uncased": (save_bert, 24, 4, 0),
        "huawei-noah/TinyBERT_General_4L_312D": (save_bert, 12, 2, 1),
        "google-t5/t5-base": (save_t5, 24, 2, 2),
    }
    rows = {
        # long enough for several hidden tokens: the values of one alone relate to nothing
        "Salesforce/wikitext": [{"text": " ".join(TEXTS[:6])} for _ in TEXTS],
        "nyu-mll/glue": [{"sentence": t, "label": ["no", "yes"][i % 2]} for i, t in enumerate(TEXTS)],
        "abisee/cnn_dailymail": [{"article": text, "highlights": text[:7]} for text in TEXTS],
    }
    for name, (save, *sizes) in folders.items():
        save(desk / name, *sizes)
    for name, listed in rows.items():
        (desk / name).mkdir(parents=True)
        for split in ("train", "validation"):
            lines = [json.dumps(row) for row in listed]
            (desk / name / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {name: str(desk / name) for name in (*folders, *rows)}


def run(name: str, tmp_path: Path, stand_ins: dict[str, str]) -> list[dict]:
    """Two steps of every stage; the first record of each."""
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    for theirs, ours in stand_ins.items():
        text = text.replace(theirs, ours)
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    plan = ["data.config=null", "train.steps=2", "train.batch_size=4", "train.gradient_accumulation_steps=1"]
    recipe = recipe_file.load(path, [*plan, f"output={tmp_path / 'run'}"])
    if not recipe.stages:
        return [fit(recipe).history[0]]
    done = chain.run_chain(recipe, compare=False)["stages"]
    assert [stage["metrics"]["steps"] for stage in done] == [2] * len(recipe.stages)
    logs = [Path(stage["output"]) / "log.jsonl" for stage in done]
    return [json.loads(log.read_text(encoding="utf-8").splitlines()[0]) for log in logs]


@pytest.mark.parametrize("name", SAYS)
def test_a_recipe_of_a_paper_runs_and_logs_its_losses(name, tmp_path, stand_ins):
    records = run(name, tmp_path, stand_ins)
    assert [LOSSES & record.keys() for record in records] == SAYS[name]
    assert all(record[loss] > 0 for record in records for loss in LOSSES & record.keys())
    last = tmp_path / "run" / (f"stage_{len(records)}" if len(records) > 1 else "")
    if name in ("distilbert", "minilm"):
        student = AutoModelForMaskedLM.from_pretrained(last)
        assert student.config.num_hidden_layers == 2 and student.config.hidden_size == 24
    elif name == "tinybert":
        student = AutoModelForSequenceClassification.from_pretrained(last)
        assert student.config.hidden_size == 12 and student.config.id2label == {0: "no", 1: "yes"}
    else:
        student = AutoModelForSeq2SeqLM.from_pretrained(last).config
        assert (student.d_model, student.num_layers, student.num_decoder_layers) == (24, 2, 1)
