"""What a run imports, imported in a thread while the questions are answered, so that Start begins at once.

Keys must be answered meanwhile, so three things keep the interpreter's lock free: torch's C++ library, which holds it
longest, is loaded before torch and without it; the garbage collector, which looks through ever more and holds it for up
to half a second, pauses; and whoever waits for it gets it ten times as soon. benchmarks/startup.py measures the keys.
"""

import importlib.util
import os
import sys
import threading

from llm_finetuner.errors import TrainingError

EVERY_RUN = (
    "torch", "transformers", "datasets", "transformers.modeling_utils", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "llm_finetuner.trainer", "llm_finetuner.comparison",
)  # fmt: skip
# By tuning; peft brings bitsandbytes.
ADAPTERS = {"lora": ("peft",), "adalora": ("peft",), "qlora": ("peft",)}
SWITCH = 0.0005  # seconds after which a thread that waits for the lock gets it
OURS = "llm_finetuner"

_ready = threading.Event()
_failures: list[tuple[str, Exception]] = []
_thread: threading.Thread | None = None


def begin(more: tuple[str, ...] = ()) -> None:
    """Start the thread, once: what every run needs, then `more`."""
    global _thread
    if _thread is None:
        _thread = threading.Thread(target=_import_all, args=(more,), daemon=True)
        _thread.start()


def under_way() -> bool:
    """Whether the thread is still at it."""
    return _thread is not None and _thread.is_alive()


def wait() -> None:
    """Until all that every run needs is there. Raises TrainingError where it cannot be imported.

    Where no thread was begun, it returns at once: the import statements of the run itself will do it.
    """
    if _thread is not None:
        _ready.wait()
        if _failures:  # torch cannot be imported again after one: the second error would say something else
            name, error = _failures[0]
            raise told(name, error) from error


def told(name: str, error: Exception) -> Exception:
    """An error of importing `name`, as two lines where a library of others is missing or broken."""
    missing = error.name if isinstance(error, ImportError) else None
    if not isinstance(error, ImportError | OSError) or (missing or name).startswith(OURS):
        return error
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return TrainingError(
        f"{missing or name} cannot be imported: {said}",
        "install what requirements.txt pins: pip install -r requirements.txt",
    )


def leave(code: int | str | None) -> None:
    """End the process at once if the thread is under way: torch cannot be left half-way in the ordinary manner.

    code: as sys.exit takes it; None is success, a text is told and is a failure.
    """
    if under_way():
        if isinstance(code, str):
            print(code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def _import_all(more: tuple[str, ...]) -> None:
    import gc
    import logging
    import warnings

    before = sys.getswitchinterval(), warnings.showwarning
    gc.disable()
    logging.disable(logging.WARNING)  # what libraries say of themselves would be drawn over the question
    warnings.showwarning = lambda *_, **__: None
    sys.setswitchinterval(SWITCH)
    name = ""
    try:
        _load_torch_libraries()
        for name in EVERY_RUN:
            importlib.import_module(name)
        _ready.set()
        for name in more:
            importlib.import_module(name)
    # Exception: importing others' libraries may raise anything, and a thread's traceback would be drawn over the
    # question; nothing is swallowed: wait() raises it, and of `more` the run itself that needs it
    except Exception as error:
        if not _ready.is_set():
            _failures.append((name, error))
    finally:
        sys.setswitchinterval(before[0])
        warnings.showwarning = before[1]
        logging.disable(logging.NOTSET)
        gc.freeze()  # modules stay, so that nobody need look through them again
        gc.enable()
        _ready.set()


def _load_torch_libraries() -> None:
    """Load libtorch by the C library's own dlopen, which ctypes calls without the lock; `import torch` then finds it.

    No error is looked at: importing torch finds the same one, and words it.
    """
    found = importlib.util.find_spec("torch")
    if sys.platform != "linux" or found is None:
        return
    import ctypes

    load = ctypes.CDLL(None).dlopen
    load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
    for folder in found.submodule_search_locations:
        load(os.fsencode(os.path.join(folder, "lib", "libtorch.so")), os.RTLD_NOW)
