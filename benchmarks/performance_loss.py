"""The loss alone, forward and backward, over hidden states and heads, as the learner computes it and as others do.

    L = alpha CE + (1 - alpha) T^2 KL(teacher || student)

Letters: N positions, D width of the student, V vocabulary, T temperature.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from performance_worker import Gate
from torch import Tensor, nn
from transformers import PretrainedConfig

from llm_finetuner import chunks
from llm_finetuner.learner import Learner
from llm_finetuner.methods.vanilla import vanilla_distillation
from llm_finetuner.models.loading import head_of
from llm_finetuner.output import Output, Want
from llm_finetuner.scheme import Scheme
from llm_finetuner.task import Task
from llm_finetuner.teachers.live import Live

TEMPERATURE, ALPHA = 2.0, 0.5
WIDTH, TEACHER_WIDTH = 512, 768


class Headed(nn.Module):
    """A language model of which only the head is there: its hidden states come with the batch."""

    is_gradient_checkpointing = False

    def __init__(self, width: int, vocabulary: int, rows: str):
        super().__init__()
        self.layer, self.rows = nn.Linear(width, vocabulary, bias=False), rows
        self.config = PretrainedConfig()
        nn.init.normal_(self.layer.weight, std=1 / width**0.5)

    def get_output_embeddings(self) -> nn.Module:
        return self.layer

    get_input_embeddings = get_output_embeddings

    def num_parameters(self) -> int:
        return self.layer.weight.numel()


class Rows(Task):
    """The task: hands over the hidden states that the batch holds."""

    def width(self, model: Headed) -> int:
        return model.layer.in_features

    def depth(self, model: Headed) -> int:
        return 0

    def run(self, model: Headed, batch: dict[str, Tensor], want: Want) -> Output:
        return Output(
            rows=batch[model.rows],
            head=head_of(model),
            targets=batch["input_ids"],
            examples=batch["examples"],
        )


def build(tokens: int, vocabulary: int, trained: bool = True, dtype: torch.dtype = torch.float32):
    """(student, teacher, batch, bytes of the gradients), the same whatever computes the loss."""
    torch.manual_seed(0)
    student = Headed(WIDTH, vocabulary, "rows").to(dtype).requires_grad_(trained)
    teacher = Headed(TEACHER_WIDTH, vocabulary, "teacher_rows").to(dtype).requires_grad_(False)
    batch = {
        "rows": torch.randn(tokens, WIDTH, dtype=dtype, requires_grad=True),
        "teacher_rows": torch.randn(tokens, TEACHER_WIDTH, dtype=dtype) * 2,
        "input_ids": torch.randint(0, vocabulary, (tokens,)),
        "examples": torch.zeros(tokens, dtype=torch.long),
    }
    small = torch.randn(64, 64, requires_grad=True)
    (small @ small).log_softmax(-1).sum().backward()  # loads the libraries, which are no memory of the loss
    weight = student.layer.weight
    return student, teacher, batch, weight.numel() * weight.element_size() * trained


def repeat(gate: Gate, student: Headed, batch: dict[str, Tensor], loss) -> None:
    """Again and again `loss() -> scalar` and its gradients, which are not there before."""
    gate()
    while True:
        student.layer.weight.grad = batch["rows"].grad = None
        value = loss()
        value.backward()
        gate(loss=value.item())


def ours(
    gate: Gate,
    tokens: int,
    vocabulary: int,
    chunk: int | None = None,
    trained: bool = True,
    alpha: float = ALPHA,
) -> None:
    """The learner of every run, with a live teacher. chunk: positions at a time; None as it chooses."""
    student, teacher, batch, gradients = build(tokens, vocabulary, trained)
    learner = learner_of(student, teacher, vanilla_distillation(temperature=TEMPERATURE, alpha=alpha), chunk)
    gate.weights(gradients)

    def loss() -> Tensor:
        return learner(batch, learner.provider(batch, learner.teacher_want))[0] / tokens

    repeat(gate, student, batch, loss)


def learner_of(student: Headed, teacher: Headed, scheme: Scheme, chunk: int | None) -> Learner:
    if chunk:
        chunks.LOGITS_A_CHUNK = chunk * student.layer.out_features
    return Learner(Rows(), student, scheme, Live(Rows(), teacher)).train()


def naive_loss(own_NV: Tensor, told_NV: Tensor, targets: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """What most scripts write: the mean over N."""
    parts = (F.log_softmax(z / temperature, -1) for z in (own_NV, told_NV))
    kl = F.kl_div(*parts, log_target=True, reduction="batchmean") * temperature**2
    return ALPHA * F.cross_entropy(own_NV, targets) + (1 - ALPHA) * kl


def naive(gate: Gate, tokens: int, vocabulary: int) -> None:
    student, teacher, batch, gradients = build(tokens, vocabulary)
    gate.weights(gradients)

    def loss() -> Tensor:
        own = student.layer(batch["rows"])
        with torch.no_grad():
            told = teacher.layer(batch["teacher_rows"])
        return naive_loss(own, told, batch["input_ids"])

    repeat(gate, student, batch, loss)


def tiles(gate: Gate, tokens: int, vocabulary: int) -> None:
    """TRL's function. It has no cross-entropy, so it does less."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    student, teacher, batch, gradients = build(tokens, vocabulary)
    gate.weights(gradients)

    def loss() -> Tensor:
        own = batch["rows"], student.layer.weight, None
        told = batch["teacher_rows"], teacher.layer.weight, None
        per_token, _ = ChunkedDivergenceFunction.apply(*own, *told, 0.0, TEMPERATURE)
        return per_token.mean() * TEMPERATURE**2

    repeat(gate, student, batch, loss)


def products(gate: Gate, tokens: int, vocabulary: int, chunk: int = 512) -> None:
    """The matrix products that no exact loss can do without, into memory that is there already."""
    student, teacher, batch, gradients = build(tokens, vocabulary)
    own, told = student.layer.weight.detach(), teacher.layer.weight
    rows, rows_t = batch["rows"].detach(), batch["teacher_rows"]
    gate.weights(gradients)
    size = min(chunk, tokens)
    logits, logits_t = torch.empty(2, size, vocabulary)
    d_own, d_rows = torch.empty_like(own), torch.empty_like(rows)
    gate()
    while True:
        for i in range(0, tokens, size):
            piece = SimpleNamespace(s=rows[i : i + size], t=rows_t[i : i + size], d=d_rows[i : i + size])
            n = len(piece.s)
            torch.mm(piece.s, own.t(), out=logits[:n])
            torch.mm(piece.t, told.t(), out=logits_t[:n])
            torch.mm(logits[:n], own, out=piece.d)
            torch.addmm(d_own, logits[:n].t(), piece.s, beta=float(i > 0), out=d_own)
        gate()
