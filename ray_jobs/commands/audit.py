"""Commands that look into data sets: `data describe`, `data audit` and `data seed-replay`."""

import argparse
from typing import Any

from ray_jobs.arguments import DONE, FOUND, PREPARED, add_command, check_new, path
from ray_jobs.results import print_result


def add_commands(commands: Any) -> None:
    """Add `describe`, `audit` and `seed-replay` to the group `data`."""
    _describe_options(
        add_command(
            commands,
            "describe",
            _describe,
            "count images by class, split, group and source, and verify every checksum",
        )
    )
    _audit_options(
        add_command(
            commands,
            "audit",
            _audit,
            "look for one lesion under several ids, and for shortcuts; exit code 1: a leak",
        )
    )
    _seed_replay_options(
        add_command(
            commands,
            "seed-replay",
            _seed_replay,
            "rebuild the split of the seed system on HAM10000, and evaluate a bundle on its test",
        )
    )


def _describe_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("dataset", type=path, metavar="DATASET", help=PREPARED)


def _describe(args: argparse.Namespace) -> int:
    import pandas as pd

    from melanoma.data.dataset import open_prepared
    from melanoma.data.left_out import left_out_sentence
    from melanoma.data.prepare import read_notes
    from melanoma.io.typed import to_plain

    data = open_prepared(args.dataset, verify=True)
    manifest, records, notes = data.manifest, data.records, read_notes(args.dataset)
    part = records["split"].where(
        records["split"] != "train", "train, fold " + records["fold"].astype(str)
    )
    by_class = pd.crosstab(part, records["dx"], margins=True, margins_name="all")
    by_source = pd.crosstab(records["source"].replace("", "(not named)"), records["split"])
    of_targets = records[records["dx"].isin(data.task.targets)]
    groups, target_groups = (
        {str(split): int(num) for split, num in rows.groupby("split")["group"].nunique().items()}
        for rows in (records, of_targets)
    )
    value = {
        **to_plain(manifest),
        "groups": groups,
        "target_groups": target_groups,
        "sources": by_source.T.to_dict(),
        "notes": notes,
    }
    largest = ", ".join(
        f"{found.num_images} ({found.num_images / len(records):.1%}, {found.split}, with"
        f" {found.group})"
        for found in manifest.largest_groups
    )
    lines = [
        (
            f"{manifest.population}: {len(records)} images of {data.stored_shape[1]} x"
            f" {data.stored_shape[0]} px in {manifest.num_groups} groups"
            f" ({', '.join(manifest.group_columns)})"
        ),
        f"task {manifest.task.name}: targets {', '.join(manifest.task.targets)}",
        f"images\n{by_class}\n\n{by_source}\n",
        f"groups, of them with {data.task.noun[0]}: "
        + "; ".join(
            f"{split} {num}, {target_groups.get(split, 0)}" for split, num in groups.items()
        ),
        f"largest groups: {largest}",
        *(line for line in (left_out_sentence(manifest.left_out, manifest.task), *notes) if line),
        f"split hash {manifest.split_hash}",
    ]
    print_result(args, value, "\n".join(lines))
    return DONE


def _audit_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("dataset", type=path, metavar="DATASET", help=PREPARED)
    command.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="folder for the page and the list of pairs; it replaces an earlier audit",
    )


def _audit(args: argparse.Namespace) -> int:
    from melanoma.audit.pipeline import audit, describe_audit
    from ray_jobs.progress import counted

    found = audit(args.dataset, args.out, counted=counted)
    text = describe_audit(found)
    print_result(args, found, text if args.out is None else f"{text}\nwritten to {args.out}")
    return FOUND if found["leak"] else DONE


def _seed_replay_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=path, metavar="SOURCE", help="folder of HAM10000")
    command.add_argument(
        "--bundle",
        type=path,
        metavar="BUNDLE",
        help="bundle trained on this split, or on other images, to evaluate on its test",
    )
    command.add_argument(
        "--same-lesion",
        type=path,
        metavar="FILE",
        help="CSV of known pairs of images of one lesion, to count those on two sides",
    )
    command.add_argument(
        "--out",
        type=path,
        metavar="DIR",
        help="new folder for splits.csv, which prepare --splits takes, and for the evidence",
    )


def _seed_replay(args: argparse.Namespace) -> int:
    if args.out is not None:
        check_new(args.out)
    from melanoma.seed_replay import describe_seed_replay, seed_replay
    from ray_jobs.progress import counted

    found = seed_replay(
        args.source,
        bundle=args.bundle,
        same_lesion=args.same_lesion,
        out=args.out,
        counted=counted,
    )
    print_result(args, found, describe_seed_replay(found))
    return DONE
