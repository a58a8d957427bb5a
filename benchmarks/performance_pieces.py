"""The pieces of work that performance.py measures, how each is done, and the bars that ours is held against."""

from performance_process import Variant
from performance_table import Bar, Bound, Piece, Same

GPT2, QWEN = 50_257, 151_936  # vocabularies
TOKENS = 512
FULL = {"count": 64, "tokens": 256}  # rows
CACHED = {"count": 16, "tokens": 256}  # few, for each process writes its own
HALF = {"temperature": 2.0, "alpha": 0.5}  # cross-entropy and KL, as the bare loops
KL = {"temperature": 1.0, "alpha": 0.0}  # what TRL's offline GKD learns by
BUDGET = 2048  # tokens of a forward pass on instruction data
FEATURE = {"alpha": 0.3, "output_weight": 0.0}


def loss_of(run: str, ours: bool = True, tokens: int = TOKENS, vocabulary: int = GPT2, **options) -> Variant:
    """One way to compute the loss; what is compared with the matrix products has the same settings as these."""
    options = {"tokens": tokens, "vocabulary": vocabulary, **options}
    return Variant(f"performance_loss:{run}", options, ours, trl=run == "tiles")


def loss() -> Piece:
    return Piece(
        f"The loss: {TOKENS} tokens x {GPT2:,}, widths 512 and 768, CE + KL at T = 2, float32, forward and backward",
        {
            "naive": loss_of("naive", ours=False),
            "TRL's tiles (KL alone)": loss_of("tiles", ours=False),
            "four matrix products": loss_of("products"),
            "ours, chunks of 512": loss_of("ours", chunk=512),
            "ours, chunks of 128": loss_of("ours", chunk=128),
            "ours, frozen head": loss_of("ours", chunk=512, trained=False),
        },
        "four matrix products",
        [
            Bar("at most 1.35 x the products", "ours, chunks of 512", "four matrix products", 1.35, at_most=True),
            Bar("at least 2 x faster than naive", "naive", "ours, chunks of 512", 2),
            Bar("at least 3 x faster than TRL's tiles", "TRL's tiles (KL alone)", "ours, chunks of 512", 3),
            Bar("at least 1.25 x faster with a frozen head", "ours, chunks of 512", "ours, frozen head", 1.25),
            Bar("peak at most 0.4 x naive, chunks of 512", "ours, chunks of 512", "naive", 0.4, "above", True),
            Bar("peak at most 0.2 x naive, chunks of 128", "ours, chunks of 128", "naive", 0.2, "above", True),
        ],
        notes="The gradient of the head, which every variant leaves, is not counted as memory.",
        memory="above",
    )  # fmt: skip


def memory() -> Piece:
    """Chunks as the learner chooses them, unless the name says more."""
    variants = {}
    for tokens in (512, 1024, 2048, 4096):
        variants[f"naive, {tokens} tokens"] = loss_of("naive", ours=False, tokens=tokens)
        variants[f"ours, {tokens} tokens"] = loss_of("ours", tokens=tokens)
    for chunk in (32, 128, 512):
        variants[f"ours, 4096 tokens, chunks of {chunk}"] = loss_of("ours", tokens=4096, chunk=chunk)
    for run in ("naive", "ours"):
        variants[f"{run}, 1024 tokens x {QWEN:,}"] = loss_of(run, run == "ours", 1024, QWEN)
    return Piece(
        f"Memory of the loss against tokens, chunk and vocabulary ({GPT2:,} where nothing else is said)",
        variants,
        "ours, 512 tokens",
        [
            Bar("flat: 4,096 tokens at most 1.25 x 512", "ours, 4096 tokens", "ours, 512 tokens", 1.25, "above", True),
            Bar(
                f"{QWEN:,}, 1,024 tokens: at most 0.15 x naive",
                f"ours, 1024 tokens x {QWEN:,}", f"naive, 1024 tokens x {QWEN:,}", 0.15, "above", True,
            ),
        ],
        looks_at="memory",
        memory="above",
    )  # fmt: skip


def step_of(run: str, ours: bool = True, size: int = 8, vocabulary: int = GPT2, **options) -> Variant:
    """A whole step of `size` full rows."""
    family = "gpt2" if vocabulary == GPT2 else "qwen"
    options = {"family": family, "vocabulary": vocabulary, "rows": FULL, "size": size, **options}
    return Variant(run, options, ours, trl="peers" in run)


def our_step(method: str = "vanilla_distillation", options: dict = HALF, **more) -> Variant:
    return step_of("performance_step:on_full_rows", method=method, options=options, **more)


def step() -> Piece:
    models = "performance_models"
    return Piece(
        f"A training step: 12 x 768 to 6 x 512 (GPT-2), vocabulary {GPT2:,}, 8 full rows of 256 tokens",
        {
            "TRL GKD, offline": step_of("performance_peers:gkd", ours=False),
            "TRL DistillationTrainer's loss": step_of("performance_peers:distillation", ours=False),
            "naive loop": step_of(f"{models}:naive_step", ours=False),
            "teacher forward + student CE step": step_of(f"{models}:two_steps", ours=False),
            "the same with our settings": step_of(f"{models}:two_steps"),
            "ours": our_step(),
        },
        "ours",
        [
            Bar("at least 1.7 x faster than TRL GKD", "TRL GKD, offline", "ours", 1.7),
            Bar("faster than the two bare steps", "teacher forward + student CE step", "ours", 1),
            Bar("peak at most 0.4 x TRL GKD", "ours", "TRL GKD, offline", 0.4, "peak", True),
        ],
        notes="Peaks are of the whole process. TRL's variants learn by KL alone; ours and the naive loop by CE too.",
    )


def qwen() -> Piece:
    return Piece(
        f"A training step: 12 x 768 to 6 x 512 (Qwen 2), vocabulary {QWEN:,}, 4 full rows of 256 tokens",
        {
            "TRL GKD, offline": step_of("performance_peers:gkd", ours=False, size=4, vocabulary=QWEN),
            "naive loop": step_of("performance_models:naive_step", ours=False, size=4, vocabulary=QWEN),
            "ours": our_step(size=4, vocabulary=QWEN),
        },
        "ours",
    )


def instructions() -> Piece:
    """16 rows an optimizer step, so that a repetition is the whole data and the losses are of the same tokens."""
    shape = {"family": "gpt2", "vocabulary": GPT2, "count": 16, "size": 8}
    run, trl = "performance_step:on_instructions", "performance_peers:gkd_on_instructions"
    plans = {
        "ours, 8 rows a batch": {},
        f"ours, max_tokens={BUDGET}": {"max_tokens": BUDGET},
        "ours, packed": {"max_tokens": BUDGET, "packing": True},
    }
    variants = {"TRL GKD, offline": Variant(trl, shape, trl=True)}
    for name, plan in plans.items():
        variants[name] = Variant(run, {**shape, "options": KL, "plan": plan}, ours=True)
    return Piece(
        "Instruction data: 16 rows a step, log-normal prompts (median 90) and answers (median 45), loss on answers",
        variants,
        "ours, packed",
        [
            Bar(
                "at least 2.5 x the answer tokens of TRL GKD", "ours, packed", "TRL GKD, offline", 2.5, "rate"
            ),
            Same("the same loss, within 1e-4 of it", "ours, packed", "TRL GKD, offline", 1e-4),
        ],
        notes="All learn by KL alone at T = 1.",
        rate=True,
    )


def feature() -> Piece:
    bare = "performance_models"
    return Piece(
        "A step of feature distillation: CE and hidden states of 4 layer pairs, models and rows as above",
        {
            "each model called twice": step_of(f"{bare}:called_twice", ours=False),
            "teacher trunk + student CE step": step_of(f"{bare}:two_steps", ours=False, teacher_head=False),
            "ours": our_step("feature_distillation", FEATURE),
        },
        "ours",
        [
            Bar("at most 1.1 x trunk + step", "ours", "teacher trunk + student CE step", 1.1, at_most=True),
            Bar("at least 1.8 x faster than two calls", "each model called twice", "ours", 1.8),
        ],
    )


def cached() -> Piece:
    return Piece(
        "A step of a later epoch, with the teacher's answers from a cache (k = 50), models and rows as above",
        {"live teacher": our_step(), "from the cache": our_step(rows=CACHED, k=50)},
        "live teacher",
        [Bar("at least 1.5 x faster than live", "live teacher", "from the cache", 1.5)],
    )


def overhead() -> Piece:
    runs = {"bare loop": "performance_overhead:bare", "ours": "performance_overhead:ours"}
    return Piece(
        "Ten steps of the quickstart's models: what the loop itself costs",
        {name: Variant(run, ours=True) for name, run in runs.items()},
        "bare loop",
        [Bar("at most 1.05 x the bare loop", "ours", "bare loop", 1.05, at_most=True)],
    )  # fmt: skip


def exactness() -> Piece:
    limits = {"float64": 1e-12, "float32": 1e-5}
    run = "performance_exact:relative_errors"
    return Piece(
        "Exactness: relative error of gradients, against the losses written out in float64",
        {dtype: Variant(run, {"dtype": dtype}, ours=True) for dtype in limits},
        "float64",
        [
            Bound(f"{dtype}: relative error at most {limit:g}", dtype, "worst", limit)
            for dtype, limit in limits.items()
        ],
        looks_at="facts",
    )


PIECES = {
    piece.__name__: piece
    for piece in (loss, memory, step, qwen, instructions, feature, cached, overhead, exactness)
}
