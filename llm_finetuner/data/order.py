"""Which examples an optimizer step sees: a pure function of its number, so a resumed run needs nothing but the step."""

import numpy as np

from llm_finetuner.data.layout import share_rows

SHELF = 8  # steps whose examples are sorted by length together: less padding
JITTER = 0.1  # relative noise on the lengths sorted by: a small data set must not meet in the same batches each epoch


class Order:
    """Every example once an epoch, a last smaller step included, the same whatever the number of processes."""

    def __init__(
        self,
        lengths: list[int],
        batch_size: int,
        step_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        *,
        max_tokens: int | None = None,
        packed: bool = False,
    ):
        """lengths: tokens of each example. step_size: examples an optimizer step, over all processes.

        max_tokens: of a batch, padding included; it then decides how many examples a batch has. packed: batches are
        laid out in shared rows.
        """
        self.lengths = np.asarray(lengths)
        self.batch_size, self.step_size, self.seed = batch_size, step_size, seed
        self.rank, self.world = rank, world
        self.max_tokens, self.packed = max_tokens, packed
        self.steps_per_epoch = -(-len(lengths) // step_size)
        self._epoch, self._windows = -1, []

    def step(self, number: int) -> list[tuple[list[int], bool]]:
        """The batches of optimizer step `number` (from 1) for this process: (example numbers, do they count?).

        Every process gets the same number of batches; one that has none left gets a stand-in that does not count.
        """
        epoch, at = divmod(number - 1, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._windows = epoch, self._shuffle(epoch)
        window = self._windows[at]
        shares = [self._cut(window[rank :: self.world]) for rank in range(self.world)]
        mine, needed = shares[self.rank], max(map(len, shares))
        return [(batch, True) for batch in mine] + [(window[:1], False)] * (needed - len(mine))

    def _cut(self, share: list[int]) -> list[list[int]]:
        """The batches of one process. An example that alone is above the budget is a batch of its own."""
        if self.max_tokens is None:
            return [share[i : i + self.batch_size] for i in range(0, len(share), self.batch_size)]
        left = sorted(share, key=lambda number: -self.lengths[number])
        batches = []
        while left:
            most = max(1, self.max_tokens // int(self.lengths[left[0]]))  # rows of the longest
            if self.packed:
                rows, over = share_rows(self.lengths[left].tolist(), most)
                batches.append([left[i] for row in rows for i in row])
                left = [left[i] for i in over]
            else:
                batches.append(left[:most])
                left = left[most:]
        return batches

    def _shuffle(self, epoch: int) -> list[list[int]]:
        """The epoch's steps in order: shuffled, then sorted by length within shelves, then the steps shuffled."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.lengths))
        about = self.lengths[order] * (1 + JITTER * random.random(len(order)))
        shelf = np.arange(len(order)) // (SHELF * self.step_size)
        order = order[np.lexsort((about, shelf))]
        windows = [order[i : i + self.step_size].tolist() for i in range(0, len(order), self.step_size)]
        full = len(order) // self.step_size
        return [windows[i] for i in random.permutation(full)] + windows[full:]
