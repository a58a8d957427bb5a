"""Every Python block of the distillation guide that users have in hand runs as printed, on local models.

The folders gpt2, gpt2-medium, gpt2-large and wikitext lie in the working directory, so the printed names find them.
"""

import json

import pytest
from conftest import build_gpt2, save_model, sentences

from llm_finetuner.finetuner import LLMFineTuner

USAGE = {
    "vanilla": """
from finetune_cli import LLMFineTuner

finetuner = LLMFineTuner("gpt2", "./distilled_model")
finetuner.load_model(method="vanilla_distillation")
finetuner.load_teacher_model("gpt2-medium")
finetuner.setup_vanilla_distillation(
    temperature=2.0,
    alpha=0.5
)
finetuner.train(dataset, num_epochs=3)
""",
    "feature": """
from finetune_cli import LLMFineTuner

finetuner = LLMFineTuner("gpt2", "./distilled_model")
finetuner.load_model(method="feature_distillation")
finetuner.load_teacher_model("gpt2-large")
finetuner.setup_feature_distillation(
    temperature=2.0,
    alpha=0.3,
    feature_layers=[0, 3, 6, 9, 11]
)
finetuner.train(dataset, num_epochs=5)
""",
    "example 1": """
from finetune_cli import LLMFineTuner

finetuner = LLMFineTuner("gpt2", "./vanilla_distilled")
finetuner.load_model(method="vanilla_distillation")
finetuner.load_teacher_model("gpt2-medium")
dataset = finetuner.load_dataset_from_source("./data.jsonl", num_samples=10000)
tokenized, _ = finetuner.prepare_dataset(dataset, max_length=512)
finetuner.setup_vanilla_distillation(
    temperature=2.0,
    alpha=0.5
)
finetuner.train(
    tokenized,
    num_epochs=5,
    batch_size=8,
    learning_rate=2e-4
)
""",
    "example 2": """
from finetune_cli import LLMFineTuner

finetuner = LLMFineTuner("gpt2", "./feature_distilled")
finetuner.load_model(method="feature_distillation")
finetuner.load_teacher_model("gpt2-large")
dataset = finetuner.load_dataset_from_source(
    "wikitext",
    dataset_config="wikitext-2-raw-v1",
    num_samples=20000
)
tokenized, _ = finetuner.prepare_dataset(dataset, max_length=512)
finetuner.setup_feature_distillation(
    temperature=2.5,
    alpha=0.3,
    feature_layers=[0, 2, 4, 6, 8, 10, 11]
)
finetuner.train(
    tokenized,
    num_epochs=8,
    batch_size=4,
    learning_rate=1e-4
)
""",
}
EPOCHS = {"vanilla": 3, "feature": 5, "example 1": 5, "example 2": 8}  # of a step each: there are 8 rows
COMPARISON = """
from finetune_cli import LLMFineTuner

methods = [
    ("vanilla", {"temperature": 2.0, "alpha": 0.5}),
    ("feature", {"temperature": 2.0, "alpha": 0.3, "feature_layers": None})
]
results = {}
for method_name, config in methods:
    finetuner = LLMFineTuner("gpt2", f"./distilled_{method_name}")
    finetuner.load_model(method=f"{method_name}_distillation")
    finetuner.load_teacher_model("gpt2-medium")
    if method_name == "vanilla":
        finetuner.setup_vanilla_distillation(**config)
    else:
        finetuner.setup_feature_distillation(**config)
    finetuner.train(dataset, num_epochs=5)
    scores = finetuner.benchmark(test_prompts, use_finetuned=True)
    results[method_name] = scores
lines = []
for metric in results["vanilla"]:
    vanilla_score = results["vanilla"][metric]
    feature_score = results["feature"][metric]
    improvement = (feature_score - vanilla_score) / vanilla_score * 100
    lines.append(f"{metric}: Vanilla={vanilla_score:.4f}, Feature={feature_score:.4f}, {improvement:+.2f}%")
"""
SCHEDULE = """
finetuner.train(dataset, epochs=3, method="standard")

finetuner.setup_vanilla_distillation(temp=2.0, alpha=0.5)
finetuner.train(dataset, epochs=5)

finetuner.train(hard_examples, epochs=2, learning_rate=1e-5)
"""
SETUPS = [
    "finetuner.setup_vanilla_distillation(temperature=3.0, alpha=0.4)",
    "finetuner.setup_vanilla_distillation(temperature=4.0, alpha=0.5)",
    "finetuner.setup_feature_distillation(temperature=2.5, alpha=0.4, feature_layers=[0, 5, 11])",
    "finetuner.setup_feature_distillation(feature_layers=[8, 9, 10, 11], alpha=0.2)",
    "finetuner.setup_feature_distillation(feature_layers=list(range(12)))",
    "for c in [{'temp': 2.0, 'alpha': 0.3}, {'temp': 4.0, 'alpha': 0.5}]: finetuner.setup_vanilla_distillation(**c)",
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory, tokenizer):
    """A working directory with what the guide names."""
    folder = tmp_path_factory.mktemp("desk")
    for name, width, layers in (("gpt2", 16, 12), ("gpt2-medium", 32, 24), ("gpt2-large", 32, 36)):
        save_model(folder / name, build_gpt2(len(tokenizer), width, layers), tokenizer)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in sentences(8))
    (folder / "data.jsonl").write_text(rows)
    (folder / "wikitext").mkdir()
    (folder / "wikitext" / "train.jsonl").write_text(rows)
    return folder


@pytest.fixture
def names(desk, monkeypatch):
    """What the guide's blocks take for granted."""
    import datasets

    monkeypatch.chdir(desk)
    dataset = datasets.Dataset.from_list([{"text": text} for text in sentences(8, seed=2)])
    return {
        "dataset": dataset,
        "hard_examples": dataset.select(range(3)),
        "test_prompts": sentences(2, seed=3),
    }


def test_comparison_study(names):
    exec(COMPARISON, names)
    vanilla, feature = (names["results"][name] for name in ("vanilla", "feature"))
    assert len(names["lines"]) == len(vanilla) >= 3 and vanilla.keys() == feature.keys()
    assert (
        vanilla["perplexity"] != feature["perplexity"]
        and min(vanilla["perplexity"], feature["perplexity"]) > 1
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:temperature")
@pytest.mark.parametrize("block", USAGE)
def test_usage_blocks(names, block):
    exec(USAGE[block], names)
    history = names["finetuner"]._last.history
    learned = "hidden_mse" if "feature" in USAGE[block] else "forward_kl"
    assert len(history) == EPOCHS[block]
    for record in history:
        assert record.keys() & {"cross_entropy", "forward_kl", "hidden_mse"} == {"cross_entropy", learned}
        assert record["learning_rate"] > 0 and record["teacher_nll"] == pytest.approx(
            history[0]["teacher_nll"]
        )
    for name in ("loss", "cross_entropy", learned):
        assert history[-1][name] < history[0][name]


@pytest.mark.filterwarnings("ignore:temperature")
def test_training_schedule_of_three_phases_and_setups(names):
    finetuner = names["finetuner"] = LLMFineTuner("gpt2", "./phases")
    finetuner.load_model(method="vanilla_distillation")
    finetuner.load_teacher_model("gpt2-medium")
    phases: list = []
    original = finetuner.train
    finetuner.train = lambda *args, **kwargs: phases.append(original(*args, **kwargs)) or phases[-1]
    start = finetuner.evaluate(names["hard_examples"])["loss"]
    exec(SCHEDULE, names)
    assert ["forward_kl" in phase.history[0] for phase in phases] == [False, True, True]
    assert [len(phase.history) for phase in phases] == [3, 5, 2]
    first = [phase.history[0]["cross_entropy"] for phase in phases]
    assert first[1] < first[0]  # the same rows: the second phase goes on where the first ended
    assert first[2] < start  # and so does the third, on rows of its own
    assert max(record["learning_rate"] for record in phases[2].history) == 1e-5
    for setup in SETUPS:
        exec(setup, names)
