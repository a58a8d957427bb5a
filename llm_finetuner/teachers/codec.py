"""A teacher's distribution at one position as a record of a fixed number of bytes, and back.

TopK: the k best tokens with log-probabilities of a few bits, the mass of the tail, and which of a few shapes the tail
has (tails.py). Sampled: tokens drawn from the distribution. Exact: every log-probability.
Ids are sorted and written as Elias and Fano do: low bits as they are, high bits as the gaps between ones.

Shapes: n positions, k listed tokens, V vocabulary, R bytes a record, L levels, C shapes of tails.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from llm_finetuner.teachers.sparse import offset

BUDGET = (114, 50)  # so many bytes for so many listed tokens
GROUP = 5  # levels that share one number, so that the number of levels need be no power of two
LEVELS = (8, 256)
TAIL_BITS, TAIL_LOGIT = 12, 16.0  # log(tail / (1 - tail)) within +- 16
WORD = 8  # bytes that a number is cut out of
RANGE_BITS, RANGE_LOG2 = 8, 6.0  # log2(largest - smallest log-probability, nats) within +- 6


def pack(fields: list[tuple[Tensor, int]]) -> Tensor:
    """Numbers [n, m] of so many bits each, low bit first, one field behind the other: [n, R] uint8."""
    bits = torch.cat([_bits(numbers, width) for numbers, width in fields], 1)
    bits = nn.functional.pad(bits, (0, -bits.shape[1] % 8)).view(len(bits), -1, 8)
    return (bits << torch.arange(8, device=bits.device, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def unpack(records_nR: Tensor, fields: list[tuple[int, int]]) -> list[Tensor]:
    """The fields (how many numbers, bits of each: at most 57) of what `pack` wrote: [n, m] int64; 1 bit stays uint8.

    Every number is cut out of the 8 bytes that begin where it does.
    """
    bytes_nR, start, numbers = nn.functional.pad(records_nR, (0, WORD)), 0, []
    for count, width in fields:
        first, start = start, start + count * width
        if width == 1:
            numbers.append(_bits(bytes_nR[:, first // 8 : start // 8 + 1], 8)[:, first % 8 :][:, :count])
            continue
        at_m = first + width * torch.arange(count, device=records_nR.device)
        words = (at_m // 8)[:, None] + torch.arange(WORD, device=at_m.device)
        cut = bytes_nR.index_select(1, words.flatten()).view(torch.int64) >> (at_m % 8)
        numbers.append(cut & ((1 << width) - 1))
    return numbers


def _bits(numbers: Tensor, width: int) -> Tensor:
    places = torch.arange(width, device=numbers.device, dtype=numbers.dtype)
    return ((numbers[:, :, None] >> places) & 1).flatten(1).to(torch.uint8)


class SortedIds:
    """k ids below V in ascending order, repeats allowed (Elias 1974, Fano 1971): about log2(V / k) + 2 bits an id."""

    def __init__(self, k: int, vocabulary: int):
        highest = vocabulary - 1
        self.low = min(range(highest.bit_length()), key=lambda low: k * low + (highest >> low), default=0)
        self.ones = k + (highest >> self.low)
        self.fields = [(k, self.low), (self.ones, 1)]
        self.bits = k * self.low + self.ones
        self.k = k

    def encode(self, ids_nk: Tensor) -> list[tuple[Tensor, int]]:
        ones = (ids_nk >> self.low) + torch.arange(self.k, device=ids_nk.device)
        unary = ids_nk.new_zeros(len(ids_nk), self.ones).scatter_(1, ones, 1)
        return [(ids_nk & ((1 << self.low) - 1), self.low), (unary, 1)]

    def decode(self, low_nk: Tensor, unary: Tensor) -> Tensor:
        high = unary.nonzero()[:, 1].view(len(unary), self.k) - torch.arange(self.k, device=unary.device)
        return (high << self.low) | low_nk


class TopK:
    """The k best tokens, and a tail that is spread in proportion to the best of C shapes."""

    def __init__(self, k: int, vocabulary: int, levels_L: Tensor, log_shapes_CV: Tensor):
        """levels: ascending in [0, 1], from the smallest listed log-probability to the largest. k < V."""
        self.levels, self.log_shapes = levels_L.float(), log_shapes_CV.float().log_softmax(1)
        self.k, self.vocabulary = k, vocabulary
        self.ids = SortedIds(k, vocabulary)
        shape_bits = (len(log_shapes_CV) - 1).bit_length()
        groups = -(-k // GROUP)
        self.widths = [
            (1, shape_bits), (1, TAIL_BITS), (1, RANGE_BITS),
            (groups, math.ceil(GROUP * math.log2(len(levels_L)))), *self.ids.fields,
        ]  # fmt: skip
        self.record_bytes = -(-sum(count * width for count, width in self.widths) // 8)

    @staticmethod
    def levels_for(k: int, vocabulary: int, shapes: int) -> int:
        """The most levels that fit into 114 bytes for 50 tokens."""
        taken = SortedIds(k, vocabulary).bits + TAIL_BITS + RANGE_BITS + (shapes - 1).bit_length()
        left = k * BUDGET[0] // BUDGET[1] * 8 - taken
        width = max(0, left) // -(-k // GROUP)
        return min(max(int(2 ** (width / GROUP)), LEVELS[0]), LEVELS[1])

    def to(self, device: torch.device) -> "TopK":
        return TopK(self.k, self.vocabulary, self.levels.to(device), self.log_shapes.to(device))

    def noise(self, key: bytes, count: int) -> Tensor:
        return torch.empty(count, 0)

    def encode(self, log_probs_nV: Tensor, _noise: Tensor) -> Tensor:
        log_probs = log_probs_nV.float()
        ids, listed, tails = best(log_probs, self.k)
        shape = tail_costs(tails, ids, self.log_shapes, self._shapes_VC).argmin(1, keepdim=True)
        tail = tails.sum(1, keepdim=True).double()
        logit = torch.logit(tail.clamp(1e-12, 1 - 1e-12)).clamp(-TAIL_LOGIT, TAIL_LOGIT)
        x, _, log2_range = normalised(listed)
        codes = torch.bucketize(x.contiguous(), (self.levels[1:] + self.levels[:-1]) / 2)
        codes = nn.functional.pad(codes, (0, -self.k % GROUP)).view(len(codes), -1, GROUP)
        groups = (codes * self._powers()).sum(-1)
        numbers = [shape, _to_code(logit, TAIL_LOGIT, TAIL_BITS), log2_range, groups]
        widths = [width for _, width in self.widths[:4]]
        return pack([*zip(numbers, widths, strict=True), *self.ids.encode(ids)])

    def decode(self, records_nR: Tensor) -> Tensor:
        """Float32 log-probabilities [n, V], each row summing to 1."""
        shape, tail, log2_range, groups, low, unary = unpack(records_nR, self.widths)
        ids, shape = self.ids.decode(low, unary), shape[:, 0].long()
        codes = ((groups[:, :, None] // self._powers()) % len(self.levels)).flatten(1)[:, : self.k]
        listed = self.levels[codes] * torch.exp2(_from_code(log2_range, RANGE_LOG2, RANGE_BITS))
        logit = _from_code(tail, TAIL_LOGIT, TAIL_BITS)
        listed = listed.log_softmax(1) + nn.functional.logsigmoid(-logit)
        rest = 1 - self.log_shapes[shape[:, None], ids].double().exp().sum(1)
        log_tail = nn.functional.logsigmoid(logit)[:, 0]
        # two passes over [n, V]; most of the time goes into touching new memory
        dense = self.log_shapes.index_select(0, shape).add_(offset(log_tail, rest)[:, None])
        return dense.scatter_(1, ids, listed)

    @cached_property
    def _shapes_VC(self) -> Tensor:
        return self.log_shapes.exp().T.contiguous()

    def _powers(self) -> Tensor:
        return len(self.levels) ** torch.arange(GROUP, device=self.levels.device)


def best(log_probs_nV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best ids ascending [n, k], their log-probabilities [n, k], and the probabilities of the others [n, V]."""
    ids = log_probs_nV.topk(k, 1).indices.sort(1).values
    return ids, log_probs_nV.gather(1, ids), log_probs_nV.exp().scatter_(1, ids, 0)


def tail_costs(tails_nV: Tensor, ids_nk: Tensor, log_shapes_CV: Tensor, shapes_VC: Tensor) -> Tensor:
    """Cross-entropy of each tail under each shape without the listed tokens, up to a constant: [n, C] nats."""
    rest = 1 - nn.functional.embedding_bag(ids_nk, shapes_VC, mode="sum")
    return tails_nV.sum(1, keepdim=True) * rest.clamp(min=1e-6).log() - tails_nV @ log_shapes_CV.T


def normalised(listed_nk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities as [0, 1] from smallest to largest, their range in nats [n, 1], and its code [n, 1]."""
    top = listed_nk.amax(1, keepdim=True)
    listed = listed_nk.clamp(min=top - 2**RANGE_LOG2)  # a teacher may rule tokens out: -inf
    log2_range = (top - listed.amin(1, keepdim=True)).clamp(min=1e-9).log2()
    code = _to_code(log2_range, RANGE_LOG2, RANGE_BITS)
    span = torch.exp2(_from_code(code, RANGE_LOG2, RANGE_BITS))
    return ((listed - top) / span + 1).clamp(0, 1), span, code


def _to_code(values: Tensor, limit: float, bits: int) -> Tensor:
    most = 2**bits - 1
    return ((values + limit) * (most / (2 * limit))).round().clamp(0, most).long()


def _from_code(codes: Tensor, limit: float, bits: int) -> Tensor:
    return codes.float() * (2 * limit / (2**bits - 1)) - limit


@dataclass(frozen=True)
class Sampled:
    """Tokens drawn from the distribution; as probabilities, the shares of the draws (arXiv 2503.16870).

    Their expectation is the teacher's distribution, so a loss that is linear in it has unbiased gradients.
    """

    draws: int
    vocabulary: int
    seed: int

    @property
    def record_bytes(self) -> int:
        return -(-SortedIds(self.draws, self.vocabulary).bits // 8)

    def to(self, _device: torch.device) -> "Sampled":
        return self

    def noise(self, key: bytes, count: int) -> Tensor:
        """Uniform numbers [count, draws] that depend on the content of the row and the seed alone."""
        digest = hashlib.blake2b(key, key=str(self.seed).encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        return torch.rand(count, self.draws, generator=generator, dtype=torch.float64)

    def encode(self, log_probs_nV: Tensor, noise: Tensor) -> Tensor:
        mass = log_probs_nV.double().exp().cumsum(1)
        ids = torch.searchsorted(mass, noise.to(mass.device) * mass[:, -1:], right=True)
        ids = ids.clamp(max=self.vocabulary - 1).sort(1).values
        return pack(SortedIds(self.draws, self.vocabulary).encode(ids))

    def decode(self, records_nR: Tensor) -> Tensor:
        """log(share of the draws) [n, V]: -inf where a token was not drawn."""
        coding = SortedIds(self.draws, self.vocabulary)
        ids = coding.decode(*unpack(records_nR, coding.fields))
        shares = torch.zeros(len(ids), self.vocabulary, device=ids.device)
        one = torch.full(ids.shape, 1 / self.draws, device=ids.device)
        return shares.scatter_add_(1, ids, one).log()


@dataclass(frozen=True)
class Exact:
    """Every log-probability, in float16 or float32."""

    vocabulary: int
    dtype: torch.dtype

    @property
    def record_bytes(self) -> int:
        return self.vocabulary * self.dtype.itemsize

    def to(self, _device: torch.device) -> "Exact":
        return self

    def noise(self, key: bytes, count: int) -> Tensor:
        return torch.empty(count, 0)

    def encode(self, log_probs_nV: Tensor, _noise: Tensor) -> Tensor:
        return log_probs_nV.to(self.dtype).contiguous().view(torch.uint8)

    def decode(self, records_nR: Tensor) -> Tensor:
        return records_nR.contiguous().view(self.dtype).float()
