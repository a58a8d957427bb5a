"""The objectives of forecasts once more, naively and in float64; see objective_references.py."""

import math

import torch


def _shares(x):
    return x.exp() / x.exp().sum()


def output_mse(student, teacher):
    return ((student - teacher) ** 2).sum(-1) / student.shape[-1]


def pinball(student, targets, quantiles=(0.5,)):
    rows = []
    for said, came in zip(student, targets, strict=True):
        losses = []
        for h, y in enumerate(came):
            for i, level in enumerate(quantiles):
                gap = y - said[h * len(quantiles) + i]
                losses.append(gap * (level if gap > 0 else level - 1))
        rows.append(sum(losses) / len(losses))
    return torch.stack(rows)


def _shares_of_energy(x):
    steps = range(len(x))
    found = []
    for k in range(1, len(x) // 2 + 1):
        real = sum(x[t] * math.cos(2 * math.pi * k * t / len(x)) for t in steps)
        imaginary = sum(x[t] * math.sin(2 * math.pi * k * t / len(x)) for t in steps)
        found.append((real**2 + imaginary**2).sqrt())
    found = torch.stack(found)
    return _shares(found / (found.sum() / len(found)))


def spectrum(student, teacher):
    return torch.stack(
        [
            (p * (p / q).log()).sum()
            for p, q in (
                (_shares_of_energy(t), _shares_of_energy(s)) for s, t in zip(student, teacher, strict=True)
            )
        ]
    )


def multi_scale(student, teacher, scales=3):
    rows = []
    for gap in student - teacher:
        means = []
        for scale in range(1, scales + 1):
            runs = [gap[start : start + 2**scale] for start in range(0, len(gap), 2**scale)]
            means.append(sum((sum(run) / len(run)) ** 2 for run in runs) / len(runs))
        rows.append(sum(means) / scales)
    return torch.stack(rows)
