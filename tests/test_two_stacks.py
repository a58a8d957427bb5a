"""Students cut from models with an encoder and a decoder: the blocks, T5's bias, ties, folders, a training step."""

import copy
import functools
import json

import pytest
import torch
import transformers
from label_tokenizers import t5 as build_tokenizer
from test_gradients import assert_close
from test_seq2seq import _outputs, build_bart, build_t5, gradient_of, gradient_of_step, prepared
from torch import nn

from llm_finetuner.assembly import Parts
from llm_finetuner.cli.configs import depth_of
from llm_finetuner.cli.estimate import measure
from llm_finetuner.errors import ModelError, RecipeError
from llm_finetuner.finetuner import LLMFineTuner
from llm_finetuner.learner import Learner
from llm_finetuner.models.shrink import describe, shrink
from llm_finetuner.models.stacks import blocks_of, depths_of, stacks_of
from llm_finetuner.recipe import Data, Model, Recipe, Teacher, Train
from llm_finetuner.scheme import Scheme, Term
from llm_finetuner.tasks.seq2seq import Seq2Seq
from llm_finetuner.teachers.matched import live_teacher
from llm_finetuner.teachers.provider import Context
from llm_finetuner.trainer import fit

V, ENCODER, DECODER = 24, 4, 5
T5 = {
    "vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": ENCODER, "num_decoder_layers": DECODER,
    "num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": V, "d_model": 16, "encoder_layers": ENCODER, "decoder_layers": DECODER, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "init_std": 0.3,
}  # fmt: skip
LED = {k: v for k, v in BART.items() if k != "max_position_embeddings"} | {
    "max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 32, "attention_window": [8, 4, 4, 8],
}  # fmt: skip
KINDS = {  # beginning of the classes' names -> settings
    "T5": T5,
    "MT5": T5,
    "UMT5": T5,  # a bias in each block
    "LongT5": T5,
    "Bart": BART,
    "MBart": BART,
    "Pegasus": BART,
    "Marian": BART,
    "M2M100": BART,
    "LED": LED,
}
BIASED = ("T5", "T5 1.1", "MT5", "LongT5")  # the first block holds a bias for all
ALL = (*KINDS, "T5 1.1", "T5Gemma", "EncoderDecoder")


def build(kind: str) -> nn.Module:
    """A float64 model whose biases and norms are not 0 or 1, for those would hide a cut in the wrong place."""
    torch.manual_seed(0)
    model = {"T5 1.1": untied, "T5Gemma": gemma, "EncoderDecoder": pair}.get(
        kind, functools.partial(plain, kind)
    )()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:  # Marian counts its positions
                weight.add_(0.2 * torch.randn_like(weight))
    return model.double().eval()


def plain(kind: str, **more) -> nn.Module:
    model = f"{kind}MTModel" if kind == "Marian" else f"{kind}ForConditionalGeneration"
    return getattr(transformers, model)(getattr(transformers, f"{kind}Config")(**KINDS[kind] | more))


def untied() -> nn.Module:
    """T5 1.1, mT5 and Flan-T5 as they are loaded: tied by their config, with a head of their own."""
    model = plain("T5", tie_word_embeddings=False, feed_forward_proj="gated-gelu")
    model.lm_head.weight = nn.Parameter(torch.randn(V, 16))
    return model


def gemma() -> nn.Module:
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

    both = {
        "vocab_size": V, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "intermediate_size": 32, "sliding_window": 3,
    }  # fmt: skip
    encoder, decoder = (T5GemmaModuleConfig(num_hidden_layers=n, **both) for n in (ENCODER, DECODER))
    config = transformers.T5GemmaConfig(
        encoder=encoder, decoder=decoder, vocab_size=V, decoder_start_token_id=2
    )
    return transformers.T5GemmaForConditionalGeneration(config)


def pair() -> nn.Module:
    both = {"vocab_size": V, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    encoder, decoder = (transformers.BertConfig(num_hidden_layers=n, **both) for n in (ENCODER, DECODER))
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=1, pad_token_id=0
    )
    return transformers.EncoderDecoderModel(config)


@torch.no_grad()
def answer(model: nn.Module) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    ids, target = (torch.randint(3, V, (2, n), generator=draw) for n in (9, 6))
    return model(input_ids=ids, decoder_input_ids=target, use_cache=False).logits


def without(teacher: nn.Module, decoder: list[int], encoder: list[int]) -> nn.Module:
    """The teacher with its other blocks taken out by hand; what its first one holds for all goes to the new first."""
    teacher, name = copy.deepcopy(teacher), "relative_attention_bias"
    sides = ("decoder", decoder), ("encoder", encoder)
    for stack, (side, kept) in zip(stacks_of(teacher), sides, strict=True):
        first, begins = (list(stack[number].modules()) for number in (0, kept[0]))
        for old, new in zip(first, begins, strict=False):
            if name in old._modules and not new.has_relative_attention_bias:
                new.relative_attention_bias, new.has_relative_attention_bias = old._modules[name], True
        blocks = [stack[number] for number in kept]
        stack._modules.clear()
        stack.extend(blocks)
        section = getattr(teacher.config, side, None)
        if types := getattr(section, "layer_types", None):  # T5Gemma looks its windows up there
            section.layer_types = [types[number] for number in kept]
    return teacher


@pytest.mark.parametrize("kind", ALL)
def test_all_of_it_is_the_same_bit_for_bit(kind):
    teacher = build(kind)
    student = shrink(teacher, keep=1.0)
    assert torch.equal(answer(student), answer(teacher))
    assert not {w.data_ptr() for w in student.parameters()} & {w.data_ptr() for w in teacher.parameters()}


CUTS = (
    ({}, [0, 2, 4], [0, 3]),
    ({"keep_encoder": True, "keep": 3}, [0, 4], [0, 1, 2, 3]),
    ({"blocks": "first-last"}, [0, 1, 4], [0, 3]),
    ({"blocks": [1, 4]}, [1, 4], [0, 1, 2, 3]),  # numbers are the decoder's
)


@pytest.mark.parametrize("kind", ALL)
def test_a_cut_student_is_the_teacher_without_the_other_blocks(kind):
    teacher = build(kind)
    for options, decoder, encoder in CUTS:
        student = shrink(teacher, **options)
        assert depths_of(student.config) == [len(decoder), len(encoder)], options
        for ours, theirs, kept in zip(
            stacks_of(student), stacks_of(teacher), (decoder, encoder), strict=True
        ):
            assert len(ours) == len(kept)
            for new, old in enumerate(kept):
                copied = ours[new].state_dict()
                assert all(
                    torch.equal(weight, copied[name]) for name, weight in theirs[old].state_dict().items()
                )
        wanted = answer(without(teacher, decoder, encoder))
        torch.testing.assert_close(answer(student), wanted, rtol=0, atol=1e-12)
        assert (answer(student) - answer(teacher)).abs().max() > 0.01, options


@pytest.mark.parametrize("kind", BIASED)
def test_the_bias_of_relative_positions_moves_into_the_first_block_that_is_kept(kind):
    teacher = build(kind)
    student = shrink(teacher, blocks=[2, 3])
    found = [
        {
            name.split(".")[0]: weight
            for name, weight in stack.named_parameters()
            if "relative_attention_bias" in name
        }
        for stack in (blocks_of(teacher), blocks_of(student))
    ]
    assert list(found[0]) == list(found[1]) == ["0"] and torch.equal(found[0]["0"], found[1]["0"])


def test_where_each_block_has_a_bias_each_keeps_its_own():
    teacher = build("UMT5")
    student, name = shrink(teacher, blocks=[2, 3]), "layer.0.SelfAttention.relative_attention_bias.weight"
    for new, old in enumerate([2, 3]):
        kept = blocks_of(student)[new].get_parameter(name)
        assert torch.equal(kept, blocks_of(teacher)[old].get_parameter(name))


@pytest.mark.parametrize("kind", ALL)
def test_it_is_an_ordinary_folder(kind, tmp_path):
    student = shrink(build(kind), blocks=[1, 4])
    student.save_pretrained(tmp_path)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    ours, theirs = student.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    torch.testing.assert_close(answer(again), answer(student), rtol=0, atol=1e-12)


def test_a_head_of_its_own_stays_one():
    for kind, tied in (("T5", True), ("T5 1.1", False), ("Bart", True)):
        student = shrink(build(kind))
        head, words = student.get_output_embeddings().weight, student.get_input_embeddings().weight
        assert (head is words) == tied
        assert student.get_encoder().get_input_embeddings().weight is words


def test_weights_of_half_precision_keep_their_types(tmp_path):
    plain("T5").save_pretrained(tmp_path)
    teacher = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16)
    kept = {name: weight for name, weight in shrink(teacher).state_dict().items() if ".block.0." in name}
    assert {weight.dtype for weight in kept.values()} == {torch.float16, torch.float32}
    assert all(torch.equal(weight, teacher.state_dict()[name]) for name, weight in kept.items())


def test_the_smaller_model_is_described():
    teacher = build("T5")
    line = describe(teacher, shrink(teacher))
    assert line.startswith("2 of 4 encoder and 3 of 5 decoder blocks, width 16 of 16, ")


def test_what_cannot_be_cut_is_refused_in_words():
    with pytest.raises(ModelError, match="width of T5ForConditionalGeneration"):
        shrink(build("T5"), width=0.5)
    with pytest.raises(ModelError, match="the teacher has 4 blocks, which cannot be divided by 5"):
        shrink(build("T5"), keep=5)
    one = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2))
    with pytest.raises(RecipeError, match="keep_encoder is for models with an encoder and a decoder"):
        shrink(one, keep_encoder=True)
    experts = {"num_experts": 2, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2}
    mixed = transformers.SwitchTransformersConfig(**T5 | experts)
    with pytest.raises(ModelError, match="cannot be cut"):
        shrink(transformers.SwitchTransformersForConditionalGeneration(mixed))


# ---- learning


@pytest.mark.parametrize("batch", [8, 3])
def test_a_cut_student_learns_from_a_teacher_of_another_width(tmp_path, batch):
    """Blocks 1 and 3 of a T5's decoder against states of a BART, through projections drawn as the run draws them."""
    whole, teacher, rows = build_t5(16, 3, 4).double(), build_bart(32, 1, 4, seed=1).double(), prepared()
    student = shrink(whole, blocks=[1, 3])
    pairs = [[0, 1], [1, 3]]
    torch.manual_seed(0)  # as fit does, right before it draws the projections
    weights = {s: torch.nn.Linear(16, 32, bias=False).weight.detach().double() for s, _ in pairs}
    got, _ = gradient_of_step(
        tmp_path, student, teacher, rows, "feature_distillation", batch, 8 // batch + 8 % batch, alpha=0.0,
        feature_layers="uniform",
    )  # fmt: skip
    own, loss, count = without(whole, [1, 3], [0, 1, 2]), 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        states = _outputs(own, own.decoder.block, ids, labels)
        with torch.no_grad():
            told = _outputs(teacher, teacher.model.decoder.layers, ids, labels)
        for i, j in pairs:
            loss = loss + (states[i] @ weights[i].T - told[j]).square().mean(-1).sum() / len(pairs)
        count += labels.numel()
    assert_close(got, gradient_of(loss / count, own))


@pytest.mark.parametrize(
    "layers, pairs", [("uniform", ((0, 1), (1, 3))), ("final", ((1, 3),)), (None, ((0, 0), (1, 2)))]
)
def test_maps_are_between_decoders_however_deep_the_encoders_are(layers, pairs):
    teacher = build_t5(16, 6, 4)
    student, task = shrink(teacher), Seq2Seq()
    provider = live_teacher(teacher, None, "t", Context(task, student, None, torch.device("cpu"), print, 0))
    scheme = Scheme((Term("hidden_mse", 1.0, {}, layers=layers),))
    assert Learner(task, student, scheme, provider).pairs == [pairs]


# ---- runs


@pytest.fixture
def desk(tmp_path):
    """A teacher of 4 and 5 blocks, its tokenizer, and data."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = plain("T5", vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    rows = [{"article": f"the cat sees {i} dog", "summary": f"cat {i}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe_in(desk, **student) -> Recipe:
    return Recipe(
        task="seq2seq_lm", method="vanilla_distillation", student=Model("teacher/2", **student),
        teacher=Teacher(str(desk / "teacher")), data=Data(source=str(desk / "rows.jsonl"), max_length=16),
        train=Train(steps=1, batch_size=4, gradient_accumulation_steps=1, learning_rate=1e-9, save_every=0),
        output=str(desk / "run"),
    )  # fmt: skip


@pytest.mark.parametrize("whole", [False, True])
def test_a_recipe_cuts_both_stacks_or_the_decoder_alone(desk, whole):
    recipe = recipe_in(desk, keep_encoder=whole)
    assert fit(recipe, Parts(device="cpu")).history[0]["forward_kl"] > 0
    student, teacher = (
        transformers.AutoModelForSeq2SeqLM.from_pretrained(desk / name) for name in ("run", "teacher")
    )
    assert depths_of(student.config) == [3, 4 if whole else 2]
    kept = blocks_of(student)[1].state_dict()
    theirs = blocks_of(teacher)[2].state_dict()
    assert all((weight - theirs[name]).abs().max() < 1e-6 for name, weight in kept.items())
    looked = measure(recipe.student, recipe)  # what the menu says before any weight is loaded
    assert (looked.parameters, looked.blocks) == (student.num_parameters(), 7 if whole else 5)
    assert depth_of(str(desk / "run")) == 3


def test_a_student_is_cut_in_python(desk):
    tuner = LLMFineTuner("teacher/2", desk / "out", task="seq2seq_lm", device="cpu")
    tuner.load_teacher_model(str(desk / "teacher"))
    assert tuner.student_from_teacher(2, keep_encoder=True).startswith(
        "4 of 4 encoder and 3 of 5 decoder blocks"
    )
    assert tuner.recipe.student == Model("teacher/2", keep_encoder=True)
    assert tuner.student_from_teacher(blocks=[1, 2]).startswith("4 of 4 encoder and 2 of 5 decoder blocks")
    tuner.setup_vanilla_distillation(temperature=2.0, alpha=0.5)
    rows = tuner.load_dataset_from_source(str(desk / "rows.jsonl"))
    tuner.train(rows, num_epochs=1, batch_size=6, gradient_accumulation_steps=1, learning_rate=1e-3)
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(desk / "out")
    assert depths_of(loaded.config) == [2, 4]
