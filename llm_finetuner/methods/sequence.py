"""Learn from texts that the teacher writes: sequence-level distillation."""

from llm_finetuner.recipe_sections import check_range
from llm_finetuner.scheme import Scheme, Term, Writing


def sequence_distillation(
    *,
    max_new_tokens: int = 128,
    sampling_temperature: float = 0.0,
    samples: int = 1,
    keep_data: bool = False,
) -> Scheme:
    """Cross-entropy on completions that the teacher writes first, Kim and Rush 2016 (arXiv 1606.07947).

    sampling_temperature 0 takes the most probable token each time; above 0 draws, `samples` times a prompt. keep_data
    learns from the data's own rows too.
    """
    check_range("max_new_tokens", max_new_tokens, 1, None)
    check_range("sampling_temperature", sampling_temperature, 0, None)
    check_range("samples", samples, 1, None)
    writing = Writing(max_new_tokens, sampling_temperature, samples, keep_data)
    return Scheme((Term("cross_entropy"),), writing=writing)
