"""The settings of a training: the options that set them, and `config`, which prints them."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from melanoma.errors import SettingError
from ray_jobs.arguments import DONE, add_command, path
from ray_jobs.results import print_result

if TYPE_CHECKING:
    from melanoma.config import TrainConfig
    from melanoma.io.storage import AnyPath


def add_commands(commands: Any) -> None:
    """Add `config` to the commands."""
    _config_options(
        add_command(
            commands, "config", _config, "print every training setting with its value and meaning"
        )
    )


def add_settings(command: argparse.ArgumentParser) -> None:
    """Add the options that `config_of` reads."""
    command.add_argument(
        "--preset",
        default="cpu_quick",
        metavar="NAME",
        help="smoke, cpu_quick, cpu, lite0, gpu, frozen_in22k or frozen_dinov3"
        " (default %(default)s)",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, for example --set loss.gamma=2; may be repeated",
    )
    command.add_argument(
        "--set-file",
        type=path,
        metavar="FILE",
        help="JSON file of settings that replaces the preset",
    )


def config_of(args: argparse.Namespace) -> "TrainConfig":
    """Return the preset, or the file that replaces it, changed by --set."""
    from melanoma.presets import preset

    config = preset(args.preset)
    if args.set_file:
        config = type(config).from_dict(_settings(args.set_file))
    declared = [f"accesses={args.accesses}"] if getattr(args, "accesses", None) else []
    return config.with_overrides([*args.set, *declared])


def _settings(file: "AnyPath") -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SettingError(
            f"--set-file must be a JSON file of settings; {file.name} is not ({error}). Correct it."
        ) from error
    if not isinstance(values, dict):
        raise SettingError(
            f"--set-file must hold a JSON object of settings; {file.name} holds a"
            f" {type(values).__name__}."
        )
    return values


def _config_options(command: argparse.ArgumentParser) -> None:
    add_settings(command)
    command.add_argument("--markdown", action="store_true", help="print a Markdown table")


def _config(args: argparse.Namespace) -> int:
    from melanoma.config import settings_of

    config = config_of(args)
    settings = settings_of(config)
    if args.markdown:
        rows = [
            f"| `{found.name}` | `{json.dumps(found.value)}` | {found.meaning} |"
            for found in settings
        ]
        text = "\n".join(["| setting | value | meaning |", "|---|---|---|", *rows])
    else:
        width = max(len(f"{found.name} = {json.dumps(found.value)}") for found in settings)
        text = "\n".join(
            f"{f'{found.name} = {json.dumps(found.value)}':{width}}  {found.meaning}"
            for found in settings
        )
    print_result(args, dataclasses.asdict(config), text)
    return DONE
