"""The prompt before the patches of Time-LLM: what the data are, and statistics of the window, as token ids.

A prompt is a row of slots. A slot that reads nothing is one token; the others hold a table of tokens and the name of
the statistic that chooses among them. So all prompts of a model are of one length, need no padding and no tokenizer
once the tables are made, and use few tokens. Statistics are of the window in its own units: level and scale change
nothing.

Shapes: N windows, L look-back, T slots.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LAGS = 3  # of the strongest periods
BUCKETS, REACH = 32, 4.0  # a statistic in spreads of the window falls into one of so many between -4 and 4


@dataclass(frozen=True)
class Slot:
    """ids: one token, or one for each value of the statistic `reads`."""

    ids: tuple[int, ...]
    reads: str = ""


def statistics(z_NL: Tensor) -> dict[str, Tensor]:
    """Whole numbers [N] that slots read: buckets, signs and digits of minimum, maximum, median; trend; lags."""
    length = z_NL.shape[1]
    found: dict[str, Tensor] = {}
    trend_N = (z_NL[:, length // 2 :].mean(1) - z_NL[:, : length // 2].mean(1)) / 2
    numbers = {"min": z_NL.amin(1), "max": z_NL.amax(1), "median": z_NL.median(1).values, "trend": trend_N}
    for name, value_N in numbers.items():
        tenths_N = (value_N.abs() * 10).round().long().clamp(max=99)
        found[f"{name}.bucket"] = ((value_N / REACH + 1) / 2 * BUCKETS).long().clamp(0, BUCKETS - 1)
        found[f"{name}.sign"] = (value_N < 0).long()
        found[f"{name}.units"], found[f"{name}.tenths"] = tenths_N // 10, tenths_N % 10
    for number, lag_N in enumerate(lags(z_NL).unbind(1)):
        found[f"lag{number}"] = lag_N
        for place, unit in (("hundreds", 100), ("tens", 10), ("ones", 1)):
            found[f"lag{number}.{place}"] = lag_N // unit % 10
    return found


def lags(z_NL: Tensor, count: int = LAGS) -> Tensor:
    """The lags up to L / 2 at which the autocorrelation has its highest peaks, highest first: [N, count]; 0 for none.

    A peak is above both neighbours, so neither lag 0 nor the slope beside it is ever one.
    """
    length = z_NL.shape[1]
    power = torch.fft.rfft(z_NL, 2 * length).abs().square()  # padded: no lag wraps round
    most = max(2, length // 2 + 2)
    overlap = length - torch.arange(most, device=z_NL.device)
    acf_NK = torch.fft.irfft(power, 2 * length)[:, :most] / overlap.clamp(min=1)
    inner = acf_NK[:, 1:-1]
    peak = (inner > acf_NK[:, :-2]) & (inner > acf_NK[:, 2:]) & (inner > 0)
    height = torch.where(peak, inner, -1)
    height = torch.nn.functional.pad(height, (0, max(0, count - height.shape[1])), value=-1)
    best = height.topk(count, 1)
    return torch.where(best.values > 0, best.indices + 1, 0)


def token_ids(slots: list[Slot], z_NL: Tensor) -> Tensor:
    """[N, T]."""
    read = statistics(z_NL)
    columns = []
    for slot in slots:
        table = torch.tensor(slot.ids, device=z_NL.device)
        columns.append(table[read[slot.reads]] if slot.reads else table[:1].expand(len(z_NL)))
    return torch.stack(columns, 1)


def of_buckets(lookback: int) -> tuple[list[Slot], int]:
    """(slots, tokens) for a backbone with a vocabulary of its own: one token a statistic, one for the data set."""
    slots, used = [Slot((0,))], 1
    for reads, size in (
        *((f"{name}.bucket", BUCKETS) for name in ("min", "max", "median", "trend")),
        *((f"lag{number}", lookback // 2 + 1) for number in range(LAGS)),
    ):
        slots.append(Slot(tuple(range(used, used + size)), reads))
        used += size
    return slots, used


def of_text(tokenizer: Any, description: str, lookback: int, horizon: int) -> list[Slot]:
    """Slots of a prompt in words, for a backbone that reads text: Jin et al. 2024 (arXiv 2310.01728), figure 4.

    Numbers are written digit by digit, each a token.
    """

    def words(text: str) -> list[Slot]:
        return [Slot((i,)) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]

    def last(text: str) -> int:
        """The token that a sign or digit is behind a blank."""
        return tokenizer(f"0 {text}", add_special_tokens=False)["input_ids"][-1]

    digits = tuple(last(str(digit)) for digit in range(10))
    start = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    slots = [] if start is None else [Slot((start,))]
    slots += words(
        f"Dataset description: {description} Task description: forecast the next {horizon} steps given the "
        f"previous {lookback} steps information. Input statistics:"
    )
    for name, told in (("min", "min value"), ("max", "max value"), ("median", "median value")):
        slots += words(f" {told}")
        slots += [
            Slot((last("+"), last("-")), f"{name}.sign"),
            Slot(digits, f"{name}.units"),
            Slot((last("."),)),
        ]
        slots += [Slot(digits, f"{name}.tenths")]
    slots += [*words(" the trend of input is"), Slot((last("upward"), last("downward")), "trend.sign")]
    slots += words(" the top lags are")
    places = ("hundreds", "tens", "ones") if lookback // 2 > 99 else ("tens", "ones")
    for number in range(LAGS):
        slots += [
            *(words(",") if number else []),
            *(Slot(digits, f"lag{number}.{place}") for place in places),
        ]
    return slots


def pruned(slots: list[Slot]) -> tuple[list[Slot], list[int]]:
    """(the same slots with the tokens numbered from 0 in the order of the list, the tokens that they use)."""
    used = sorted({token for slot in slots for token in slot.ids})
    place = {token: number for number, token in enumerate(used)}
    return [Slot(tuple(place[token] for token in slot.ids), slot.reads) for slot in slots], used
