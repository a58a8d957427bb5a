"""Examples side by side in rows of one length, so that a forward pass works on little but tokens."""

from collections.abc import Sequence


def share_rows(lengths: Sequence[int], most: int | None = None) -> tuple[list[list[int]], list[int]]:
    """(which examples stand in each row, which did not fit into `most` rows): first fit, the longest first.

    A row is as long as the longest example. In longer ones attention, which is computed between strangers too and then
    masked, costs more than their fewer gaps save: figures in docs/batches.md.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    rows: list[list[int]] = []
    room: list[int] = []
    left: list[int] = []
    for number in order:
        row = next((row for row, free in enumerate(room) if free >= lengths[number]), None)
        if row is None and most is not None and len(rows) == most:
            left.append(number)
            continue
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(lengths[order[0]])
        rows[row].append(number)
        room[row] -= lengths[number]
    return rows, left
