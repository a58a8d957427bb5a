"""Learn from the data alone."""

from llm_finetuner.recipe_sections import check_range
from llm_finetuner.scheme import Scheme, Term


def fine_tuning(*, label_smoothing: float = 0.0) -> Scheme:
    """Cross-entropy on the counted tokens."""
    check_range("label_smoothing", label_smoothing, 0, 0.99)
    return Scheme((Term("cross_entropy", 1.0, {"label_smoothing": label_smoothing}),), teacher="none")
