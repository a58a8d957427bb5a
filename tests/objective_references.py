"""Every objective of the registry once more, naively and in float64: loops over positions, pairs and triples.

A reference is called as the objective is, and is found by its name. `inputs` makes what the objective reads.
"""

import inspect
import math

import torch
from series_references import multi_scale, output_mse, pinball, spectrum  # noqa: F401  found by name

from llm_finetuner.registry import OBJECTIVES, resolve

EXAMPLES = torch.tensor([0, 0, 0, 0, 2, 3, 3, 3, 3, 3, 5, 5])  # four, one, five and two positions


def softmax(z):
    return z.exp() / z.exp().sum(-1, keepdim=True)


def _kl(p, q):
    """Of two vectors without zeros."""
    return sum(a * (a / b).log() for a, b in zip(p, q, strict=True))


def _response(student, teacher, temperature, divergence):
    rows = zip(softmax(teacher / temperature), softmax(student / temperature), strict=True)
    return temperature**2 * torch.stack([divergence(p, q) for p, q in rows])


def forward_kl(student, teacher, temperature=1.0):
    return _response(student, teacher, temperature, _kl)


def reverse_kl(student, teacher, temperature=1.0):
    return _response(student, teacher, temperature, lambda p, q: _kl(q, p))


def jsd(student, teacher, beta=0.5, temperature=1.0):
    def divergence(p, q):
        m = beta * p + (1 - beta) * q
        return beta * _kl(p, m) + (1 - beta) * _kl(q, m)

    return _response(student, teacher, temperature, divergence)


def skew_forward_kl(student, teacher, lam=0.1, temperature=1.0):
    return _response(student, teacher, temperature, lambda p, q: _kl(p, lam * p + (1 - lam) * q))


def skew_reverse_kl(student, teacher, lam=0.1, temperature=1.0):
    return _response(student, teacher, temperature, lambda p, q: _kl(q, lam * q + (1 - lam) * p))


def adaptive_kl(student, teacher, head_mass=0.5, temperature=1.0):
    def divergence(p, q):
        mass, head, tail = 0.0, 0.0, 0.0
        for i in sorted(range(len(p)), key=lambda i: -p[i].item()):
            gap = abs(p[i].item() - q[i].item())
            head, tail = (head + gap, tail) if mass < head_mass else (head, tail + gap)
            mass += p[i].item()
        return (head * _kl(p, q) + tail * _kl(q, p)) / (head + tail)

    return _response(student, teacher, temperature, divergence)


def alpha_beta(student, teacher, a=0.2, b=0.7, temperature=1.0):
    def divergence(p, q):
        if a == 0 and b == 0:
            return sum((x.log() - y.log()) ** 2 for x, y in zip(p, q, strict=True)) / 2
        if b == 0:
            return sum(x**a * (x**a / y**a).log() - x**a + y**a for x, y in zip(p, q, strict=True)) / a**2
        if a == 0:
            return sum(y**b * (y**b / x**b).log() - y**b + x**b for x, y in zip(p, q, strict=True)) / b**2
        c = a + b
        return -sum(x**a * y**b - a / c * x**c - b / c * y**c for x, y in zip(p, q, strict=True)) / (a * b)

    return _response(student, teacher, temperature, divergence)


def total_variation(student, teacher, temperature=1.0):
    return _response(student, teacher, temperature, lambda p, q: (p - q).abs().sum() / 2)


def logit_mse(student, teacher, temperature=1.0):
    own, other = (z - z.mean(-1, keepdim=True) for z in (student, teacher))
    return ((own - other) ** 2).sum(-1) / own.shape[-1]


def cross_entropy(student, targets, label_smoothing=0.0):
    losses = []
    for z, y in zip(student, targets, strict=True):
        wanted = torch.full_like(z, label_smoothing / len(z))
        wanted[y] += 1 - label_smoothing
        losses.append(-(wanted * softmax(z).log()).sum())
    return torch.stack(losses)


def mse(student, targets):
    return ((student - targets) ** 2).sum(-1) / student.shape[-1]


def _huber(gap, delta=1.0):
    return gap**2 / 2 if abs(gap.item()) <= delta else delta * (gap.abs() - delta / 2)


def huber(student, targets, delta=1.0):
    gaps = student - targets
    return torch.stack([torch.stack([_huber(g, delta) for g in row]).mean() for row in gaps])


def hidden_mse(student_features, teacher_features):
    return ((student_features - teacher_features) ** 2).sum(-1) / student_features.shape[-1]


def _length(x):
    return (x**2).sum(-1, keepdim=True).sqrt()


def _cosine(x, y):
    return (x * y).sum() / (_length(x) * _length(y))[0]


def hidden_cosine(student_features, teacher_features):
    return torch.stack([1 - _cosine(x, y) for x, y in zip(student_features, teacher_features, strict=True)])


def hidden_normalized(student_features, teacher_features):
    own, other = (x / _length(x) for x in (student_features, teacher_features))
    return ((own - other) ** 2).sum(-1)


def hidden_nmse(student_features, teacher_features, examples):
    losses = []
    for s, t, e in zip(student_features, teacher_features, examples, strict=True):
        losses.append(((s - t) ** 2).sum() / len(s) / teacher_features[examples == e].square().mean())
    return torch.stack(losses)


def embedding_mse(student_embeddings, teacher_embeddings):
    return ((student_embeddings - teacher_embeddings) ** 2).sum(-1) / student_embeddings.shape[-1]


def _heads(attention, heads):
    return [attention.sum(1) / attention.shape[1]] if heads == "averaged" else list(attention.unbind(1))


def attention_mse(student_attention, teacher_attention, heads="matched"):
    own, other = _heads(student_attention, heads), _heads(teacher_attention, heads)
    return sum(((s - t) ** 2).sum(-1) for s, t in zip(own, other, strict=True)) / len(own)


def attention_kl(student_attention, teacher_attention, heads="matched"):
    own, other, losses = _heads(student_attention, heads), _heads(teacher_attention, heads), []
    for n in range(len(own[0])):
        total = 0.0
        for s, t in zip(own, other, strict=True):
            for q, p in zip(s[n], t[n], strict=True):
                total = total + (p * (p / q).log() if p > 0 else 0.0) - p + q
        losses.append(total / len(own))
    return torch.stack(losses)


def _by_sequence(examples, loss, *tensors):
    """`loss` of every sequence's rows: [l] or a number for all of them."""
    parts = []
    for e in examples.unique().tolist():
        where = examples == e
        value = loss(*(x[where] for x in tensors))
        parts.append(
            value.expand(int(where.sum())) if torch.is_tensor(value) else torch.zeros(int(where.sum()))
        )
    return torch.cat([part.double() for part in parts])


def value_relation(student_states, teacher_states, examples, of=("value",), heads=1):
    def loss(own, other):
        width_s, width_t, rows = own.shape[-1] // heads, other.shape[-1] // heads, []
        for i in range(len(own)):
            total = 0.0
            for h in range(heads):
                s, t = own[:, h * width_s : (h + 1) * width_s], other[:, h * width_t : (h + 1) * width_t]
                total = total + _kl(
                    softmax((t @ t[i]) / math.sqrt(width_t)), softmax((s @ s[i]) / math.sqrt(width_s))
                )
            rows.append(total / heads)
        return torch.stack(rows)

    return sum(_by_sequence(examples, loss, student_states[k], teacher_states[k]) for k in of) / len(of)


def cka(student_hidden, teacher_hidden, examples):
    def loss(x, y):
        if len(x) == 1:
            return 0.0
        x, y = x - x.mean(0), y - y.mean(0)
        return 1 - ((y.T @ x) ** 2).sum() / (((x.T @ x) ** 2).sum().sqrt() * ((y.T @ y) ** 2).sum().sqrt())

    return _by_sequence(examples, loss, student_hidden, teacher_hidden)


def distance(student_hidden, teacher_hidden, examples):
    def scaled(x):
        pairs = {(i, j): _length(x[i] - x[j])[0] for i in range(len(x)) for j in range(len(x)) if i != j}
        mean = sum(pairs.values()) / len(pairs)
        return {pair: d / mean for pair, d in pairs.items()}

    def loss(x, y):
        if len(x) == 1:
            return 0.0
        own, other, own_share = scaled(x), scaled(y), 1 / (len(x) - 1)
        rows = [[_huber(own[i, j] - other[i, j]) for j in range(len(x)) if j != i] for i in range(len(x))]
        return torch.stack([sum(row) * own_share for row in rows])

    return _by_sequence(examples, loss, student_hidden, teacher_hidden)


def angle(student_hidden, teacher_hidden, examples, positions=32):
    def loss(x, y):
        if len(x) > positions:
            chosen = [k * (len(x) - 1) // (positions - 1) for k in range(positions)]
            x, y = x[chosen], y[chosen]
        size, losses = range(len(x)), []
        for i, j, k in ((i, j, k) for i in size for j in size for k in size if len({i, j, k}) == 3):
            own, other = _cosine(x[i] - x[j], x[k] - x[j]), _cosine(y[i] - y[j], y[k] - y[j])
            losses.append(_huber(own - other))
        return torch.stack(losses).mean() if losses else 0.0

    return _by_sequence(examples, loss, student_hidden, teacher_hidden)


def similarity(student_hidden, teacher_hidden, examples):
    def loss(x, y):
        own, other = ((z @ z.T) / _length(z @ z.T) for z in (x, y))
        return ((own - other) ** 2).sum(-1) / len(x)

    return _by_sequence(examples, loss, student_hidden, teacher_hidden)


def token_relation(student_hidden, teacher_hidden, examples):
    def loss(x, y):
        if len(x) == 1:
            return 0.0
        size = range(len(x))
        gaps = [[(_cosine(x[i], x[j]) - _cosine(y[i], y[j])) ** 2 for j in size if j != i] for i in size]
        return torch.stack([sum(row) / len(row) for row in gaps])

    return _by_sequence(examples, loss, student_hidden, teacher_hidden)


def span_kl(student_spans, teacher_spans):
    p, q = teacher_spans.exp(), student_spans.exp()
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def uld(student, teacher):
    p, q = (softmax(x).sort(descending=True)[0] for x in (teacher, student))
    return (p - q).abs().sum(-1)


def reads(name: str) -> list[str]:
    """What the objective reads, in its order."""
    parameters = inspect.signature(resolve(OBJECTIVES, name)).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def _attention(heads: int) -> torch.Tensor:
    """[12, heads, 6] causal, with two padded tokens after the fourth."""
    scores = torch.randn(len(EXAMPLES), heads, 6, dtype=torch.float64)
    last = (torch.arange(len(EXAMPLES)) % 4)[:, None, None]
    return scores.masked_fill(torch.arange(6) > last, -math.inf).softmax(-1)


def inputs(name: str, options: dict) -> list:
    """Arguments of the objective in float64; what the student gives takes a gradient."""
    torch.manual_seed(len(name))
    count, ids = len(EXAMPLES), torch.randint(0, 11, (len(EXAMPLES),))
    made = []
    for what in reads(name):
        own = what.startswith("student")
        kind = what.removeprefix("student").removeprefix("teacher").removeprefix("_")
        if kind == "examples":
            value = EXAMPLES
        elif kind == "targets" and name == "cross_entropy":
            value = ids
        elif kind == "attention":
            value = _attention(2 if own or options.get("heads") != "averaged" else 3)
        elif kind == "states":
            width = 8 if own else 12
            value = {k: torch.randn(count, width, dtype=torch.float64) for k in ("query", "key", "value")}
        elif kind == "spans":
            value = -torch.rand(count, dtype=torch.float64) - 0.1
        else:
            width = {"hidden": 5 if own else 9}.get(kind, 11)
            width *= len(options.get("quantiles", [0.5])) if own else 1
            value = torch.randn(count, width, dtype=torch.float64)
        for tensor in value.values() if isinstance(value, dict) else [value]:
            tensor.requires_grad_(own)
        made.append(value)
    return made


def leaves(arguments: list) -> list[torch.Tensor]:
    """The student's tensors among the arguments."""
    flat = [t for a in arguments for t in (a.values() if isinstance(a, dict) else [a])]
    return [t for t in flat if t.requires_grad]


def convert(arguments: list, dtype: torch.dtype) -> list:
    """The same values in another dtype, as new leaves; whole numbers stay."""

    def one(t):
        return t.detach().to(dtype).requires_grad_(t.requires_grad) if t.is_floating_point() else t

    return [{k: one(t) for k, t in a.items()} if isinstance(a, dict) else one(a) for a in arguments]
