"""The command simulate: radar columns with their focused truth, as files to train on. numpy is imported inside."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm_finetuner.errors import RecipeError

COUNTS = {"columns": 1024, "validation": 128, "test": 256}
RADARS = ("airborne", "sentinel-1")
OF_RADAR = {  # what of the geometry can be given
    "wavelength": "metres", "velocity": "metres a second", "slant_range": "metres of closest approach",
    "antenna_length": "metres along the flight", "pulse_rate": "pulses a second",
    "range_cell": "metres: slant-range resolution where migration is left uncorrected",
}  # fmt: skip
OF_SCENE = {
    "points": "mean number of point targets a column", "clutter_db": "power of the speckle",
    "noise_db": "power of the receiver's noise", "bursts": "chance of a burst of interference",
    "losses": "chance of lost pulses", "range_spread": "share by which closest ranges differ",
}  # fmt: skip


def add_flags(child: argparse.ArgumentParser) -> None:
    """Flags without defaults of their own: those of radars and scenes stand in data/."""
    child.add_argument(
        "--out", required=True, metavar="FOLDER", help="a new folder: train/, validation/, test/"
    )
    child.add_argument("--radar", choices=RADARS, help=f"the geometry (default: {RADARS[0]})")
    for name, count in COUNTS.items():
        child.add_argument(f"--{name}", type=int, metavar="N", help=f"of {_what(name)} (default: {count})")
    child.add_argument(
        "--labelled", type=int, metavar="N", help="only the first N to train on keep their truth"
    )
    child.add_argument("--seed", type=int, metavar="N", help="another seed, other columns (default: 0)")
    child.add_argument(
        "--length", type=int, metavar="N", help="pulses a column (default: 256, or what an aperture takes)"
    )
    for name, told in {**OF_RADAR, **OF_SCENE}.items():
        child.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=told)
    child.add_argument("--overwrite", action="store_true", help="write over what the folder holds")


def simulate(given: dict[str, Any], screen) -> Any:
    """simulate --out FOLDER: draw the columns, and say what their geometry is."""
    folder = Path(given["out"]).expanduser()
    if folder.exists() and not (folder.is_dir() and (given.get("overwrite") or not any(folder.iterdir()))):
        raise RecipeError(f"{given['out']} is there already", "choose another --out, or --overwrite")
    from dataclasses import replace

    from llm_finetuner.data import sar, sar_files, sar_scenes

    radar = replace(sar.RADARS[given.get("radar", RADARS[0])], **_those(given, OF_RADAR))
    scene = sar_scenes.Scene(**_those(given, OF_SCENE))
    usual = max(scene.length, _enough(2 * sar_scenes.margin(radar, scene)))
    scene = replace(scene, length=given.get("length", usual))
    counts = {
        part: given.get(name, COUNTS[name])
        for part, name in zip(("train", "validation", "test"), COUNTS, strict=True)
    }
    said = sar_files.write(folder, radar, scene, counts, given.get("seed", 0), given.get("labelled"))
    first, behind = said["rows"]
    kept = "all" if said["labelled"] is None else f"{said['labelled']:,} of {counts['train']:,} to train on"
    screen.facts(
        [
            ("columns", ", ".join(f"{count:,} {part}" for part, count in counts.items())),
            ("labelled", kept),
            ("length", f"{scene.length} pulses, of which {first} to {behind - 1} have a whole aperture"),
            ("aperture", f"{radar.aperture:.0f} pulses, time-bandwidth product {radar.time_bandwidth:.0f}"),
            ("chirp", f"{radar.chirp_rate:,.1f} Hz/s over {radar.doppler_bandwidth:,.1f} Hz"),
            ("migration", f"{radar.migration:.2f} m, {'corrected' if radar.range_cell is None else 'left in'}"),
            ("in", str(folder)),
        ]
    )  # fmt: skip
    return {"folder": str(folder), **said, "aperture": radar.aperture, "radar": asdict(radar)}


def _what(name: str) -> str:
    return "columns to train on" if name == "columns" else f"columns of the {name} part"


def _those(given: dict[str, Any], names: dict[str, str]) -> dict[str, float]:
    return {name: given[name] for name in names if name in given}


def _enough(edges: int) -> int:
    """Pulses that leave half of a column with a whole aperture, a power of two."""
    return 1 << (2 * edges - 1).bit_length()
