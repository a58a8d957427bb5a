"""Which block of the student learns from which of the teacher. Blocks are numbered from 0."""

from collections.abc import Callable, Sequence
from typing import Any

from llm_finetuner.errors import RecipeError

Pairs = tuple[tuple[int, int], ...]  # (student block, teacher block)
POOLED, POOLED_NAME = -1, "pooled"  # in place of a block: the vector that a text's label is read off


def _relative(block: int, student: int, teacher: int) -> int:
    """The teacher block that ends at the same relative depth, TinyBERT's uniform map (arXiv 1909.10351)."""
    return max((block + 1) * teacher // student - 1, 0)  # a deeper student's first blocks have none so low


NAMED: dict[str, Callable[[int, int], list[tuple[int, int]]]] = {  # of the two depths
    "uniform": lambda s, t: [(i, _relative(i, s, t)) for i in range(s)],
    "skip": lambda s, t: [
        (i, _relative(i, s, t)) for i in range(max(s - 1, 1))
    ],  # PKD-Skip (arXiv 1908.09355)
    "last": lambda s, t: [(i, max(t - s + i, 0)) for i in range(s)],  # PKD-Last: the teacher's last blocks
    "first-last": lambda s, t: sorted({(0, 0), (s - 1, t - 1)}),
    "final": lambda s, t: [(s - 1, t - 1)],
}


def layer_pairs(layers: str | list | None, student_depth: int, teacher_depth: int) -> Pairs:
    """Pairs of blocks of a named map or a list. None: four evenly spaced student blocks, 12 -> 0, 3, 6, 9.

    A student block alone is paired with the teacher block i * teacher_depth // student_depth. "pooled" is no block but
    the vector that a text's label is read off. Raises RecipeError.
    """
    if not student_depth:
        raise RecipeError(
            "hidden states of blocks are compared, and the student has none",
            "leave the weights of feature and relation terms at 0, or take a student with blocks",
        )
    if layers == POOLED_NAME:
        return ((POOLED, POOLED),)
    if isinstance(layers, str):
        if layers not in NAMED:
            raise RecipeError(
                f"feature_layers names no map {layers!r}",
                f"maps: {', '.join(NAMED)}; or give block numbers from 0",
            )
        return tuple(NAMED[layers](student_depth, teacher_depth))
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
                    "give block numbers from 0, [student, teacher] pairs, a named map, or leave it out for four "
                    "even ones",
                )
        pairs.append((student, teacher))
    if not pairs:
        raise RecipeError(
            "feature_layers is empty", "name at least one block, or leave it out for four even ones"
        )
    return tuple(pairs)


def check_exits(blocks: list[int], depth: int) -> None:
    """Raise RecipeError where a student of `depth` blocks cannot stop early after these; []: the middle one."""
    if depth < 2:
        raise RecipeError("the student has one block and cannot stop early", "by: average")
    for block in blocks:
        if isinstance(block, bool) or not isinstance(block, int) or not 0 <= block < depth - 1:
            raise RecipeError(
                f"exits names block {block!r}: the student can stop early after blocks 0 to {depth - 2}",
                "give block numbers from 0, or leave it out for the middle one",
            )


def kept_blocks(layers: Any, name: str = "keep_layers") -> tuple[int, ...]:
    """The blocks whose hidden states a cache keeps, POOLED for "pooled", in order. Raises RecipeError."""
    given = () if layers is None else layers
    listed = isinstance(given, list | tuple)
    if not listed or not all(x == POOLED_NAME or (type(x) is int and x >= 0) for x in given):
        raise RecipeError(
            f"{name} must be a list of whole numbers from 0, or {POOLED_NAME}, got {layers!r}",
            f"such as {name}: [3, 7], of the teacher's blocks, or [{POOLED_NAME}]",
        )
    return tuple(sorted({POOLED if layer == POOLED_NAME else layer for layer in given}))


def spelled(blocks: Sequence[int]) -> str:
    """Blocks as they are written: "pooled, 3, 7"."""
    return ", ".join(POOLED_NAME if block == POOLED else str(block) for block in blocks)


def check_kept(
    blocks: Sequence[int], depth: int, pooled: bool, whose: str, name: str = "keep_layers"
) -> None:
    """Raise RecipeError for blocks that a teacher to be cached does not have. pooled: whether it has that vector."""
    if POOLED in blocks and not pooled:
        raise RecipeError(
            f"{name}: {POOLED_NAME} is what a classifier reads a text's label off: {whose} has none",
            "name blocks",
        )
    wrong = [block for block in blocks if block >= depth]
    if wrong:
        raise RecipeError(
            f"{name} names block {wrong[0]}: {whose} has blocks 0 to {depth - 1}",
            "give numbers of the teacher's blocks, from 0",
        )
