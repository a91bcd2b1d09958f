"""The tables of an evaluation for people, from report.json. Knows no file format.

Every text is HTML with only those tags that reportlab's paragraphs accept.
"""

import dataclasses
import html
from collections.abc import Iterable, Mapping
from typing import Any

from melanoma.evidence.metrics import title_of
from melanoma.evidence.strata import AT_90

LEVELS = {"image": "per image", "lesion": "per lesion", "contract_unit": "one image per group"}
"""The levels of a report, and what they are called."""
FEW = "too few"
_MAX_MISSED = 50
_ESTIMATED = (
    "Estimated from the skin around the lesion (individual typology angle). Light and white balance"
    " move it; nothing is known of the persons."
)


@dataclasses.dataclass(frozen=True)
class Section:
    """A titled table.

    Attributes:
        title: of the section; empty for the first.
        columns: the head of each column.
        rows: the cells, a text for each column.
        note: a sentence below the table.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def is_metric(value: Any) -> bool:
    """Return whether a part of a report is a number with an interval."""
    return isinstance(value, dict) and {"value", "low", "high"} <= set(value)


def interval(metric: Mapping[str, float | None], digits: int = 3) -> str:
    """Return a value with its interval as HTML."""
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None:
        return "undefined here"
    if low is None or high is None:
        return f"{value:.{digits}f} <small>no interval</small>"
    return f"{value:.{digits}f} <small>{low:.{digits}f} to {high:.{digits}f}</small>"


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the tables of a report, those with rows only."""
    found = [
        _metrics(report),
        _two_by_two(report),
        _classes(report),
        _flow(report),
        _strata(
            "By source",
            report["by_source"],
            "AUROC within sources compares only images of the same source:"
            f" {interval(report['within_source'])}. A network that recognises the camera reaches"
            " more when sources are pooled.",
        ),
        _strata(
            "By reference standard",
            report["by_reference_standard"],
            "How the diagnosis was made. Specificity among lesions that were excised is that of"
            " lesions that looked suspicious.",
        ),
        _references(report),
        *(
            _strata(
                f"By {name.replace('_', ' ')}", cells, _ESTIMATED if name == "skin_tone" else ""
            )
            for name, cells in report["subgroups"].items()
        ),
        _prevalences(report),
        _calibration(report),
        _power(report),
        _several_images(report),
        _missed(report),
        _accesses(report),
        _provenance(report),
    ]
    return [section for section in found if section.rows]


def overlap_sentence(report: Mapping[str, Any]) -> str:
    """Return how many images were known to the bundle."""
    known, num = report["flow"]["known_to_the_bundle"], report["flow"]["images"]
    copies = "of lesions or patients of the data set that the bundle was made from."
    if report["flow"]["numbers_rest_on_known"]:
        return (
            f"{known} of {num} images are {copies} No other image is assessed: they prove nothing."
        )
    return f"{known} of {num} images are {copies} They are left out of every number."


def _metrics(report: Mapping[str, Any]) -> Section:
    levels = [level for level in LEVELS if level in report]
    names = [name for name, value in report["image"].items() if is_metric(value)]
    counts = [
        ["images or lesions, of them targets"]
        + [f"{report[level]['num']}, {report[level]['num_target']}" for level in levels],
        ["groups; effective number of targets"]
        + [
            f"{report[level]['num_groups']}; {report[level]['effective_num_target']:.1f}"
            for level in levels
        ],
    ]
    rows = [
        [html.escape(title_of(name)), *(interval(report[level][name]) for level in levels)]
        for name in names
    ]
    return Section(
        "",
        ["", *(LEVELS[level] for level in levels)],
        [*counts, *rows],
        "The contract counts in the last column: of each group one random target image and one"
        " random other image, as far as they are assessed.",
    )


def _two_by_two(report: Mapping[str, Any]) -> Section:
    table, nouns = report["contract_unit"]["table"], html.escape(report["task"]["noun"][1])
    return Section(
        "Referred and not, one image per group",
        ["", "referred", "not referred"],
        [
            [nouns, str(table["referred_target"]), str(table["missed_target"])],
            ["others", str(table["referred_other"]), str(table["spared_other"])],
        ],
        "The contract counts in this unit.",
    )


def _classes(report: Mapping[str, Any]) -> Section:
    names, targets = report["task"]["names"], report["task"]["targets"]
    rows = [
        [
            html.escape(names.get(name, name) + (" (target)" if name in targets else "")),
            str(cell["num"]),
            str(cell["referred"]),
            interval(cell) if cell["num"] else "none here",
        ]
        for name, cell in report["by_class"].items()
    ]
    return Section(
        "Referred by class",
        ["", "units", "referred", "share"],
        rows,
        "Only targets must be referred. Other cancers are not looked for.",
    )


def _flow(report: Mapping[str, Any]) -> Section:
    names, flow = report["task"]["names"], report["flow"]
    rows = [
        [
            html.escape(names.get(name, name)),
            str(cell["num"] + cell["known"]),
            str(cell["known"]),
            str(cell["refused"]),
            interval(cell),
        ]
        for name, cell in report["cannot_assess"].items()
        if cell["num"] + cell["known"]
    ]
    total = [str(flow[name]) for name in ("images", "known_to_the_bundle", "cannot_assess")]
    return Section(
        "Flow of images",
        ["", "images", "known to the bundle", "cannot_assess", "its share"],
        [*rows, ["all", *total, ""]],
        f"{flow['judged']} images are judged. The light, colours or sharpness of those that get"
        " cannot_assess differ from those of the training images; no other table counts them.",
    )


def _strata(title: str, cells: Mapping[str, Mapping[str, Any]], note: str) -> Section:
    rows = [
        [
            html.escape(str(name)),
            f"{cell['num']}, {cell['num_target']}",
            FEW if cell["few_targets"] else interval(cell["auroc"]),
            interval(cell["sensitivity"]) if cell["num_target"] else "none here",
            interval(cell["specificity"]) if cell["num"] > cell["num_target"] else "none here",
            FEW if cell["few_targets"] else interval(cell[AT_90]),
        ]
        for name, cell in cells.items()
    ]
    few = any(cell["few_targets"] for cell in cells.values())
    said = "Fewer than 10 targets show nothing about AUROC or sensitivity. " if few else ""
    columns = ["", "units, targets", "AUROC", "sensitivity", "specificity", title_of(AT_90)]
    # A single stratum repeats the whole.
    return Section(title, columns, rows if len(rows) > 1 else [], (said + note).strip())


def _references(report: Mapping[str, Any]) -> Section:
    rows = []
    for found in report["reference_models"]:
        seen = html.escape(" + ".join(found["columns"]))
        for place, where in (("pooled", "all"), ("within_source", "within sources")):
            at = found[place]
            rows.append(
                [
                    f"{seen}, {where}",
                    f"{at['auroc']:.3f}",
                    f"{at['reference_auroc']:.3f}",
                    interval(at["difference"]),
                ]
            )
    return Section(
        "Beside models that see no image",
        ["the model knows", "AUROC, network", "AUROC, model", "difference"],
        rows,
        "A logistic regression on the records of the train split.",
    )


def _prevalences(report: Mapping[str, Any]) -> Section:
    rows = [
        [
            f"{row['prevalence']:.0%}",
            interval(row["positive_predictive_value"]),
            interval(row["negative_predictive_value"], 4),
            interval(row["referred_per_1000"], 0),
        ]
        for row in report["at_prevalence"]
    ]
    nouns = html.escape(report["task"]["noun"][1])
    return Section(
        "At other prevalences",
        [
            nouns,
            f"share of {nouns} if referred (PPV)",
            f"share without {nouns} if not (NPV)",
            "referred of 1,000",
        ],
        rows,
        "If sensitivity and specificity stay as they are here.",
    )


def _calibration(report: Mapping[str, Any]) -> Section:
    found = report["calibration"]
    titles = {
        "intercept": "intercept (0 is right)",
        "slope": "slope (1 is right)",
        "observed_expected": "observed / expected (1 is right)",
    }
    rows = [[title, interval(found[name])] for name, title in titles.items()]
    noun = html.escape(report["task"]["noun"][0])
    return Section(
        f"Calibration of the probability of {noun}",
        ["", "value"],
        rows,
        f"All classes: negative log-likelihood {found['nll']:.3f}, Brier score"
        f" {found['brier']:.3f}, expected calibration error {found['ece']:.3f}.",
    )


def _power(report: Mapping[str, Any]) -> Section:
    power = report["contract"]["power"]
    rows = [
        [f"{row['sensitivity']:.2f}", f"{row['confirmed']:.0%}", f"{row['refuted']:.0%}"]
        for row in power["chances"]
    ]
    nouns = html.escape(report["task"]["noun"][1])
    needed = power["targets_to_decide"]
    note = (
        f"{needed} {nouns} would confirm the promise in 8 of 10 cases if 95 % are referred."
        if needed
        else ""
    )
    return Section(
        f"What {report['contract']['num_target']} {nouns} can show",
        ["true sensitivity", "confirmed", "refuted"],
        rows,
        note,
    )


def _several_images(report: Mapping[str, Any]) -> Section:
    found = report["several_images"]
    columns = ["", "all images together", "one image of each"]
    title = "Several images of one lesion"
    if found is None:
        return Section(title, columns, [])
    both = found["together"], found["one_image"]
    nouns = html.escape(report["task"]["noun"][1])
    numbers = ("auroc", "specificity_at_sensitivity_90", "macro_f1", "sensitivity", "specificity")
    rows = [
        [f"lesions; {nouns}", *(f"{each['num']}; {each['num_target']}" for each in both)],
        ["threshold", *(f"{each['threshold']:.4f}" for each in both)],
        *(
            [html.escape(title_of(name)), *(interval(each[name]) for each in both)]
            for name in numbers
        ),
        ["expected calibration error", *(f"{each['calibration']['ece']:.3f}" for each in both)],
    ]
    return Section(
        title,
        columns,
        rows,
        f"The same lesions, {found['mean_images']:.1f} images each on average. Contract for several"
        f" images: {html.escape(found['contract']['sentence'])}",
    )


def _missed(report: Mapping[str, Any]) -> Section:
    missed = report["missed_targets"]
    rows = [
        [html.escape(row["image_id"]), html.escape(row["group"]), f"{row['probability']:.4f}"]
        for row in missed[:_MAX_MISSED]
    ]
    nouns = html.escape(report["task"]["noun"][1])
    more = len(missed) - len(rows)
    return Section(
        f"Images of {nouns} that are not referred ({len(missed)})",
        ["image", "group", "probability"],
        rows,
        f"{more} more are in report.json." if more else "",
    )


def _accesses(report: Mapping[str, Any]) -> Section:
    return Section(
        "Accesses to this split",
        ["time", "bundle", "images"],
        _texts(report["accesses"], ("time", "bundle_version", "num")),
    )


def _texts(entries: Iterable[Mapping[str, Any]], keys: Iterable[str]) -> list[list[str]]:
    names = list(keys)
    return [[html.escape(str(entry.get(key, ""))) for key in names] for entry in entries]


def _provenance(report: Mapping[str, Any]) -> Section:
    found = report["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    rows = [
        ["written", found["time"]],
        ["data", found["data_hash"][:16]],
        ["splits", found["split_hash"][:16]],
        ["weights", report["bundle"]["weights_sha256"][:16]],
        ["versions", html.escape(versions)],
        [
            "draws",
            f"{found['bootstrap_draws']} bootstrap draws with seed {found['bootstrap_seed']};"
            f" images of the contract with seed {found['unit_seed']}",
        ],
    ]
    return Section("Where the numbers come from", ["", ""], rows)
