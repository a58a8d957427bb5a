"""Source to target: gradients of whole steps against float64 references, the decoder's shift, folders, refusals."""

import copy
import functools
import random

import datasets
import pytest
import task_steps
import torch
from task_steps import gradient_of
from test_gradients import assert_close
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    FSMTConfig,
    FSMTForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from llm_finetuner.assembly import Parts
from llm_finetuner.benchmark.speed import measure
from llm_finetuner.data.columns import examples
from llm_finetuner.errors import DataError, ModelError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.output import Want
from llm_finetuner.recipe import Model, Recipe, Train
from llm_finetuner.tasks.seq2seq import Seq2Seq
from llm_finetuner.trainer import fit

V = 24
SMALL = {"layers": 2, "attention_heads": 2, "ffn_dim": 32}
WORDS = "cat dog bird house tree red blue old new sees likes finds".split()


def build_t5(width=16, encoder=2, decoder=2, seed=0, tied=True, vocabulary=V):
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=2 * width, num_layers=encoder, num_decoder_layers=decoder,
        num_heads=2, dropout_rate=0.0, feed_forward_proj="gated-gelu", decoder_start_token_id=0,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    if not tied:  # T5 1.1: transformers 5 builds it tied, and loads it untied
        model.lm_head.weight = torch.nn.Parameter(torch.randn(vocabulary, width))
    return model


def build_untied_t5():
    return build_t5(tied=False)


def build_bart(width=16, encoder=2, decoder=3, seed=0, start=2):
    torch.manual_seed(seed)
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=V, d_model=width, encoder_layers=encoder, decoder_layers=decoder, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=2 * width, decoder_ffn_dim=2 * width, dropout=0.0,
            max_position_embeddings=32, init_std=0.3, decoder_start_token_id=start,
        )
    )  # fmt: skip
    model.final_logits_bias.normal_()
    return model


def prepared(count=8, seed=0, masked=False):
    """Sources and targets of different lengths, longest sources not with longest targets; `masked`: a hole in each."""
    torch.manual_seed(seed)
    rows = []
    for i in range(count):
        ids = torch.randint(3, V, (3 + i % 4,)).tolist()
        labels = [*torch.randint(3, V, (2 + (3 * i) % 5,)).tolist(), 1]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
        if masked:
            labels[i % 2] = -100
    return datasets.Dataset.from_list(rows)


gradient_of_step = functools.partial(task_steps.gradient_of_step, "seq2seq_lm")


def row_by_row(student, teacher, rows):
    """(own answer, the teacher's, labels, where they count) of every row, alone and so without padding."""
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            told = teacher.eval()(ids, labels=labels, output_hidden_states=True)
        yield student(ids, labels=labels, output_hidden_states=True), told, labels[0], labels[0] != -100


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2), (1, 8)])
@pytest.mark.parametrize("build", [build_t5, build_untied_t5, build_bart])
def test_labels_and_teacher_give_the_gradient_of_the_definition(tmp_path, build, batch, accumulation):
    """Padding in source and target, masked labels inside targets: each counted token weighs the same."""
    student, teacher, rows = build().double(), build_bart(32, 1, 2, seed=1).double(), prepared(masked=True)
    got, record = gradient_of_step(
        tmp_path, student, teacher, rows, "vanilla_distillation", batch, accumulation, temperature=2.0, alpha=0.3
    )  # fmt: skip
    own, ce, kl, count = copy.deepcopy(student), 0.0, 0.0, 0
    for said, told, labels, counted in row_by_row(own, teacher, rows):
        log_s, log_t = (torch.log_softmax(x.logits[0] / 2, -1)[counted] for x in (said, told))
        kl = kl + 4 * (log_t.exp() * (log_t - log_s)).sum()
        log_p = torch.log_softmax(said.logits[0], -1)[counted]
        ce = ce - log_p.gather(1, labels[counted, None]).sum()
        count += int(counted.sum())
    loss = (0.3 * ce + 0.7 * kl) / count
    assert_close(got, gradient_of(loss, own))
    assert record["loss"] == pytest.approx(float(loss.detach()), rel=1e-9)


@pytest.mark.parametrize("build", [build_t5, build_bart])
def test_the_decoder_reads_its_own_start_and_the_target_before_each_token(build):
    model, rows, task = build().double().eval(), prepared(), Seq2Seq()
    output = task.run(model, task.collate(list(rows)), Want())
    wanted = []
    for row in rows:
        shifted = [model.config.decoder_start_token_id, *row["labels"][:-1]]
        said = model(input_ids=torch.tensor([row["input_ids"]]), decoder_input_ids=torch.tensor([shifted]))
        wanted.append(said.logits[0])
    assert torch.allclose(output.head(output.rows), torch.cat(wanted), atol=1e-10)
    assert output.targets.tolist() == [token for row in rows for token in row["labels"]]
    assert output.examples.tolist() == [i for i, row in enumerate(rows) for _ in row["labels"]]


@pytest.mark.parametrize("batch", [8, 3])
def test_hidden_states_of_other_widths_and_depths_are_compared_at_the_target_tokens(tmp_path, batch):
    """T5 learns from BART, through projections drawn as the run draws them."""
    student, teacher, rows = build_t5(16, 3, 2).double(), build_bart(32, 1, 4, seed=1).double(), prepared()
    pairs = [[0, 1], [1, 3]]
    torch.manual_seed(0)  # as fit does, right before it draws the projections
    weights = {s: torch.nn.Linear(16, 32, bias=False).weight.detach().double() for s, _ in pairs}
    got, _ = gradient_of_step(
        tmp_path, student, teacher, rows, "feature_distillation", batch, 8 // batch + 8 % batch, alpha=0.0,
        feature_layers=pairs,
    )  # fmt: skip
    own, loss, count = copy.deepcopy(student), 0.0, 0
    stack, theirs = own.decoder.block, teacher.model.decoder.layers
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        states = _outputs(own, stack, ids, labels)
        with torch.no_grad():
            told = _outputs(teacher, theirs, ids, labels)
        for i, j in pairs:
            loss = loss + (states[i] @ weights[i].T - told[j]).square().mean(-1).sum() / len(pairs)
        count += labels.numel()
    assert_close(got, gradient_of(loss / count, own))


def _outputs(model, blocks, ids, labels):
    """What each block puts out for one row: [S, D] each."""
    kept = []
    hooks = [
        block.register_forward_hook(
            lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        for block in blocks
    ]
    model(ids, labels=labels)
    for hook in hooks:
        hook.remove()
    return [x.reshape(-1, x.shape[-1]) for x in kept]


@pytest.mark.parametrize("build", [build_t5, build_bart])
def test_maps_states_and_embeddings_are_the_decoders_and_nothing_else_is_run(build):
    model, rows, task = build().double().eval(), prepared(), Seq2Seq()
    want = Want(attention=(0, 1), states=(1,), embeddings=True, answers=False)
    task.prepare(model, want)
    output = task.run(model, task.collate(list(rows)), want)
    longest = max(map(len, rows["labels"]))
    lengths = torch.cat([torch.arange(1, len(labels) + 1) for labels in rows["labels"]])
    assert output.rows.shape == (len(lengths), 0) and set(output.states[1]) == {"query", "key", "value"}
    for maps_NHS in output.attention.values():
        assert maps_NHS.shape == (len(lengths), 2, longest)
        assert torch.allclose(maps_NHS.sum(-1), torch.ones(len(lengths), 2).double())
        assert all(
            not maps[:, n:].any() for maps, n in zip(maps_NHS, lengths, strict=True)
        )  # nobody looks ahead
    first = output.embeddings[torch.tensor([0, len(rows[0]["labels"])])]
    assert torch.allclose(first[0], first[1])  # the first token of every target is read off the same start
    row = torch.tensor([rows[0]["input_ids"]]), torch.tensor([rows[0]["labels"]])
    alone = model(row[0], labels=row[1], output_attentions=True).decoder_attentions[0][0]  # [H, S, S]
    size = row[1].shape[1]
    assert torch.allclose(output.attention[0][:size, :, :size], alone.transpose(0, 1))


def test_each_loss_between_blocks_trains(tmp_path):
    student, teacher, rows = build_t5(), build_bart(16, 2, 2, seed=1), prepared()
    names = "embedding_mse", "attention_mse", "attention_kl", "value_relation", "cka", "distance"
    terms = {"objectives": dict.fromkeys(names, 1.0), "layers": [[1, 1]]}
    _, record = gradient_of_step(tmp_path, student, teacher, rows, "distillation", **terms)
    assert all(record[name] > 0 for name in names)


def test_a_stand_in_batch_counts_nothing_and_costs_are_of_both_stacks():
    task, rows = Seq2Seq(), list(prepared(3, masked=True))
    batch = task.collate(rows)
    assert batch["labels"].shape == (3, max(len(row["labels"]) for row in rows))
    assert task.count(batch) == sum(label != -100 for row in rows for label in row["labels"])
    read = sum(len(row["input_ids"]) + len(row["labels"]) for row in rows)
    assert task.cost(batch) == (read, batch["input_ids"].numel() + batch["labels"].numel())
    nobody = task.collate(rows[:1], counted=False)
    output = task.run(build_t5(), nobody, Want())
    assert task.count(nobody) == 0 and output.rows.shape == (0, 16) and output.rows.requires_grad


def test_models_and_rows_that_do_not_fit_are_refused(tmp_path):
    task, bart = Seq2Seq(), build_bart()
    task.check_model(bart, "bart")
    bart.register_forward_hook(lambda _m, _i, said: said.__setitem__("logits", 2 * said.logits))
    with pytest.raises(ModelError, match="changes its logits"):
        task.check_model(bart, "bart")
    small = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in SMALL.items()}
    other = FSMTForConditionalGeneration(
        FSMTConfig(langs=["a", "b"], src_vocab_size=V, tgt_vocab_size=V, d_model=16, **small)
    )  # its decoder reads the source, shifted, unless told otherwise
    with pytest.raises(ModelError, match="does not read its target"):
        task.check_model(other, "fsmt")
    lost = build_t5()
    lost.config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        task.check_model(lost, "t5")
    rows = prepared()
    long = datasets.Dataset.from_list([{**rows[0], "labels": [5] * 33}])
    with pytest.raises(DataError, match="33 tokens, the decoder has 32"):
        gradient_of_step(tmp_path, build_bart(), None, long, "fine_tuning")
    strange = datasets.Dataset.from_list([{**rows[0], "labels": [V]}])
    with pytest.raises(DataError, match=f"token id {V} of a target"):
        gradient_of_step(tmp_path, build_t5(), None, strange, "fine_tuning")
    with pytest.raises(ModelError, match="24 logits and the teacher 30"):
        gradient_of_step(tmp_path, build_t5(), build_t5(vocabulary=30), rows, "vanilla_distillation")


def test_what_these_models_cannot_do_yet_is_refused(tmp_path):
    student, teacher, rows = build_t5(), build_t5(seed=1), prepared()
    for method in ("on_policy_distillation", "sequence_distillation"):
        with pytest.raises(RecipeError, match="seq2seq_lm writes none"):
            gradient_of_step(tmp_path, student, teacher, rows, method)
    with pytest.raises(RecipeError, match="early exits"):
        gradient_of_step(tmp_path, student, teacher, rows, "self_distillation", by="exits")
    recipe = Recipe(
        task="seq2seq_lm", student=Model("s"), output=str(tmp_path / "p"), train=Train(packing=True)
    )
    with pytest.raises(RecipeError, match="packing"):
        fit(recipe, Parts(student=student, train=rows, device="cpu"))


def test_speed_is_measured_of_both_stacks():
    models = {"t5": build_t5(), "bart": build_bart()}
    ids = torch.randint(3, V, (2, 12))
    read = {name: [] for name in models}
    for name, model in models.items():
        model.get_decoder().register_forward_hook(
            lambda _m, _a, kwargs, _o, name=name: read[name].append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )  # fmt: skip
    found = measure(models, ids, repeats=1, new_tokens=3)
    assert all(value > 0 for line in found.values() for value in line.values())
    for lengths in read.values():
        assert set(lengths) == {12, 8, 1} and lengths.count(8) == 2 and lengths.count(1) == 6


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def pairs():
    """Texts and what they are backwards."""
    draw, rows = random.Random(0), []
    for _ in range(64):
        words = draw.choices(WORDS, k=draw.randint(1, 3))
        rows.append({"article": " ".join(words), "summary": " ".join(reversed(words))})
    return rows


def test_a_student_learns_to_turn_texts_round_and_is_a_folder_of_transformers(tmp_path, tokenizer, pairs):
    for name, model in (
        ("s", build_t5(32, vocabulary=len(tokenizer), seed=2)),
        ("t", build_t5(48, 2, 3, vocabulary=len(tokenizer))),
    ):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    plan = {"batch_size": 16, "gradient_accumulation_steps": 1, "learning_rate": 1e-2}
    rows = datasets.Dataset.from_list(pairs)
    teacher = LLMFineTuner(tmp_path / "t", tmp_path / "teacher", task="seq2seq_lm")
    teacher.load_model(method="full")
    before = teacher.evaluate(rows)["perplexity"]
    teacher.train(rows, num_epochs=6, **plan)
    assert teacher.evaluate(rows)["perplexity"] < before / 2
    student = LLMFineTuner(tmp_path / "s", tmp_path / "student", task="seq2seq_lm")
    student.load_model(method="vanilla_distillation")
    student.load_teacher_model(tmp_path / "teacher")
    student.setup_vanilla_distillation(temperature=2.0, alpha=0.0)
    before = student.evaluate(rows)
    student.train(rows, num_epochs=4, **plan)
    found = student.evaluate(rows)
    assert found["kl_to_teacher"] < before["kl_to_teacher"] / 2
    assert found["loss"] > 0 and found["tokens"] == sum(len(row["summary"].split()) + 1 for row in pairs)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    ids, labels = torch.tensor([[3, 4, 5, 1]]), torch.tensor([[5, 4, 3, 1]])
    with torch.no_grad():
        theirs, ours = loaded(ids, labels=labels).logits, student.model.eval()(ids, labels=labels).logits
    assert torch.equal(theirs, ours)
    verdict = student.compare(rows)
    assert (tmp_path / "student" / "report.html").exists() and verdict["samples"][0]["reference"] == pairs[0][
        "summary"
    ]
    line = next(line for line in verdict["models"] if line["role"] == "distilled")
    assert line["tokens_per_second"] > 0 and line["latency_ms"] > 0


def test_an_adapter_of_t5_learns_and_is_read_again(tmp_path, tokenizer, pairs):
    build_t5(32, vocabulary=len(tokenizer)).save_pretrained(tmp_path / "s")
    tokenizer.save_pretrained(tmp_path / "s")
    tuner = LLMFineTuner(tmp_path / "s", tmp_path / "out", task="seq2seq_lm")
    tuner.load_model(method="lora")
    rows = datasets.Dataset.from_list(pairs)
    before = tuner.evaluate(rows)["loss"]
    tuner.train(rows, num_epochs=2, batch_size=16, gradient_accumulation_steps=1, learning_rate=1e-2)
    after = tuner.evaluate(rows)["loss"]
    merged = AutoModelForSeq2SeqLM.from_pretrained(tuner.merge())
    task, kept = Seq2Seq(), tuner.prepare_dataset(rows)[0]
    output = task.run(merged.eval(), task.collate(examples(kept, list(range(len(kept))))), Want())
    with torch.no_grad():
        nll = torch.nn.functional.cross_entropy(output.head(output.rows), output.targets)
    assert after < before and float(nll) == pytest.approx(after, rel=1e-4)
