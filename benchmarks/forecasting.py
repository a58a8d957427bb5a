"""Time-LLM, its students and its intervals, each claim measured: ETTh1 96 -> 96, all 2,785 test windows, three seeds.

    python benchmarks/forecasting.py [--data FILE] [--split ett-hour] [--only PART ...] [--seeds 0 1 2] [--write]
    python benchmarks/forecasting.py --table [--write]

FILE is ETTh1.csv or another table of numbers over time; bars that are about ETTh1 are only held against it. Results
go to results.json in the out folder, part by part, and what is there is not run again. About 40 minutes on a free core.
--write puts the table into docs/forecasting.md. forecasting_parts.py has the parts, forecasting_runs.py the runs.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import forecasting_table
import ledger
import torch
import transformers
from forecasting_parts import PARTS
from forecasting_runs import ROOT, Bench


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data" / "ett" / "ETTh1.csv", help="the series"
    )
    made.add_argument("--split", default="ett-hour", help="ett-hour, ett-minute or shares such as 70-10-20")
    made.add_argument("--season", type=int, help="steps of a season, where the clock does not tell")
    made.add_argument("--out", type=Path, default=ROOT / "outputs" / "forecasting")
    made.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--table", action="store_true", help="only print the table of what is there")
    made.add_argument("--write", action="store_true", help="put the table into docs/forecasting.md")
    return made


def main() -> None:
    args = parser().parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # CPU seconds are those of one core
    if not args.table and not args.data.exists():
        sys.exit(
            f"{args.data} is not there: get ETTh1.csv from https://github.com/zhouhaoyi/ETDataset, or give --data FILE"
        )
    bench = Bench(args.data, args.split, args.season, args.out, tuple(args.seeds))
    for name in () if args.table else args.only:
        if name in bench.results():
            continue
        print(f"{name} ...", flush=True)
        bench.keep(name, PARTS[name](bench))
        print(json.dumps(bench.results()[name]), flush=True)
    text = forecasting_table.table(bench)
    print(text)
    if args.write:
        ledger.put(ROOT / "docs" / "forecasting.md", forecasting_table.MARK, text)


if __name__ == "__main__":
    main()
