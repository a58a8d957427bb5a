"""What a run leaves behind and how it is interrupted: log.jsonl, training.json, signals."""

import json
import signal
import threading
from pathlib import Path


class Log:
    """log.jsonl: one record an optimizer step, flushed as it is written."""

    def __init__(self, folder: Path, resumed_from: int, write: bool):
        """Keep the records up to `resumed_from` and forget what came after, as a resumed run replays it."""
        self.path, self.write = folder / "log.jsonl", write
        self.records = [r for r in read_log(folder) if r["step"] <= resumed_from] if resumed_from else []
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(r) + "\n" for r in self.records), encoding="utf-8")

    def add(self, record: dict) -> None:
        self.records.append(record)
        if self.write:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def read_log(folder: Path) -> list[dict]:
    """The records of a run; a last line cut off by a kill is left out."""
    records = []
    path = Path(folder) / "log.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


class Signals:
    """Turns Ctrl-C and SIGTERM into a request to stop after this step; a second one stops at once."""

    def __init__(self):
        self.asked: int | None = None
        self._before: dict = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, _frame) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number

    def leave(self) -> None:
        """Raise what the signal asked for."""
        raise SystemExit(143) if self.asked == signal.SIGTERM else KeyboardInterrupt
