"""The one module that the engine wraps: the student, its projections, and the terms of the loss.

Shapes: N positions that count, n a slice of them, D hidden width, V vocabulary.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from llm_finetuner.errors import RecipeError
from llm_finetuner.output import Output, Want, at_least_float32
from llm_finetuner.recipe import Term
from llm_finetuner.registry import OBJECTIVES, fill_options, resolve

LOGITS_A_CHUNK = 2**24  # numbers: 64 MiB of float32 logits exist at one time


class Learner(nn.Module):
    """Runs the student and adds up the terms.

    The loss is computed inside forward, so that DDP sees every use of the head's weight.
    """

    def __init__(
        self,
        task,
        student: nn.Module,
        terms: tuple[Term, ...],
        pairs: tuple[tuple[int, int], ...] = (),
        teacher_width: int = 0,
        vocabulary: int | None = None,
        penalty: Callable[[], Tensor] | None = None,
    ):
        """pairs: (student block, teacher block) of the feature terms. vocabulary: columns that both models have."""
        super().__init__()
        self.task, self.student, self.terms, self.pairs = task, student, terms, pairs
        self.vocabulary, self.penalty = vocabulary, penalty
        self.objectives = [resolve(OBJECTIVES, term.objective, "objective") for term in terms]
        self.over_features = ["student_features" in reads(term) for term in terms]
        self.against_teacher = ["teacher" in reads(term) for term in terms]
        for term, fn in zip(terms, self.objectives, strict=True):
            fill_options(term.objective, fn, term.options)
        self.want = Want(tuple(sorted({student_block for student_block, _ in pairs})))
        self.teacher_want = Want(tuple(sorted({teacher_block for _, teacher_block in pairs})))
        self.projections = nn.ModuleDict()
        width = task.width(student)
        if pairs and teacher_width != width:
            dtype = torch.promote_types(student.get_input_embeddings().weight.dtype, torch.float32)
            self.projections.update(
                {str(s): nn.Linear(width, teacher_width, bias=False).to(dtype) for s in self.want.layers}
            )

    def forward(
        self, batch: dict[str, Tensor], teacher: Output | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss summed over the N positions, and the unweighted detached sum of every term.

        With a teacher the second also holds teacher_nll (summed nats) and agreement (positions of equal top-1).
        """
        student = self.task.run(self.student, batch, self.want)
        total, sums = self._over_rows(student, teacher)
        for term, fn, features in zip(self.terms, self.objectives, self.over_features, strict=True):
            if features:
                value = self._over_pairs(fn, term.options, student, teacher)
                total = total + term.weight * value
                sums[term.objective] = value.detach()
        if self.penalty is not None:
            value = self.penalty() * len(
                student.rows
            )  # a mean per step, as the other terms are after the division
            total = total + value
            sums["orthogonality"] = value.detach()
        return total, sums

    def _over_pairs(self, fn, options: dict, student: Output, teacher: Output) -> Tensor:
        """Mean over the layer pairs of the sum over positions."""
        values = []
        for s, t in self.pairs:
            own = student.features[s]
            if str(s) in self.projections:
                projection = self.projections[str(s)]
                own = projection(own.to(projection.weight.dtype))
            values.append(fn(own, teacher.features[t], **options).sum())
        return torch.stack(values).mean()

    def _over_rows(self, student: Output, teacher: Output | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Every term that reads logits, one chunk of positions at a time."""
        listed = [
            (term, fn, against)
            for term, fn, against, features in zip(
                self.terms, self.objectives, self.against_teacher, self.over_features, strict=True
            )
            if not features
        ]
        names = [term.objective for term, _, _ in listed] + (["teacher_nll", "agreement"] if teacher else [])

        def evaluate(rows_nD: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
            logits, targets = student.head(rows_nD), student.targets[piece]
            answers = teacher.head(teacher.rows[piece])[:, : self.vocabulary] if teacher else None
            shared = logits[:, : self.vocabulary]
            loss, values = rows_nD.new_zeros((), dtype=at_least_float32(logits).dtype), []
            for term, fn, against in listed:
                value = (
                    fn(shared, answers, **term.options) if against else fn(logits, targets, **term.options)
                )
                loss = loss + term.weight * value.sum()
                values.append(value.detach().sum())
            if teacher:
                values += _measures(shared.detach(), answers, targets)
            return loss, torch.stack([v.to(loss.dtype) for v in values]) if values else loss.new_zeros(0)

        layer = self.student.get_output_embeddings()
        total, values = chunked(student.rows, layer, evaluate)
        return total, dict(zip(names, values.unbind(), strict=True))


def reads(term: Term) -> set[str]:
    """What the objective of a term reads: the names of its parameters."""
    return set(inspect.signature(resolve(OBJECTIVES, term.objective, "objective")).parameters)


def _measures(logits: Tensor, answers: Tensor, targets: Tensor) -> list[Tensor]:
    """Summed NLL of the targets under the teacher, and how often the two top tokens are the same."""
    answers = at_least_float32(answers)
    nll = torch.nn.functional.cross_entropy(answers, targets, reduction="sum")
    # the student's logit at the teacher's top token is its largest; one argmax less, which is slow on a CPU
    at_top = logits.gather(-1, answers.argmax(-1, keepdim=True))
    return [nll, (at_top == logits.amax(-1, keepdim=True)).sum()]


def chunked(rows_ND: Tensor, layer: nn.Module, evaluate) -> tuple[Tensor, Tensor]:
    """Sum `evaluate(rows, slice) -> (loss, values)` over chunks of positions; the gradients are formed on the way.

    [N, V] never exists, and the head is not run a second time in the backward pass.
    """
    vocabulary = max(p.shape[0] for p in layer.parameters())
    size = max(1, LOGITS_A_CHUNK // vocabulary)
    trained = [p for p in layer.parameters() if p.requires_grad]
    return _Chunked.apply(rows_ND, evaluate, size, *trained)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_ND, evaluate, size, *parameters):
        needed = ctx.needs_input_grad[0] or any(ctx.needs_input_grad[3:])
        d_rows = torch.zeros_like(rows_ND) if needed else None
        d_parameters = [torch.zeros_like(p) for p in parameters] if needed else []
        total, values = 0.0, 0.0
        device_type = rows_ND.device.type
        autocast = torch.autocast(
            device_type,
            dtype=torch.get_autocast_dtype(device_type),
            enabled=torch.is_autocast_enabled(device_type),
            cache_enabled=False,  # a cached cast would tie the graphs of two chunks together
        )
        # an empty chunk still tells the number of values, and keeps the graph whole on every process
        for start in range(0, max(len(rows_ND), 1), size):
            piece = slice(start, start + size)
            rows = rows_ND[piece].detach().requires_grad_(needed)
            with torch.set_grad_enabled(needed), autocast:
                loss, seen = evaluate(rows, piece)
            total, values = total + loss.detach(), values + seen
            if loss.requires_grad:  # not where only features are learned
                grads = torch.autograd.grad(loss, [rows, *parameters], allow_unused=True)
                for into, grad in zip([d_rows[piece], *d_parameters], grads, strict=True):
                    if grad is not None:
                        into += grad
        if needed:
            ctx.save_for_backward(d_rows, *d_parameters)
        ctx.mark_non_differentiable(values)
        return total, values

    @staticmethod
    def backward(ctx, d_total, _):
        d_rows, *d_parameters = ctx.saved_tensors
        return (
            d_total.to(d_rows.dtype) * d_rows,
            None,
            None,
            *(d_total.to(d.dtype) * d for d in d_parameters),
        )


def layer_pairs(layers: list | None, student_depth: int, teacher_depth: int) -> tuple[tuple[int, int], ...]:
    """Pairs of blocks, numbered from 0. None: four evenly spaced student blocks, 12 -> 0, 3, 6, 9.

    A student block alone is paired with the teacher block at the same relative depth. Raises RecipeError.
    """
    if layers is None:
        layers = sorted({i * student_depth // 4 for i in range(4)})
    if not isinstance(layers, list | tuple):
        raise RecipeError(f"feature_layers must be a list of block numbers, got {layers!r}")
    pairs = []
    for layer in layers:
        if isinstance(layer, list | tuple) and len(layer) == 2:
            student, teacher = layer
        else:
            student = layer
            teacher = layer * teacher_depth // student_depth if isinstance(layer, int) else layer
        for block, depth, whose in ((student, student_depth, "student"), (teacher, teacher_depth, "teacher")):
            if isinstance(block, bool) or not isinstance(block, int) or not 0 <= block < depth:
                raise RecipeError(
                    f"feature_layers names block {block!r}, the {whose} has blocks 0 to {depth - 1}",
                    "give block numbers from 0, [student, teacher] pairs, or leave it out for four even ones",
                )
        pairs.append((student, teacher))
    if not pairs:
        raise RecipeError(
            "feature_layers is empty", "name at least one block, or leave it out for four even ones"
        )
    return tuple(pairs)
