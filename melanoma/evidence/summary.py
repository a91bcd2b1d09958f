"""A report as text for a terminal."""

from typing import Any

from melanoma.data.left_out import left_out_sentence
from melanoma.evidence.metrics import title_of
from melanoma.evidence.sections import LEVELS, is_metric, overlap_sentence
from melanoma.io.storage import AnyPath
from melanoma.task import task_of


def describe_evaluation(report: dict[str, Any], out: AnyPath) -> str:
    """Return the evaluation as a table for people."""
    levels = [level for level in LEVELS if level in report]
    image = report["image"]
    lesions = f", {report['lesion']['num']} lesions" if "lesion" in report else ""
    lines = [
        f"{report['population']}: {image['num']} images{lesions}, {image['num_groups']} groups",
        "",
        f"{'':36}{''.join(f'{LEVELS[level]:>26}' for level in levels)}",
    ]
    for name in (key for key, value in image.items() if is_metric(value)):
        cells = [_cell(report[level][name]) for level in levels]
        lines.append(f"{title_of(name):36}{''.join(f'{cell:>26}' for cell in cells)}")
    lines += [
        f"{'AUROC within sources':36}{_cell(report['within_source']):>{26 * len(levels)}}",
        "",
        f"contract here: {report['contract']['status']}. {report['contract']['sentence']}",
    ]
    if report["flow"]["known_to_the_bundle"]:
        lines.append(overlap_sentence(report))
    if report["accesses"]:
        lines.append(
            f"this {report['split']} split has been opened {len(report['accesses'])} time(s)"
        )
    if report["left_out"]:
        lines.append(left_out_sentence(report["left_out"], task_of(report["task"])))
    return "\n".join([*lines, f"written to {out}"])


def _cell(metric: dict[str, float | None]) -> str:
    if metric["value"] is None:
        return "undefined here"
    if metric["low"] is None or metric["high"] is None:
        return f"{metric['value']:.3f} [no interval]"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
