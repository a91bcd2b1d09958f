"""Writes a bundle anew with what a scorecard supports of its heatmaps."""

import dataclasses
import shutil
from typing import get_args

from melanoma.bundle.bundle import fetch_bundle
from melanoma.bundle.manifest import MANIFEST, MODEL_CARD, BundleManifest, read_manifest
from melanoma.errors import BundleError, DataError
from melanoma.explain.claims import Claim
from melanoma.explain.methods import METHODS
from melanoma.io.files import new_folder, read_json, sha256_of, write_json, write_text
from melanoma.io.storage import AnyPath, to_path
from melanoma.io.typed import to_plain

_HEADING = "## Heatmaps"


def add_scorecard(
    bundle_dir: str | AnyPath, scorecard: str | AnyPath, out: str | AnyPath
) -> BundleManifest:
    """Write a bundle that says which of its heatmaps a scorecard supports.

    The network, the threshold and the contract stay the same; the version changes.

    Args:
        bundle_dir: folder of the bundle.
        scorecard: scorecard.json of an evaluation of this bundle.
        out: new folder for the bundle.

    Returns:
        The manifest of the new bundle.

    Raises:
        BundleError: if the scorecard is that of another network.
        DataError: if the file is no scorecard, or OUT holds something.
    """
    folder, found = fetch_bundle(to_path(bundle_dir)), read_json(to_path(scorecard))
    manifest = read_manifest(folder)
    try:
        weights, methods = found["bundle"]["weights_sha256"], found["methods"]
        measured_on = f"{found['num_masks']} images of {found['population']}"
        claims: dict[str, Claim] = {name: methods[name]["claim"] for name in METHODS}
    except (KeyError, TypeError) as error:
        raise DataError(
            "SCORECARD must be a scorecard.json of `melanoma evaluate --scorecard`; it lacks"
            f" {error}. Write it again."
        ) from error
    if weights != manifest.weights_sha256 or not set(claims.values()) <= set(get_args(Claim)):
        raise BundleError(
            "SCORECARD must be of this bundle's network; it is of another. Evaluate this bundle"
            " with --scorecard."
        )
    with new_folder(to_path(out)) as work:
        for name in manifest.files:
            shutil.copy(folder / name, work / name)
        card = (work / MODEL_CARD).read_text().split(f"\n{_HEADING}\n")[0]
        write_text(work / MODEL_CARD, f"{card}\n{_section(claims, measured_on)}")
        changed = dataclasses.replace(
            manifest,
            lesion_claims=claims,
            files=manifest.files | {MODEL_CARD: sha256_of(work / MODEL_CARD)},
        ).with_version()
        write_json(work / MANIFEST, to_plain(changed))
    return changed


def _section(claims: dict[str, Claim], measured_on: str) -> str:
    lines = [
        f"- {METHODS[name].title}: {'supported' if claim == 'supported' else 'not supported'}"
        for name, claim in claims.items()
    ]
    return "\n".join(
        [_HEADING, "", f"Whether they mark lesions, measured on {measured_on}:", "", *lines, ""]
    )
