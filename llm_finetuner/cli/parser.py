"""The sub-commands, their help and examples. Apart from app.py, because the menu needs none of it."""

import argparse
from collections.abc import Callable, Sequence

from llm_finetuner import __version__
from llm_finetuner.cli import flags
from llm_finetuner.cli.exits import FAILED, INTERRUPTED, OK, TERMINATED, WRONG_USAGE, program
from llm_finetuner.errors import RecipeError

EXIT_CODES = f"""exit codes:
  {OK}    all went well
  {FAILED}    the run failed: data, model, memory, disk, checkpoint
  {WRONG_USAGE}    wrong usage or wrong settings; nothing was started (also: the menu without a terminal)
  {INTERRUPTED}  interrupted by Ctrl-C; a running training saves a checkpoint first
  {TERMINATED}  ended by SIGTERM; likewise
"""
EXAMPLES = {
    "": """  {0}                       the menu, step by step
  {0} distill --student gpt2 --teacher gpt2-medium --data train.jsonl
  {0} finetune --method lora --student gpt2 --data train.jsonl --epochs 1
  {0} quickstart            a small distillation that needs no network
""",
    "finetune": """  {0} finetune --method lora --student gpt2 --data train.jsonl
  {0} finetune --method 6 --student ./model --data 'texts/*.txt' --steps 500 --learning-rate 5e-5
  {0} finetune --student gpt2 --data wikitext --data-config wikitext-2-raw-v1 --dry-run
  {0} finetune --task forecasting --student patch --data ETTh1.csv --lookback 96 --horizon 96 --split ett-hour
""",
    "distill": """  {0} distill --student gpt2 --teacher gpt2-medium --data train.jsonl --temperature 2 --alpha 0.5
  {0} distill --method feature_distillation --student ./small --teacher ./big --data rows.csv --layers 0,3,6
  {0} distill --student gpt2 --teacher gpt2-large --teacher-4bit --adapter lora --data train.jsonl --baseline
  {0} distill --student teacher/2 --teacher gpt2-medium --data train.jsonl --temperature 4..1
  {0} distill --method 8 --student s --teacher t --data d.jsonl --objectives cross_entropy=0.3 jsd=0.7:beta=0.1
  {0} distill --student gpt2 --teacher gpt2-medium gpt2-large --weights 0.3 0.7 --data train.jsonl
  {0} distill --student gpt2 --cache outputs/cache --data train.jsonl
  {0} distill --student gpt2 --teacher big --url http://localhost:8000/v1 --data train.jsonl
  {0} distill --method self_distillation --student gpt2 --data train.jsonl --exits 5
  {0} distill --task classification --student ./small --teacher ./big --data reviews.csv
  {0} distill --task sequence_regression --student s4d --shape preset=tiny --teacher outputs/big --data columns
  {0} distill --config recipes/sarssm_compressed.yaml student.model_dim=40 alpha=0.25 train.epochs=300
  {0} distill --task forecasting --student patch --shape hidden_size=16 num_layers=1 --teacher outputs/big --data a.csv
""",
    "run": """  {0} run recipe.yaml
  {0} run recipe.yaml train.steps=50 temperature=4 output=outputs/hot
  {0} run chain.yaml --dry-run
""",
    "compare": """  {0} compare outputs/gpt2-vanilla_distillation --baseline
  {0} compare outputs/patch-forecast_distillation --seeds 3
""",
    "benchmark": """  {0} benchmark outputs/run --prompts prompts.txt
  {0} benchmark gpt2 --prompts prompts.txt --references answers.txt --json
""",
    "evaluate": """  {0} evaluate --model linear --data ETTh1.csv --lookback 96 --horizon 96 --split ett-hour
  {0} evaluate --model outputs/forecaster --level 80 90 --json
  {0} evaluate --task sequence_regression --model outputs/s4d --data outputs/columns
""",
    "forecast": """  {0} forecast --model outputs/forecaster --data ETTh1.csv --level 80 90 --output next.csv
  {0} forecast --model linear --data sales.csv --lookback 56 --horizon 14
""",
    "export": """  {0} export outputs/run --to onnx
  {0} export outputs/run --to merged --output outputs/whole
  {0} export distilbert-base-uncased-finetuned-sst-2-english --to onnx
""",
    "resume": """  {0} resume outputs/run
""",
    "cache": """  {0} cache --student gpt2 --teacher gpt2-medium --data train.jsonl --to outputs/cache
  {0} cache --student gpt2 --teacher gpt2-large --teacher-8bit --data train.jsonl --to outputs/cache --k 100
  {0} distill --student gpt2 --cache outputs/cache --data train.jsonl
""",
    "generate": """  {0} generate --teacher gpt2-medium --data prompts.jsonl --to written.jsonl --max-new-tokens 64
  {0} finetune --method full --student gpt2 --data written.jsonl
""",
    "sweep": """  {0} sweep recipe.yaml temperature=1,2,4 alpha=0.1,0.5
  {0} sweep recipe.yaml train.learning_rate=1e-5:1e-3:log --search optuna --trials 20 --minutes 60
""",
    "quickstart": """  {0} quickstart
  {0} quickstart --steps 100 --seed 1
""",
    "preview": """  {0} preview --data train.jsonl --student gpt2
  {0} preview --task classification --data reviews.csv --student ./small --teacher ./big
  {0} preview --task forecasting --data ETTh1.csv --lookback 96 --horizon 96 --split ett-hour
""",
    "simulate": """  {0} simulate --out outputs/columns
  {0} simulate --out outputs/few --columns 1056 --labelled 32 --seed 1
  {0} simulate --out outputs/sentinel --radar sentinel-1 --length 2048
""",
    "doctor": """  {0} doctor --online
""",
    "list": """  {0} list
  {0} list runs --json
""",
}


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are RecipeErrors, and which takes key=value between and after flags."""

    fill: Callable[[argparse.ArgumentParser], None] | None = (
        None  # adds the flags of a sub-command, once it is used
    )

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        found, rest = self.parse_known_args(args, namespace)
        if "config" in found:  # distill --config RECIPE key=value ...
            found.assignments = [word for word in rest if "=" in word and not word.startswith("-")]
            rest = [word for word in rest if word not in found.assignments]
        if found.command in ("run", "sweep"):
            later = [word for word in rest if not word.startswith("-")]
            words = [found.recipe, *vars(found).get("assignments", []), *later]
            rest = [word for word in rest if word.startswith("-")]
            found.recipe = next((word for word in words if "=" not in word), words[0])
            words.remove(found.recipe)
            found.assignments = words
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found

    def error(self, message: str) -> None:
        raise RecipeError(message, f"{self.prog} --help shows what it takes")


def parser() -> Parser:
    """All sub-commands with their flags."""
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--json", action="store_true", help="one JSON value on stdout, all else on stderr")
    shared.add_argument("--quiet", action="store_true", help="errors, warnings and results only")
    top = Parser(
        prog=program(), parents=[shared], formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Fine-tune a language model, or distil a big one into a small one. "
        "Without a command: the menu.", epilog=f"examples:\n{EXAMPLES[''].format(program())}\n{EXIT_CODES}",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"llm-finetuner {__version__}")
    commands = top.add_subparsers(dest="command", metavar="command", parser_class=Parser)
    for name, (add_flags, words) in flags.COMMANDS.items():
        epilog = f"examples:\n{EXAMPLES[name].format(program())}\n{EXIT_CODES}"
        formatter = argparse.RawDescriptionHelpFormatter
        child = commands.add_parser(
            name, parents=[shared], help=words, description=f"{words[0].upper()}{words[1:]}.", epilog=epilog,
            formatter_class=formatter, argument_default=argparse.SUPPRESS, allow_abbrev=False,
        )  # fmt: skip
        child.fill = add_flags
    return top
