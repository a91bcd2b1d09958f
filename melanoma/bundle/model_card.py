"""Writes MODEL_CARD.md from the data set and the manifest of a bundle: no figure is typed in.

The checklist is TRIPOD+AI (Collins et al., BMJ 2024). What was not done is said to be not done.
"""

import dataclasses
import json
from collections.abc import Iterable

import pandas as pd
import timm

from melanoma.bundle.manifest import BundleManifest
from melanoma.config import DISCLAIMER
from melanoma.data.dataset import PreparedData
from melanoma.data.splits import SPLITS
from melanoma.evidence.contract import Contract
from melanoma.evidence.levels import Level
from melanoma.evidence.reference_models import SOURCE, Comparison
from melanoma.evidence.strata import by_column

_NOT_DONE, _NOT_STATED = "**not done**", "**not stated**"
_REPORT = "the report of `melanoma evaluate`"
_TRIPOD = (
    ("1 Title", "this card"),
    ("2 Abstract", "the section Summary"),
    ("3 Background", "docs/concepts.md; health inequalities: " + _NOT_DONE),
    ("4 Objectives", "the section Use"),
    ("5 Data", "the section Data; dates of collection: " + _NOT_DONE),
    ("6 Participants", "as the data set's publisher states; eligibility of its own: " + _NOT_DONE),
    ("7 Data preparation", "docs/data.md; what was left out: the section Data"),
    ("8 Outcome", "the section Data, by reference standard; blinding: " + _NOT_DONE),
    ("9 Predictors", "one image; age, sex and site are not used by the network"),
    ("10 Sample size", "the section Contract; power: " + _REPORT),
    ("11 Missing data", "images without a diagnosis are left out and counted"),
    ("12 Analytical methods", "docs/concepts.md and docs/training.md; the settings below"),
    ("13 Class imbalance", "class weights of the loss; the calibrator"),
    ("14 Fairness", "subgroups: " + _REPORT + "; measures against unfairness: " + _NOT_DONE),
    ("15 Model output", "a calibrated probability of each class, and a decision at the threshold"),
    ("16 Training versus evaluation", "groups never cross a split; the section Data"),
    ("17 Ethical approval", "that of the data set's publisher; of its own: " + _NOT_DONE),
    ("18 Open science", "code is open; protocol and registration: " + _NOT_DONE),
    ("19 Patient and public involvement", _NOT_DONE),
    ("20 Participants", "the section Data; subgroups: " + _REPORT),
    ("21 Model development", "the section Data, images and targets of each split"),
    ("22 Model specification", "the bundle itself; the settings below"),
    ("23 Model performance", "the section Contract; with intervals, by source: " + _REPORT),
    ("24 Model updating", _NOT_DONE),
    ("25 Interpretation", "the section Limits"),
    ("26 Limitations", "the section Limits"),
    (
        "27 Usability",
        "unusual images get cannot_assess, docs/concepts.md; a study with users: " + _NOT_DONE,
    ),
)
_STARD = (
    ("Study design", "retrospective, on published images; registration and protocol: " + _NOT_DONE),
    ("Participants", "as the publisher found them; consecutive or random series: " + _NOT_DONE),
    ("Data sources, annotation, exclusions", "the section Data; docs/data.md"),
    ("Partitions and their independence", "groups never cross a split; the section Data"),
    ("Index test, version, input", "the bundle itself; the settings below"),
    ("Cut-off, fixed beforehand", "the section Contract says on which images"),
    ("Reference standard", "the section Data; readers, blinding, time to biopsy: " + _NOT_DONE),
    ("Indeterminate results", "cannot_assess; the section Contract and " + _REPORT),
    ("Sample size", "the section Contract; power: " + _REPORT),
    ("Accuracy with intervals, 2 x 2 table", _REPORT),
    ("Variability, subgroups, shift", _REPORT + "; docs/evaluation.md"),
    ("Bias and fairness", "subgroups: " + _REPORT + "; tested on persons: " + _NOT_DONE),
    ("Readers with and without the test", _NOT_DONE),
    ("Adverse events of test or standard", _NOT_DONE),
    ("Code and data", "code is open; the data as their publisher allows"),
    ("Funding, commercial interests", _NOT_STATED),
)


def model_card(draft: BundleManifest, data: PreparedData, held_out: Level, *, weights: str) -> str:
    """Return the text of the card.

    Args:
        draft: the manifest of the bundle, without files and version.
        data: the data set on which it was trained.
        held_out: the units of the validation fold, or of every fold, with their predictions by the
            network that was trained without them.
        weights: what the run started from: none, imagenet or a file.
    """
    config, task = draft.training_config, draft.task
    contract = draft.operating_point.contract
    settings = json.dumps(dataclasses.asdict(config), indent=2)
    return f"""# Model card

**{DISCLAIMER}**

## Summary

{contract.sentence(task)} Contract: **{contract.status}**.

## Use

- For research on triage of {task.noun[1]} in dermoscopic images, by people who know the limits of
  such networks. Not for care of patients, not for self-examination.
- Output: {", ".join(task.classes)} ({task.name}); {", ".join(task.targets)} must be referred.
  {_others(draft)}
- Network: {_architecture(draft)}.

## Data

{data.manifest.population}, grouped by {", ".join(draft.group_columns)}. Split hash
`{draft.split_hash[:16]}`.

{_counts(data)}

Left out: {_left_out(data)}.

Reference standards, images of each:

{_standards(data)}

Licence of the images: **not stated**; that of their publisher holds for the bundle too. HAM10000 is
not for commercial use. {_start(draft, weights)}{_teacher(draft)}

## Choice of the network

{_choice(draft)}

{_comparisons(draft.reference_models)}

## Contract

| | |
|---|---|
| status | {contract.status}{f", {contract.reason}" if contract.reason else ""} |
| promised sensitivity, confidence | {contract.target_sensitivity}, {contract.confidence} |
| basis | {_basis(contract)} |
| error that it may spend | {contract.error:.4f} |
| unit | {contract.unit} |
| targets, others | {contract.num_target}, {contract.num_other} |
| further targets that got cannot_assess | {contract.num_target_unassessed} |
| misses allowed | {_misses(contract)} |
| expected sensitivity | {contract.sensitivity_expected:.3f} |
| specificity, one-sided lower bound | {contract.specificity:.3f}, {contract.specificity_low:.3f} |

{_several_images(draft)}

## Strata

{_strata_of(draft)}

{_strata(held_out, draft.operating_point.threshold)}

## Limits

- The promise holds for images like those that placed the threshold. Other clinics and cameras were
  not looked at; the threshold is not valid for them without new calibration. What is known of skin
  tones, ages, sexes and sites, {_REPORT} shows.
- Probabilities are for a share of {contract.target_share:.1%} of {task.noun[1]}, that of the images
  that the calibrator was fitted to.{_heatmaps(draft)}

## TRIPOD+AI

| item | where |
|---|---|
{_rows(_TRIPOD)}

## STARD-AI

What a report of diagnostic accuracy by software must tell (Sounderajah et al., Nature Medicine,
2025), by theme:

| theme | where |
|---|---|
{_rows(_STARD)}

## Training settings

```json
{settings}
```
"""


def _rows(pairs: Iterable[tuple[object, ...]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in pairs)


def _others(draft: BundleManifest) -> str:
    malignant = ", ".join(draft.task.malignant)
    return f"Not looked for, although malignant: {malignant}." if malignant else ""


def _counts(data: PreparedData) -> str:
    manifest, nouns = data.manifest, data.task.noun[1]
    rows = [
        (split, sum(manifest.counts[split].values()), manifest.num_targets(split))
        for split in SPLITS
        if split in manifest.counts
    ]
    return f"| split | images | of them {nouns} |\n|---|---|---|\n{_rows(rows)}"


def _left_out(data: PreparedData) -> str:
    counts = {reason: sum(by.values()) for reason, by in data.manifest.left_out.items()}
    return ", ".join(f"{num} {reason}" for reason, num in counts.items()) or "nothing"


def _standards(data: PreparedData) -> str:
    records = data.records
    named = records["dx_type"].replace("", "not recorded")
    table = pd.crosstab(named, records["dx"].isin(data.task.targets))
    rows = [
        (name, int(counts.get(True, 0)), int(counts.get(False, 0)))
        for name, counts in table.iterrows()
    ]
    return f"| standard | {data.task.noun[1]} | others |\n|---|---|---|\n{_rows(rows)}"


def _start(draft: BundleManifest, weights: str) -> str:
    if draft.origin is not None:
        return "Start weights: see the card of the bundle that trained the network."
    if draft.training_config.model.embedding_size:
        return "The model that computed the embeddings: **not stated**."
    if weights == "none":
        return "Start weights: none, the network began at random."
    if weights != "imagenet":
        return "Start weights: a file, licence **not stated**."
    published = timm.get_pretrained_cfg(draft.architecture.backbone)
    licence = (published and published.license) or _NOT_STATED
    return f"Start weights: those of timm for ImageNet, licence {licence}."


def _choice(draft: BundleManifest) -> str:
    config, origin = draft.training_config, draft.origin
    fold = config.data.validation_fold
    if origin is not None:
        contract = origin.operating_point.contract
        return f"""The network is that of the bundle `{origin.version}`, trained on
{origin.population} (split hash `{origin.split_hash[:16]}`), and was not changed.
Its contract there: {contract.sentence(draft.task)}

The data above are of another site. Validation fold {fold} of them fitted the calibrator and
decided whether the network is informative{_chosen_by(draft)}; the calibration split placed the
threshold."""
    if draft.num_networks > 1:
        epochs = ", ".join(map(str, draft.best_epochs))
        return f"""Each of the {draft.num_networks} networks was trained without one fold, and that
fold chose its epoch, {epochs} of {config.optim.epochs}, by the AUROC of the targets within
sources{_chosen_by(draft)}.
All folds together, each scored by the network that was trained without it, fitted the calibrator.
Figures of them are those of single networks, and are optimistic, because they chose the epochs."""
    return f"""Epoch {draft.best_epochs[0]} of {config.optim.epochs} was chosen on validation fold
{fold} by the AUROC of the targets within sources{_chosen_by(draft)}.
Figures of this fold are optimistic, because it chose the epoch."""


def _several_images(draft: BundleManifest) -> str:
    point = draft.several_images
    if point is None:
        return "For several images of one lesion there is no contract: no target has several."
    found = point.contract
    sentence = found.sentence(draft.task)
    return f"""For several images of one lesion, whose logits are averaged: **{found.status}**.
{sentence} Targets, others: {found.num_target}, {found.num_other}; misses allowed:
{_misses(found)}; specificity, one-sided lower bound: {found.specificity:.3f},
{found.specificity_low:.3f}."""


def _teacher(draft: BundleManifest) -> str:
    if not draft.teacher_sha256:
        return ""
    share = draft.training_config.loss.teacher_share
    return f"""

Of each label, {share:.0%} were the probabilities of another model (a table with sha256
`{draft.teacher_sha256[:16]}`). It may have learnt from the images of the validation fold, whose
figures are then optimistic."""


def _architecture(draft: BundleManifest) -> str:
    config, num, backend = draft.training_config, draft.num_networks, draft.cpu_backend
    times = "" if num == 1 else f"{num} times "
    averaged = "" if num == 1 else ", whose logits are averaged"
    if config.model.embedding_size:
        return (
            f"{times}a linear layer{averaged}, on embeddings of {config.model.embedding_size}"
            " numbers by a\n  model outside this bundle, which gives no heatmaps"
        )
    copies = "" if config.data.tta == 1 else f", averaged over {config.data.tta} mirrored copies"
    return f"""{times}{config.model.backbone}{averaged}, input {config.data.input_width} x
  {config.data.input_height} px{copies}. Feature maps on a CPU: {backend.name},
  {backend.num_other_decisions} other decisions on {backend.num_images} images"""


def _misses(contract: Contract) -> str:
    return "none: too few targets" if contract.misses_allowed < 0 else str(contract.misses_allowed)


def _heatmaps(draft: BundleManifest) -> str:
    if draft.training_config.model.embedding_size:
        return ""
    return "\n- A heatmap shows where the network looked. It does not show where disease is."


def _basis(contract: Contract) -> str:
    if contract.basis == "out_of_fold":
        return (
            "approximate: held-out images of the folds; the calibration split has too few targets"
            " and stayed closed"
        )
    return f"calibration split, on which this is network number {contract.access}"


def _strata_of(draft: BundleManifest) -> str:
    where = (
        "of the validation fold"
        if draft.num_networks == 1 or draft.origin is not None
        else "of every fold, scored by the network that was trained without it"
    )
    placed = draft.operating_point.contract.basis == "out_of_fold"
    also = "The same images chose" if placed else "They did not choose"
    return f"""At the threshold, on one image per group {where},
as far as it is assessed. {also} the threshold."""


def _chosen_by(draft: BundleManifest) -> str:
    found, within = draft.validation, draft.validation.get("within_source_auroc")
    over_all = f"over all images {found['auroc']:.3f}"
    return f" ({over_all})" if within is None else f" ({within:.3f}; {over_all})"


def _strata(fold: Level, threshold: float) -> str:
    rows = [
        (
            f"{title}: {name}",
            f"{cell['num']}, {cell['num_target']}",
            "too few targets" if cell["few_targets"] else f"{cell['auroc']['value']:.3f}",
            *(
                f"{cell[part]['value']:.3f}" if num else "-"
                for part, num in (
                    ("sensitivity", cell["num_target"]),
                    ("specificity", cell["num"] - cell["num_target"]),
                )
            ),
        )
        for title, column in (("source", SOURCE), ("reference standard", "dx_type"))
        for name, cell in by_column(fold, fold.rows[column], threshold).items()
    ]
    head = "| | units, targets | AUROC | sensitivity | specificity |"
    return f"{head}\n|---|---|---|---|---|\n{_rows(rows)}"


def _comparisons(found: Iterable[Comparison]) -> str:
    rows = [
        (
            " + ".join(each.columns),
            f"{each.auroc:.3f}",
            f"{each.reference_auroc:.3f}",
            f"{each.difference_low:+.3f}",
        )
        for each in found
    ]
    head = "| a model that knows | AUROC, network | AUROC, model | difference, at least |"
    return (
        "Beside models that see no image, among images of the same source that were held out:\n\n"
        f"{head}\n|---|---|---|---|\n{_rows(rows)}"
    )
