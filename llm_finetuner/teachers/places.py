"""What the disk tells of a teacher that fills a cache: its weights, and the folder of its answers. No torch here."""

from pathlib import Path

PATTERNS = ("*.safetensors", "*.bin")


def weight_files(name: str) -> dict[str, list[int]]:
    """{file: [bytes, time of its last change in ns]} of a model's folder; nothing for a model of the hub."""
    folder = Path(name).expanduser()
    if not name or not folder.is_dir():
        return {}
    found = sorted(file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file())
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in found}
