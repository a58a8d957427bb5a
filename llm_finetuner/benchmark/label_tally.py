"""An evaluation of texts with several labels each, summed up.

Shapes: n texts at once, C labels.
"""

import torch
from torch import Tensor

from llm_finetuner.benchmark.classes import MultiLabel
from llm_finetuner.benchmark.quality import Quality
from llm_finetuner.errors import DataError
from llm_finetuner.objectives.several_labels import binary_cross_entropy, binary_kl


class LabelTally:
    """As quality.Tally; a text is answered right where all its labels are, and models agree label by label.

    A label that is given as a probability counts as true from 0.5 on.
    """

    def __init__(self, examples: int, labels: int):
        self.nll = torch.zeros(examples, dtype=torch.float64)
        self.texts = torch.zeros(examples, dtype=torch.long)
        self.right = torch.zeros(examples, dtype=torch.long)
        self.counts = MultiLabel(labels)
        self.heard, self.agreed, self.kl = 0, 0.0, 0.0

    def add(self, logits_nC: Tensor, targets_nC: Tensor, examples_n: Tensor) -> None:
        right_n = self.counts.add(
            logits_nC, torch.where(targets_nC < 0, targets_nC, (targets_nC >= 0.5).to(targets_nC.dtype))
        )
        self.nll.index_add_(0, examples_n, binary_cross_entropy(logits_nC, targets_nC).double().cpu())
        self.texts.index_add_(0, examples_n, torch.ones_like(examples_n))
        self.right.index_add_(0, examples_n, right_n.long())

    def hear(self, own_nC: Tensor, teacher_nC: Tensor, known_n: Tensor | None) -> None:
        """What the teacher says of the same texts."""
        self.heard += len(own_nC)
        self.agreed += float(((own_nC > 0) == (teacher_nC > 0)).double().mean(-1).sum())
        self.kl += float(binary_kl(own_nC, teacher_nC).double().sum())

    def quality(self, with_teacher: bool) -> Quality:
        """Raises DataError where no text has labels."""
        if not int(self.texts.sum()):
            raise DataError("no text of these rows has labels", "give rows with labels to evaluate on")
        return Quality(
            nll=self.nll.numpy(),
            tokens=self.texts.numpy(),
            accuracy=self.counts.subset_accuracy,
            calibration_error=self.counts.calibration_error,
            agreement=self.agreed / max(1, self.heard) if with_teacher else None,
            kl_to_teacher=self.kl / max(1, self.heard) if with_teacher else None,
            right=self.right.numpy(),
            figures={"macro_f1": self.counts.macro_f1, "micro_f1": self.counts.micro_f1},
            per_label=self.counts.per_class(),
        )
