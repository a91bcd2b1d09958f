"""Prints the figures of `make bench` as tables, or puts them into the documentation.

make bench && python -m benchmarks.speed build/bench --keep
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.figures import keep, rows_table, write_pages

TAKEN_BY = {
    "hashing the file": ("prepare",),
    "hashing the pixels": ("prepare",),
    "fitting into the stored size": ("prepare",),
    "writing two shards": ("prepare",),
    "reducing to the bundle's size": ("score", "evaluate"),
    "fingerprint and skin's tone": ("evaluate",),
    "the network": ("score", "evaluate"),
}
"""The pipelines that take a step; all take what is not named."""
NETWORKS = {"atto": "ConvNeXt-Atto, 128 x 96 px", "tiny": "ConvNeXt-Tiny, 224 x 168 px"}


def _read(folder: Path, name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return values


def served_rows(folder: Path) -> list[dict[str, str]]:
    """Return a row for each server and network, with and without Grad-CAM."""
    rows = []
    for short, network in NETWORKS.items():
        if not (folder / f"serve_peers_{short}.json").is_file():
            continue
        figures = _read(folder, f"serve_peers_{short}")
        plain, explained = figures["without explanation"], figures["with Grad-CAM"]
        for name, found in plain.items():
            with_map = explained[name]
            kept = with_map["images_per_second"] / found["images_per_second"]
            rows.append(
                {
                    "network": network,
                    "server": name,
                    "images/s": f"{found['images_per_second']:g}",
                    "of the network": f"{found['share_of_network']:.2f}",
                    "one client, ms over the network": f"{found['ms_over_network']:g}",
                    "images/s with Grad-CAM": f"{with_map['images_per_second']:g}",
                    "Grad-CAM over none": f"{kept:.2f}",
                }
            )
    return rows


def step_rows(folder: Path) -> list[dict[str, str]]:
    """Return a row for each step of an answer."""
    found = {
        title: _read(folder, f"answer_steps_{short}")["ms"] for short, title in NETWORKS.items()
    }
    return [
        {"step": name, **{f"{title}, ms": f"{steps[name]:g}" for title, steps in found.items()}}
        for name in next(iter(found.values()))
    ]


def overload_rows(folder: Path) -> list[dict[str, str]]:
    """Return a row for each network at ten times its capacity."""
    found = {
        network: _read(folder, f"overload_{short}")
        for short, network in NETWORKS.items()
        if (folder / f"overload_{short}.json").is_file()
    }
    return [
        {
            "network": network,
            "capacity, images/s": f"{each['capacity_per_second']:g}",
            "goodput at ten times that": f"{each['goodput']:.2f}",
            "answers": ", ".join(f"{n} x {status}" for status, n in each["statuses"].items()),
            "slowest /healthz, ms": str(each["health_ms_max"]),
            "cores of the generator": f"{each['cores_of_generator']:g}",
        }
        for network, each in found.items()
    ]


def training_rows(folder: Path) -> list[dict[str, str]]:
    """Return a row for each network, in one process and in the two of torchrun."""
    ratios = {
        "engine with AdamW over plain loop": "AdamW over plain loop",
        "engine with AdamW over forward and backward": "AdamW over both passes",
        "engine with Muon over engine with AdamW": "Muon over AdamW",
    }
    return [
        {
            "network": name,
            "input, batch": f"{each['size'][1]} x {each['size'][0]} px, {each['batch']}",
            "processes": str(found["processes"]),
            "plain loop, images/s": f"{each['plain loop']:g}",
            **{title: f"{each[key]:.2f}" for key, title in ratios.items()},
        }
        for found in (_read(folder, "training_speed"), _read(folder, "training_speed_torchrun"))
        for name, each in found["images/s"].items()
    ]


def other_rows(folder: Path) -> list[dict[str, str]]:
    """Return a row for each pipeline and each start."""
    pipelines, start = _read(folder, "pipelines"), _read(folder, "start")
    rows = [
        {
            "what": f"images {name}",
            "measured": f"{each['images_per_second']:g} a second",
            "limit": f"{each['limit']:g} a second" if "limit" in each else "-",
            "share": f"{each['share_of_limit']:.2f}" if "limit" in each else "-",
        }
        for name, each in pipelines.items()
        if isinstance(each, dict) and "images_per_second" in each
    ]
    limit = start["bare Ray with Serve"] + start["loading the bundle"]
    rows += [
        {"what": f"start: {name}", "measured": f"{start[name]:g} s", "limit": "-", "share": "-"}
        for name in (
            "--help",
            "train --help",
            "a missing data set",
            "a missing bundle",
            "a size out of range",
            "no such setting",
            "no such objective",
        )
    ]
    rows.append(
        {
            "what": "start: serve, until it is ready",
            "measured": f"{start['serve, ready']:g} s",
            "limit": f"{limit:.1f} s (bare Ray and the bundle)",
            "share": f"{start['serve over both']:.2f} times",
        }
    )
    rows.append(
        {
            "what": "start: train, until its first step",
            "measured": f"{start['train, first step']:g} s",
            "limit": f"{start['bare Ray Train']:g} s (bare Ray Train)",
            "share": f"{start['train over bare Ray Train']:.2f} times",
        }
    )
    return rows


def pipeline_rows(folder: Path) -> list[dict[str, str]]:
    """Return a row for each step of an image, with the pipelines that take it."""
    found = _read(folder, "pipelines")
    cores, num_images = found["machine"]["cores"], found["images"]
    taken = {"prepare": "prepared", "score": "scored", "evaluate": "evaluated"}
    steps = {
        name: {pipeline: ms for pipeline in taken if pipeline in TAKEN_BY.get(name, taken)}
        for name, ms in found["steps_ms"].items()
    }
    total = {
        pipeline: sum(step.get(pipeline, 0.0) for step in steps.values()) for pipeline in taken
    }
    measured = {
        pipeline: 1000 * cores / found[name]["images_per_second"]
        for pipeline, name in taken.items()
    }
    outside = {
        pipeline: 1000 * cores * found[name]["seconds_outside_workers"] / num_images
        for pipeline, name in taken.items()
    }
    rest = {each: measured[each] - total[each] - outside[each] for each in taken}
    rows = steps | {
        "all steps": total,
        "outside the workers": outside,
        "everything else": rest,
        "measured": measured,
    }
    return [
        {
            "ms of a core for each image": name,
            **{each: f"{values[each]:.2f}" if each in values else "-" for each in taken},
        }
        for name, values in rows.items()
    ]


def machine_rows(folder: Path) -> list[dict[str, str]]:
    """Return what the figures were taken on."""
    found = _read(folder, "training_speed")["machine"]
    return [
        {
            "machine": name.replace("_", " "),
            "": ", ".join(value) if isinstance(value, list) else str(value),
        }
        for name, value in found.items()
    ]


def main() -> None:
    """Keep the figures and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where `make bench` wrote its JSON")
    parser.add_argument("--keep", action="store_true", help="put them into the documentation")
    args = parser.parse_args()
    for name, rows in {
        "served": served_rows,
        "answer-steps": step_rows,
        "overload": overload_rows,
        "training-speed": training_rows,
        "speed": other_rows,
        "pipeline-steps": pipeline_rows,
        "machine": machine_rows,
    }.items():
        found = rows(args.folder)
        print(f"{rows_table(found)}\n")
        if args.keep:
            keep(name, found)
    if args.keep:
        write_pages()


if __name__ == "__main__":
    main()
