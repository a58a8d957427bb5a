"""Records of a teacher's answers: round trips, bytes, what is lost, and that draws are unbiased."""

import argparse
import inspect
import math
import textwrap

import pytest
import torch

from llm_finetuner import assets
from llm_finetuner.models import loading
from llm_finetuner.objectives.divergence import forward_kl
from llm_finetuner.teachers import tails
from llm_finetuner.teachers.codec import Exact, Sampled, SortedIds, TopK, pack, unpack
from llm_finetuner.teachers.sparse import spread

K = 50


def zipf(positions: int, vocabulary: int, exponent: float = 1.1, noise: float = 1.5, seed: int = 0):
    """Log-probabilities that fall with the rank of a token, in one of four orders, disturbed: [n, V]."""
    g = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(vocabulary, generator=g) for _ in range(4)])
    falling = -exponent * torch.log1p(torch.arange(vocabulary).float())
    kind = torch.randint(4, (positions,), generator=g)
    logits = falling[orders[kind]] + noise * torch.randn(positions, vocabulary, generator=g)
    return logits.log_softmax(1)


@pytest.fixture(scope="module")
def learned():
    """Answers of the teacher that is shipped on text that its tokenizer was made for: (some, others), each [n, V]."""
    folder = str(assets.path("quickstart/teacher"))
    tokenizer = loading.load_tokenizer(folder)
    model = loading.load_pretrained(folder, dtype="float32").eval()
    found = []
    for module, rows in ((argparse, 12), (textwrap, 6)):
        ids = tokenizer(inspect.getsource(module))["input_ids"][: rows * 96]
        with torch.no_grad():
            found.append(model(torch.tensor(ids).view(rows, 96)).logits.float().log_softmax(-1).flatten(0, 1))
    return found


@pytest.mark.parametrize("vocabulary", [2, 3, 64, 400, 2048, 50257, 151936, 256000])
@pytest.mark.parametrize("k", [1, 2, 7, 50])
def test_sorted_ids_come_back_repeats_and_ends_too(vocabulary, k):
    g = torch.Generator().manual_seed(k)
    ids = torch.randint(vocabulary, (40, k), generator=g).sort(1).values
    ids[0], ids[1] = 0, vocabulary - 1
    coding = SortedIds(k, vocabulary)
    records = pack(coding.encode(ids))
    assert records.shape == (40, -(-coding.bits // 8)) and records.dtype == torch.uint8
    assert torch.equal(coding.decode(*unpack(records, coding.fields)), ids)
    assert coding.bits <= k * (math.log2(max(vocabulary / k, 1)) + 3) + 2


def test_fields_of_any_width_come_back():
    g = torch.Generator().manual_seed(0)
    fields = [(3, 1), (1, 0), (5, 7), (10, 29), (2, 40), (4, 12)]
    numbers = [torch.randint(2**width, (6, count), generator=g) for count, width in fields]
    records = pack([(x, width) for x, (_, width) in zip(numbers, fields, strict=True)])
    assert records.shape[1] == -(-sum(count * width for count, width in fields) // 8)
    for got, want in zip(unpack(records, fields), numbers, strict=True):
        assert torch.equal(got.long(), want)


@pytest.mark.parametrize("vocabulary", [100, 400, 2048, 32000, 50257, 128256, 151936, 256000])
@pytest.mark.parametrize("shapes", [1, 16, 64])
def test_fifty_tokens_cost_at_most_114_bytes(vocabulary, shapes):
    levels = TopK.levels_for(K, vocabulary, shapes)
    codec = TopK(K, vocabulary, torch.linspace(0, 1, levels), torch.zeros(shapes, 1).expand(-1, vocabulary))
    assert codec.record_bytes <= 114
    assert levels >= (16 if vocabulary <= 151936 else 8)


@pytest.mark.parametrize(
    ("vocabulary", "k"), [(12, 1), (12, 11), (64, 5), (400, 50), (5000, 33), (50257, 50)]
)
def test_what_is_listed_comes_back_and_the_tail_is_kept(vocabulary, k):
    log_probs = zipf(60, vocabulary)
    codec = tails.fit(log_probs, k)
    records = codec.encode(log_probs, torch.empty(0))
    assert records.shape == (60, codec.record_bytes)
    said = codec.decode(records)
    assert torch.allclose(said.exp().sum(1), torch.ones(60), atol=1e-5)
    listed, ids = log_probs.topk(k)
    span = listed[:, :1] - listed[:, -1:]
    widest = codec.levels.diff().max() if k > 1 else 0.0
    # within a level, the range's rounding of 5 %, and the common shift that keeps the sum
    assert ((said.gather(1, ids) - listed).abs() <= (widest + 0.1) * span + 0.02).all()
    tail = 1 - listed.exp().sum(1)
    assert torch.allclose(1 - said.gather(1, ids).exp().sum(1), tail, rtol=0.01, atol=1e-6)
    assert torch.equal(codec.encode(log_probs[7:9], torch.empty(0)), records[7:9])  # no position sees another


@pytest.mark.parametrize("kind", ["peaked", "flat", "ruled out", "certain"])
def test_extreme_teachers_stay_finite_where_they_should(kind):
    logits = {
        "peaked": zipf(30, 300).mul(8), "flat": torch.zeros(30, 300),
        "ruled out": zipf(30, 300).masked_fill(torch.arange(300) >= 20, -torch.inf),
        "certain": torch.full((30, 300), -200.0).index_fill_(1, torch.tensor([4]), 0.0),
    }[kind]  # fmt: skip
    log_probs = logits.log_softmax(1)
    codec = tails.fit(log_probs, K)
    said = codec.decode(codec.encode(log_probs, torch.empty(0)))
    assert said.isfinite().all() and torch.allclose(said.exp().sum(1), torch.ones(30), atol=1e-5)
    assert forward_kl(said, log_probs).max() < 0.02
    assert forward_kl(log_probs.clamp(min=-300), said).isfinite().all()


def errors(fitted, log_probs) -> dict[str, float]:
    """Mean KL(teacher || answer) in nats of the record and of what top-32 in bfloat16 leaves."""
    codec = tails.fit(fitted, K)
    assert codec.record_bytes <= 114
    listed, ids = log_probs.topk(32)
    listed, vocabulary = listed.bfloat16().float(), log_probs.shape[1]
    # one bucket pulls the tail as a whole: a student keeps its own shape there, here that of the token counts
    answers = {
        "record": codec.decode(codec.encode(log_probs, torch.empty(0))),
        "even": spread(ids, listed, vocabulary),
        "bucket": spread(ids, listed, vocabulary, fitted.exp().mean(0)),
    }
    return {name: forward_kl(said, log_probs).mean().item() for name, said in answers.items()}


@pytest.mark.parametrize(("vocabulary", "sharpness"), [(2048, 1.0), (2048, 2.5), (50257, 2.5)])
def test_the_record_loses_less_than_top_32_on_zipf_logits(vocabulary, sharpness):
    some, others = zipf(160, vocabulary).mul(sharpness).log_softmax(1).split(100)
    lost = errors(some, others)
    assert lost["record"] < 0.9 * min(lost["even"], lost["bucket"]), lost


def test_the_record_loses_less_than_top_32_on_a_trained_model(learned):
    lost = errors(*learned)
    assert lost["record"] < 0.5 * min(lost["even"], lost["bucket"]), lost


def test_shapes_of_tails_are_told_apart(learned):
    """A few shapes of the tail beat the mean distribution by far."""
    some, others = learned
    codec = tails.fit(some, K)
    one = TopK(K, 2048, codec.levels, some.exp().mean(0, keepdim=True).log())
    lost = [
        forward_kl(c.decode(c.encode(others, torch.empty(0))), others).mean().item() for c in (codec, one)
    ]
    assert len(codec.log_shapes) >= 16 and lost[0] < 0.6 * lost[1], lost


def test_levels_follow_the_mass():
    """Lloyd's levels lose less than even ones for a peaked teacher, where few of them span many nats."""
    log_probs = zipf(100, 2000).mul(3).log_softmax(1)
    fitted = tails.fit(log_probs, K)
    listed, _ = log_probs.topk(K)
    lost = []
    for levels in (tails.fit_levels(listed, 16), torch.linspace(0, 1, 16)):
        codec = TopK(K, 2000, levels, fitted.log_shapes)
        lost.append(
            forward_kl(codec.decode(codec.encode(log_probs, torch.empty(0))), log_probs).mean().item()
        )
    assert lost[0] < 0.7 * lost[1], lost


def test_exact_records_are_exact():
    log_probs = zipf(20, 90)
    log_probs[:, 80:] = -torch.inf
    log_probs = log_probs.log_softmax(1)
    full, half = (Exact(90, dtype) for dtype in (torch.float32, torch.float16))
    assert torch.equal(full.decode(full.encode(log_probs, torch.empty(0))), log_probs)
    assert torch.allclose(half.decode(half.encode(log_probs, torch.empty(0))), log_probs, rtol=2**-11)
    assert (full.record_bytes, half.record_bytes) == (360, 180)


def test_draws_are_unbiased_and_repeatable():
    """Shares of draws over many seeds within 4.5 standard errors, token by token; so is the gradient."""
    vocabulary, draws, seeds = 30, 20, 600
    log_probs = zipf(2, vocabulary)
    student = zipf(2, vocabulary, seed=9).requires_grad_()
    total = torch.zeros(2, vocabulary)
    for seed in range(seeds):
        codec = Sampled(draws, vocabulary, seed)
        total += codec.decode(codec.encode(log_probs, codec.noise(b"row", 2))).exp()
    p = log_probs.exp()
    error = (p * (1 - p) / (draws * seeds)).sqrt()
    assert ((total / seeds - p).abs() <= 4.5 * error).all()
    shares = (total / seeds).log()
    (gradient,) = torch.autograd.grad(forward_kl(student, shares).sum(), student)
    (live,) = torch.autograd.grad(forward_kl(student, log_probs).sum(), student)
    assert ((gradient - live).abs() <= 4.5 * error + 1e-6).all()

    def record(key: bytes, seed: int):
        codec = Sampled(draws, vocabulary, seed)
        return codec.encode(log_probs, codec.noise(key, 2))

    assert torch.equal(record(b"row", 3), record(b"row", 3))
    assert not torch.equal(record(b"row", 3), record(b"row", 4))
    assert not torch.equal(record(b"row", 3), record(b"other", 3))


def test_drawn_tokens_cost_less_than_listed_ones():
    assert Sampled(50, 151936, 0).record_bytes == 85
    said = Sampled(4, 9, 0).decode(pack(SortedIds(4, 9).encode(torch.tensor([[2, 2, 2, 8]]))))
    assert said.exp().tolist()[0] == pytest.approx([0, 0, 0.75, 0, 0, 0, 0, 0, 0.25])


@pytest.mark.parametrize("prior", [None, "given"])
def test_spread_keeps_what_is_listed_and_shares_the_rest(prior):
    log_probs = zipf(6, 40)
    listed, ids = log_probs.topk(7)
    prior_V = zipf(1, 40, seed=5)[0].exp() if prior else None
    said = spread(ids, listed, 40, prior_V)
    assert said.shape == (6, 40) and said.dtype == torch.float32
    assert torch.allclose(said.exp().sum(1), torch.ones(6), atol=1e-6)
    assert torch.allclose(said.gather(1, ids), listed)
    shares = torch.full((40,), 1 / 40) if prior_V is None else prior_V
    for row, own in zip(said, ids, strict=True):
        others = torch.ones(40, dtype=torch.bool).index_fill_(0, own, False)
        want = shares[others] / shares[others].sum() * (1 - row[own].exp().sum())
        assert torch.allclose(row[others].exp(), want, rtol=1e-4)


def test_spread_of_missing_too_many_and_all():
    log_probs = zipf(3, 20)
    listed, ids = log_probs.topk(5)
    listed[0, 2:], ids[0, 2:] = -torch.inf, ids[0, 0]  # a missing entry may name a listed token
    listed[1] = -torch.inf
    listed[2] += 1.0 - listed[2].logsumexp(0)  # sums to e
    said = spread(ids, listed, 20)
    assert torch.allclose(said.exp().sum(1), torch.ones(3), atol=1e-5)
    assert torch.allclose(said[0, ids[0, :2]], listed[0, :2])
    assert torch.allclose(said[1].exp(), torch.full((20,), 0.05))
    assert torch.allclose(said[2, ids[2]], listed[2] - 1.0, atol=1e-5) and said.isfinite().all()
    everything = spread(torch.arange(20).expand(3, -1), log_probs, 20, torch.full((20,), 0.05))
    assert torch.allclose(everything, log_probs)
