"""Does a transformer teach a state-space language model anything? Two Mamba-2 students, four arms, three seeds.

    python benchmarks/transformer_to_ssm.py [--students swapped small] [--seeds 0 1 2] [--steps 45] [--write]
    python benchmarks/transformer_to_ssm.py --table [--write]

The teacher and the text are those of the quickstart. swapped: the teacher with Mamba-2 in the place of attention;
small: a new Mamba2ForCausalLM of two blocks. Both also learn alone, for as many steps and for as much CPU time as
steps with KL take. Results go to results.json in the out folder, run by run, and what is there is not run
again. About 15 CPU minutes on one thread. --write puts the table into docs/state_space_lm.md.
"""

import argparse
import sys
import time
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ledger
import torch
import transformers
from transformers import Mamba2Config

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from llm_finetuner import assets  # noqa: E402
from llm_finetuner.assembly import Parts, load_rows  # noqa: E402
from llm_finetuner.chain import stages_of  # noqa: E402
from llm_finetuner.data import stdlib  # noqa: E402
from llm_finetuner.models.loading import load_tokenizer  # noqa: E402
from llm_finetuner.recipe import Recipe  # noqa: E402
from llm_finetuner.recipe_file import from_dict  # noqa: E402
from llm_finetuner.tasks.causal_lm import CausalLM  # noqa: E402
from llm_finetuner.trainer import fit  # noqa: E402

MARK = "<!-- figures: python benchmarks/transformer_to_ssm.py --table -->"
STUDENTS = {  # what they are called in the table, their rate, and which of their blocks learn from which
    "swapped": ("the teacher with Mamba-2 for attention", 2e-3, "uniform"),
    "small": ("a new Mamba-2, 2 blocks, width 112", 8e-3, [[0, 1], [1, 3]]),
}
ARMS = {"alone": "alone", "kl": "KL", "hidden": "hidden states, then KL", "compute": "alone, equal compute"}
KL = {"method": "vanilla_distillation", "options": {"temperature": 1.0, "alpha": 0.1}}
ALONE = {**KL, "options": {"temperature": 1.0, "alpha": 1.0}}  # then nobody asks the teacher
HIDDEN_SHARE = 1 / 3  # of the steps
TURNS, STEPS_A_TURN = 4, 4  # of what a step costs
DATA = {"eval_split": "test", "eval_samples": 100, "max_length": 128}
TRAIN = {
    "batch_size": 8, "gradient_accumulation_steps": 1, "warmup": 0.25, "weight_decay": 0.1, "eval_every": 0,
    "save_every": 0, "keep_best": False, "precision": "fp32",
}  # fmt: skip


def stages(arm: str, steps: int, layers: Any) -> list[dict[str, Any]]:
    """What one arm trains, one stage after the other."""
    if arm != "hidden":
        return [{**(KL if arm == "kl" else ALONE), "train.steps": steps}]
    first = round(HIDDEN_SHARE * steps)
    states = {"objectives": {"hidden_mse": {"weight": 1.0, "layers": layers}}}
    return [
        {"method": "distillation", "options": states, "train.steps": first},
        {"student": "previous", **KL, "train.steps": steps - first},
    ]


class Bench:
    """The text and the teacher, read once."""

    def __init__(self, out: Path):
        self.out, self.teacher = out, str(assets.path("quickstart/teacher"))
        self.tokenizer = load_tokenizer(self.teacher)
        data = from_dict({"data": {**DATA, "source": str(stdlib.write(out / "data"))}}).data
        rows = load_rows(data, CausalLM(), None, self.tokenizer, 0, str(out), print)
        self.parts = {
            "tokenizer": self.tokenizer, "teacher_tokenizer": self.tokenizer, "train": rows[0], "held_out": rows[1]
        }  # fmt: skip

    def train(self, student: str, arm: str, seed: int, steps: int) -> dict[str, Any]:
        """One arm, stage by stage: its perplexity and steps."""
        for stage in self.stages(student, arm, seed, steps):
            said = fit(stage, Parts(**self.parts))
        return {"perplexity": said.metrics["eval_perplexity"], "steps": steps, "on": ledger.circumstances()}

    def stages(self, student: str, arm: str, seed: int, steps: int) -> list[Recipe]:
        _, rate, layers = STUDENTS[student]
        settings = {
            "student": self.named(student), "teacher": {"name": self.teacher}, **KL,
            "train": {**TRAIN, "learning_rate": rate, "seed": seed}, "stages": stages(arm, steps, layers),
            "output": str(self.out / f"{student}_{arm}_{seed}"),
        }  # fmt: skip
        return stages_of(from_dict(settings))

    def cost(self, student: str) -> dict[str, Any]:
        """CPU time of a step with KL over that of one alone, in turn, each the least of several."""
        took: dict[str, list[float]] = {"alone": [], "kl": []}
        for _ in range(TURNS):
            for arm, seconds in took.items():
                (stage,) = self.stages(student, arm, 0, STEPS_A_TURN)
                marks: list[float] = []
                stage = replace(stage, output=str(self.out / "cost"))
                fit(
                    stage,
                    Parts(**{**self.parts, "held_out": None}),
                    on_event=lambda k, _, to=marks: clock(k, to),
                )
                seconds += [after - before for before, after in pairwise(marks)]
        return {"kl over alone": min(took["kl"]) / min(took["alone"]), "on": ledger.circumstances()}

    def named(self, student: str) -> dict[str, Any]:
        """The student as a recipe names it; the folder of a new one has its shape and the teacher's tokenizer."""
        if student == "swapped":
            return {"name": "teacher/1", "mixer": "mamba2"}
        folder = self.out / "mamba2"
        Mamba2Config(
            vocab_size=len(self.tokenizer), hidden_size=112, num_hidden_layers=2, num_heads=7, head_dim=32, n_groups=1,
            state_size=32, chunk_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1,
        ).save_pretrained(folder)  # fmt: skip
        self.tokenizer.save_pretrained(folder)
        return {"name": str(folder), "from_scratch": True}


def clock(kind: str, marks: list[float]) -> None:
    """Note the CPU time at the end of a training step."""
    if kind == "step":
        marks.append(time.process_time())


def run(args: argparse.Namespace) -> None:
    """Every run that is not there yet; those of equal compute last, for the others say how long they are."""
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.out)
    for student in args.students:
        if f"{student}/cost" not in ledger.results(args.out):
            ledger.keep(args.out, f"{student}/cost", bench.cost(student))
        for arm in ARMS:
            for seed in args.seeds:
                found, name = ledger.results(args.out), f"{student}/{arm}/{seed}"
                if name in found:
                    continue
                steps = args.steps
                if arm == "compute":
                    steps = round(steps * ledger.results(args.out)[f"{student}/cost"]["kl over alone"])
                ledger.keep(args.out, name, bench.train(student, arm, seed, steps))
                print(name, ledger.results(args.out)[name], flush=True)


def table(found: dict[str, Any]) -> str:
    """Perplexities by student and seed, and whether the taught ones are better at equal steps."""
    lines = ["| student | seed | " + " | ".join(ARMS.values()) + " | better, equal steps | equal compute |"]
    lines.append("|---" * (len(ARMS) + 4) + "|")
    for student, (said, *_) in STUDENTS.items():
        for seed in sorted(
            {name.split("/")[2] for name in found if name.startswith(f"{student}/") and name[-1].isdigit()}
        ):
            cells = {arm: found.get(f"{student}/{arm}/{seed}") for arm in ARMS}
            numbers = [told(cells[arm]) for arm in ARMS]
            signs = [better(cells, than) for than in ("alone", "compute")]
            lines.append(f"| {said} | {seed} | " + " | ".join(numbers + signs) + " |")
    *_, last = found.values()
    about = f"Perplexity on 100 held-out rows (steps of 8 x 128 tokens); {last['on']}."
    return "\n".join([*lines, "", about])


def told(cell: dict[str, Any] | None) -> str:
    return "-" if cell is None else f"{cell['perplexity']:.1f} ({cell['steps']})"


def better(cells: dict[str, dict[str, Any] | None], than: str) -> str:
    """Whether both of the taught ones are better than one that learned alone."""
    needed = [cells[arm] for arm in ("kl", "hidden", than)]
    if None in needed:
        return "-"
    *taught, alone = (cell["perplexity"] for cell in needed)
    return "yes" if max(taught) < alone else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "transformer_to_ssm")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--write", action="store_true", help="put the table into docs/state_space_lm.md")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # CPU seconds are those of one core
    if not args.table:
        run(args)
    text = table(ledger.results(args.out))
    print(text)
    if args.write:
        ledger.put(ROOT / "docs" / "state_space_lm.md", MARK, text)


if __name__ == "__main__":
    main()
