"""One optimizer step of the product as a gradient, and the same gradient written out: row by row, dense, float64.

SGD at rate 1 moves every weight by minus its gradient. Letters: n positions that count, T tokens, V vocabulary.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import conformance_paths  # noqa: F401
import conftest
import datasets
import torch
import transformers
from torch import Tensor, nn

from llm_finetuner.assembly import Parts
from llm_finetuner.recipe import Model, Recipe, Teacher, Train
from llm_finetuner.trainer import fit

Loss = Callable[[nn.Module, list[int], list[int]], Tensor]  # (student, ids [T], positions [n]) -> sum over n
Gradient = dict[str, Tensor]
EOS = 0


def sgd(parameters, weight_decay, device):
    return torch.optim.SGD(parameters, lr=1.0)


@dataclass
class Bench:
    """What every probe works with. The vocabulary is real: a byte-level tokenizer of some 300 tokens."""

    folder: Path
    tokenizer: Any = field(default_factory=conftest.build_tokenizer)

    def __post_init__(self):
        self.vocabulary = len(self.tokenizer)
        texts = self.tokenizer(conftest.sentences(20, seed=3))["input_ids"]
        self.texts = [ids for ids in texts if len(ids) > 6][:8]
        self.runs = 0

    def new_folder(self) -> Path:
        self.runs += 1
        return self.folder / f"{self.runs:05d}"

    def student(self, more: int = 0) -> nn.Module:
        return conftest.build_gpt2(self.vocabulary + more).double()

    def teacher(self, more: int = 0, dropout: float = 0.0, seed: int = 1) -> nn.Module:
        """Twice as deep as the student and as wide, so that no projection stands between their states."""
        return (
            conftest.build_gpt2(self.vocabulary + more, layers=4, dropout=dropout, seed=seed).double().eval()
        )

    def other_tokenizer(self):
        """Cuts the same texts at other places."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        single = {token: i for token, i in self.tokenizer.get_vocab().items() if len(token) == 1}
        names = ["<|endoftext|>", *sorted(single)]
        core = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        core.add_special_tokens(names[:1])
        return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=names[0], pad_token=names[0])

    def rows(self, kind: str = "plain") -> datasets.Dataset:
        """plain: every token counts. masked: a prompt, a hole and padding do not. eos: plain, and ends in EOS."""
        rows = []
        for ids in self.texts:
            ids = [*ids, EOS] if kind == "eos" else ids
            labels, mask = list(ids), [1] * len(ids)
            if kind == "masked":
                labels[:2], labels[4:5] = [-100] * 2, [-100]
                ids, mask, labels = ids + [7] * 3, mask + [0] * 3, labels + [-100] * 3
            rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
        return datasets.Dataset.from_list(rows)


@dataclass
class Step:
    gradient: Gradient
    record: dict[str, Any]


def step(
    bench: Bench, student: nn.Module, teacher: Any, rows, objectives: dict | None, *, size: int = 8,
    method: str = "distillation", tokenizers: bool = False, **options,
) -> Step:  # fmt: skip
    """One step of `fit` over the 8 rows, `size` of them at a time. teacher: a model, a Provider, or None."""
    student = copy.deepcopy(student)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    options = options if objectives is None else {"objectives": objectives, **options}
    recipe = Recipe(
        method=method, options=options, student=Model("s"), teacher=Teacher("t") if teacher is not None else None,
        output=str(bench.new_folder()),
        train=Train(
            steps=1, batch_size=size, gradient_accumulation_steps=-(-len(rows) // size), learning_rate=1.0, warmup=0,
            schedule="constant", max_grad_norm=0, optimizer="conformance_step:sgd", precision="fp32", save_every=0,
        ),
    )  # fmt: skip
    known = bench.tokenizer if tokenizers else None
    parts = Parts(
        student=student, teacher=teacher, tokenizer=known, teacher_tokenizer=known, train=rows, device="cpu"
    )
    result = fit(recipe, parts)
    moved = {name: before[name] - p.detach() for name, p in student.named_parameters()}
    return Step(moved, result.history[0])


def reference(student: nn.Module, rows, loss: Loss) -> Gradient:
    """The gradient of the losses summed over all rows and divided by all positions, one unpadded row at a time."""
    student = copy.deepcopy(student).train()
    total, count = 0.0, 0
    for row in rows:
        ids = row["input_ids"][: sum(row["attention_mask"])]
        at = [
            t for t in range(len(ids) - 1) if row["labels"][t + 1] != -100
        ]  # position t answers token t + 1
        total, count = total + loss(student, ids, at), count + len(at)
    weights = {name: p for name, p in student.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total / count, list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(weights.items(), found, strict=True)
    }


def distance(got: Gradient, want: Gradient) -> float:
    """The largest difference over the largest entry of `want`."""
    scale = max(g.abs().max() for g in want.values())
    return float(max((got[name] - g).abs().max() for name, g in want.items()) / scale)


def size_of(gradient: Gradient) -> float:
    return float(max(g.abs().max() for g in gradient.values()))


def equal(got: Gradient, want: Gradient) -> bool:
    return all(torch.equal(got[name], g) for name, g in want.items())


def said(model: nn.Module, ids: list[int], at: list[int]) -> Tensor:
    """The model's own logits at these positions: [n, V]."""
    return model(torch.tensor([ids])).logits[0, at]


# ---- heads

HEADS = {
    "soft-capped (Gemma 2)": ("Gemma2Config", {"final_logit_softcapping": 0.5, "head_dim": 8}),
    "scaled (Cohere)": ("CohereConfig", {"logit_scale": 0.25}),
    "divided (Granite)": ("GraniteConfig", {"logits_scaling": 3.0}),
    "biased (Phi)": ("PhiConfig", {}),
    "tied (Llama)": ("LlamaConfig", {"tie_word_embeddings": True}),
}


def build_head(kind: str, vocabulary: int, seed: int) -> nn.Module:
    """A family's head behind its embeddings, without blocks, which compute in float32 in some families.

    Their norms do too, so LayerNorm stands in for them.
    """
    name, more = HEADS[kind]
    config = getattr(transformers, name)(
        vocab_size=vocabulary, hidden_size=16, num_hidden_layers=0, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=None, **more,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for path, module in list(model.named_modules()):
        if type(module).__name__.endswith("Norm") and not isinstance(module, nn.LayerNorm):
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, nn.LayerNorm(module.weight.numel()))
    for weight in model.parameters():  # a bias of zeros would hide that it is used, a small head every scale
        weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(weight.numel() + seed))
    return model.double()


def with_adapter(model: nn.Module) -> nn.Module:
    """LoRA on the head of a copy, away from zero so that it changes the logits."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    model = inject_adapter_in_model(
        LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False), copy.deepcopy(model)
    )
    return model.double()
