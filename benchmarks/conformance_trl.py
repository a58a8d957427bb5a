"""The same rules on the distillation losses of TRL (https://github.com/huggingface/trl), where it is installed.

Its trainers run one step over the same rows through their documented arguments, and the gradient is read before the
optimizer's step; where a trainer writes the texts itself, the reference is over the texts that it wrote.
Models are Llamas in float32, since its tiles and its left padding suit them; the reference is float64.
"""

import copy
import importlib.metadata
import importlib.util
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import conformance_reference as ref
import conftest
import torch
from conformance_rules import Cell, judged, worst
from conformance_step import EOS, HEADS, Bench, Gradient, build_head, distance, reference, size_of
from conformance_trl_functions import default_collator, function_cells, kernel_cells
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback

INSTALL = 'python -m pip install -e ".[dev,benchmark]"'
NEW_TOKENS = 12


def version() -> str | None:
    """The installed one, or None."""
    return importlib.metadata.version("trl") if importlib.util.find_spec("trl") else None


def model_of(bench: Bench, seed: int, more: int = 0, dropout: float = 0.0) -> nn.Module:
    model = conftest.build_llama(bench.vocabulary + more, width=16, layers=2, seed=seed)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout
    return model


@dataclass
class Ran:
    """gradient: of one step. rows: what it learned from, as rows of ours."""

    gradient: Gradient
    rows: list[dict]


class Watch(TrainerCallback):
    """Keeps the gradient as it is before the optimizer's step."""

    gradient: Gradient = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.gradient = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
            for name, p in model.named_parameters()
        }


def arguments(bench: Bench, size: int, count: int) -> dict:
    return {
        "output_dir": str(bench.new_folder()), "per_device_train_batch_size": size,
        "gradient_accumulation_steps": count // size, "max_steps": 1, "learning_rate": 1.0, "optim": "sgd",
        "max_grad_norm": 0.0, "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none",
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip


# ---- GKDTrainer


def pad_rows(examples: list[dict]) -> dict[str, Tensor]:
    """Right padding for texts, left padding for prompts, as its own collator does."""
    length = max(len(e["input_ids"]) for e in examples)
    prompts = [e["input_ids"][: _prompt(e)] for e in examples]
    width = max(map(len, prompts))

    def padded(key: str, value: int) -> Tensor:
        return torch.tensor([e[key] + [value] * (length - len(e[key])) for e in examples])

    return {
        "input_ids": padded("input_ids", EOS), "attention_mask": padded("attention_mask", 0),
        "labels": padded("labels", -100),
        "prompts": torch.tensor([[EOS] * (width - len(p)) + p for p in prompts]),
        "prompt_attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }  # fmt: skip


def _prompt(example: dict) -> int:
    return next(i for i, label in enumerate(example["labels"]) if i and label != -100)


def run_gkd(bench: Bench, student, teacher, rows, size: int = 8, share: float = 0.0, **options) -> Ran:
    """share: of the batches that the student writes (lmbda). Forward KL, beta = 0."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    config = GKDConfig(
        **arguments(bench, size, len(rows)), lmbda=share, beta=0.0, max_new_tokens=NEW_TOKENS, **options
    )
    watch, written = Watch(), []
    student = copy.deepcopy(student)
    trainer = GKDTrainer(
        student, copy.deepcopy(teacher) if share else teacher, config, data_collator=pad_rows, train_dataset=rows,
        processing_class=bench.tokenizer, callbacks=[watch],
    )  # fmt: skip
    write = trainer.generate_on_policy_outputs

    def observed(*args):
        said = write(*args)
        for ids, mask, labels in zip(*said, strict=True):
            on = mask.bool()
            n = int(on.sum())
            written.append(
                {"input_ids": ids[on].tolist(), "attention_mask": [1] * n, "labels": labels[on].tolist()}
            )
        return said

    trainer.generate_on_policy_outputs = observed
    random.seed(0)
    torch.manual_seed(0)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return Ran(watch.gradient, written or list(rows))


# ---- DistillationTrainer


def prompts_of(bench: Bench) -> list[str]:
    return [bench.tokenizer.decode(ids[: 2 + i % 3]) for i, ids in enumerate(bench.texts)]


def run_distillation(bench: Bench, student, teacher, size: int = 8, **options) -> Ran:
    """The student writes after 8 prompts of unequal length. Forward KL, beta = 0."""
    import datasets
    from trl import DistillationConfig, DistillationTrainer

    tokenizer = copy.deepcopy(bench.tokenizer)
    tokenizer.padding_side = "left"
    config = DistillationConfig(
        **arguments(bench, size, 8), beta=0.0, max_completion_length=NEW_TOKENS, **options
    )
    watch = Watch()
    trainer = DistillationTrainer(
        copy.deepcopy(student), teacher, config, datasets.Dataset.from_dict({"prompt": prompts_of(bench)}),
        processing_class=tokenizer, callbacks=[watch],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    rows = []
    for batch in trainer._buffered_inputs:  # what it wrote, looked at only
        for p, p_on, c, c_on in zip(
            *(batch[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")),
            strict=True,
        ):
            prompt, text = p[p_on.bool()].tolist(), c[c_on.bool()].tolist()
            labels = [-100] * len(prompt) + text
            rows.append({"input_ids": prompt + text, "attention_mask": [1] * len(labels), "labels": labels})
    return Ran(watch.gradient, rows)


# ---- probes of trainers


def error_of(ran: Ran, student, teacher, temperature: float = 1.0, free: bool = False) -> float:
    """free: up to a factor, the one that brings the gradient nearest to the reference."""
    teacher = copy.deepcopy(teacher).double()
    loss = ref.answer_loss("forward_kl", ref.heard(teacher), temperature)
    want = reference(copy.deepcopy(student).double(), ran.rows, loss)
    got = {name: g.double() for name, g in ran.gradient.items()}
    if free:
        factor = sum((got[n] * g).sum() for n, g in want.items()) / sum(
            g.square().sum() for g in want.values()
        )
        got = {name: g / factor for name, g in got.items()}
    return distance(got, want)


@dataclass
class Subject:
    """A trainer of TRL. run: (student, teacher, size, kind of rows, options) -> Ran. heated: T -> options."""

    name: str
    run: Callable[..., Ran]
    bench: Bench
    heated: Callable[[float], dict] | None
    writes: bool  # its own texts
    free: bool = False  # its factor is looked at in rule 3 alone

    def error(
        self, kind: str = "plain", size: int = 8, models=None, heat: float = 1.0, free: bool | None = None
    ) -> float:
        """heat: the loss's temperature."""
        student, teacher = models or (model_of(self.bench, 1), model_of(self.bench, 2))
        options = self.heated(heat) if self.heated else {}
        ran = self.run(student, teacher, size, kind, **options)
        return error_of(ran, student, teacher, heat, self.free if free is None else free)


def trainer_cells(subject: Subject) -> dict[int, Cell]:
    apart = {size: subject.error("masked", size, free=False) for size in (8, 4, 2, 1)}
    cells = {
        1: judged(subject.error()),
        2: judged(subject.error("masked")),
        3: judged(worst(apart.values()), ", ".join(f"{s} x {8 // s}: {e:.2g}" for s, e in apart.items())),
        6: refused(subject),
        8: calm(subject),
        9: all_heads(subject),
        11: nothing(subject),
    }
    if subject.heated:
        found = {t: subject.error(heat=t) for t in (2.0, 4.0)}
        cells[4] = judged(worst(found.values()), ", ".join(f"T={t:g}: {e:.2f}" for t, e in found.items()))
    if not subject.writes:
        cells[10] = judged(subject.error("eos", 4), "rows with labels of one's own")
    else:
        cells[10] = ends(subject)
    return cells


def refused(subject: Subject) -> Cell:
    bench = subject.bench
    try:
        subject.run(model_of(bench, 1, 5), model_of(bench, 2, 37), 8, "plain")
    except ValueError as error:
        return Cell("refused", None, str(error).split(". ")[0])
    return Cell("fail", None, "widths that differ are neither masked nor refused")


def calm(subject: Subject) -> Cell:
    bench = subject.bench
    student, noisy = model_of(bench, 1), model_of(bench, 2, dropout=0.5).train()
    before = copy.deepcopy(noisy.state_dict())
    ran = subject.run(student, noisy, 8, "plain")
    still = all(torch.equal(x, before[name]) for name, x in noisy.state_dict().items())
    return judged(
        error_of(ran, student, noisy, free=subject.free),
        "" if still else "its weights changed",
        and_also=still,
    )


def all_heads(subject: Subject) -> Cell:
    errors, vocabulary = {}, subject.bench.vocabulary
    for kind in HEADS:
        errors[kind] = subject.error(models=[build_head(kind, vocabulary, seed).float() for seed in (1, 2)])
    return judged(worst(errors.values()), ", ".join(f"{kind} {error:.1e}" for kind, error in errors.items()))


def nothing(subject: Subject) -> Cell:
    student = model_of(subject.bench, 1)
    silent = subject.run(student, copy.deepcopy(student), 8, "plain").gradient
    other = subject.run(student, model_of(subject.bench, 2), 8, "plain").gradient
    return judged(size_of(silent) / size_of(other))


def ends(subject: Subject) -> Cell:
    """A student that ends its texts soon, so that some end in EOS, which is the padding too."""
    models = [build_head("biased (Phi)", subject.bench.vocabulary, seed).float() for seed in (1, 2)]
    models[0].lm_head.bias.data[EOS] = 6.0
    ran = subject.run(*models, 8, "plain")
    ended = sum(row["input_ids"][-1] == EOS and row["labels"][-1] == EOS for row in ran.rows)
    error = error_of(ran, *models, free=subject.free)
    return judged(error, f"{ended} of {len(ran.rows)} texts end in an EOS that counts", and_also=ended > 0)


def subjects(bench: Bench) -> list[Subject]:
    def data(student, teacher, size, kind, **options) -> Ran:
        return run_gkd(bench, student, teacher, bench.rows(kind), size, **options)

    def own_texts(student, teacher, size, kind, **options) -> Ran:
        return run_gkd(bench, student, teacher, bench.rows("masked"), size, share=1.0, **options)

    def distillation(student, teacher, size, kind, **options) -> Ran:
        return run_distillation(bench, student, teacher, size, **options)

    return [
        Subject("GKDTrainer, data (lmbda=0)", data, bench, None, False),
        Subject("GKDTrainer, on-policy (lmbda=1)", own_texts, bench, None, True, free=True),
        Subject("DistillationTrainer", distillation, bench, lambda t: {"temperature": t}, True),
    ]


def probe(bench: Bench) -> dict[str, dict[int, Cell]]:
    """Every subject's cells by rule."""
    found = {"generalized_jsd_loss": function_cells(bench), "ChunkedDivergenceFunction": kernel_cells(bench)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for subject in subjects(bench):
            found[subject.name] = trainer_cells(subject)
        own = default_collator(bench)
    data = found["GKDTrainer, data (lmbda=0)"]
    data[10] = Cell(own.verdict, data[10].error, own.note) if data[10].verdict == "pass" else data[10]
    found["DistillationTrainer"][12] = Cell(
        "fail", None, "`temperature` is documented as that of sampling and of the loss"
    )
    return found
