"""Gives the network of a bundle a contract on the data of another site.

The network is not changed. Calibrator, usual images, reference models and threshold are made anew,
in the order of `melanoma.bundle.packing`, from a data set of the site, none of whose images the
network was trained on.
"""

import dataclasses

from melanoma.bundle.bundle import Bundle, load_bundle
from melanoma.bundle.known_images import fingerprinted, is_known
from melanoma.bundle.manifest import BundleManifest
from melanoma.bundle.packing import pack
from melanoma.data.accesses import check_declared
from melanoma.data.dataset import PreparedData, open_prepared
from melanoma.errors import DataError
from melanoma.io.files import new_folder
from melanoma.io.storage import AnyPath, check_free, to_path


def recontract(
    bundle_dir: str | AnyPath,
    dataset: str | AnyPath,
    out: str | AnyPath,
    *,
    promise: float | None = None,
    accesses: int = 0,
) -> BundleManifest:
    """Write a bundle with the same network and a contract on other data.

    Args:
        bundle_dir: folder of the bundle.
        dataset: folder of a prepared data set of the site. Its validation fold fits the calibrator,
            its calibration split places the threshold.
        out: folder of the new bundle.
        promise: the sensitivity to promise, in (0, 1); by default that of the bundle.
        accesses: how many networks will be calibrated on the data set, declared before the first;
            0 declares none.

    Returns:
        The manifest of the new bundle.

    Raises:
        BundleError: if the bundle cannot be loaded.
        DataError: if the data set has another task or another size of images, holds images that the
            network was trained on, or has no targets in a fold or in its calibration split.
        SettingError: if the bundle judges embeddings.
    """
    data, out = open_prepared(to_path(dataset)), to_path(out)
    check_free(out)
    bundle = load_bundle(bundle_dir)
    bundle.check_takes_images()
    _check(bundle, data)
    check_declared(data, accesses)
    data.check_writable()
    trained = bundle.manifest.training_config
    config = dataclasses.replace(
        trained,
        data=dataclasses.replace(trained.data, validation_fold=0),
        accesses=accesses,
        target_sensitivity=promise or trained.target_sensitivity,
    )
    with new_folder(out) as work:
        return pack(
            bundle.model,
            config,
            data,
            work,
            best_epochs=bundle.manifest.best_epochs,
            teacher_sha256=bundle.manifest.teacher_sha256,
            origin=bundle,
        )


def _check(bundle: Bundle, data: PreparedData) -> None:
    """Check, before any access is logged, that a data set can carry a contract of a bundle.

    Raises:
        DataError: see `recontract`.
    """
    if data.task != bundle.task:
        raise DataError(
            f"DATASET must have the task of the bundle, {bundle.task.name}; it has"
            f" {data.task.name}. Prepare it with --task."
        )
    wanted = bundle.manifest.preprocessing.stored_shape
    if data.stored_shape != wanted:
        raise DataError(
            f"The images of DATASET must have the bundle's size, {wanted[1]} x {wanted[0]} px; they"
            f" have {data.stored_shape[1]} x {data.stored_shape[0]}. Prepare it with --size"
            f" {max(wanted)}."
        )
    for name, rows in (
        ("Fold 0", data.rows("train", fold=0)),
        ("The other folds", data.rows("train", without_fold=0)),
        ("The calibration split", data.rows("calibration")),
    ):
        if not rows["dx"].isin(data.task.targets).any():
            raise DataError(
                f"{name} of DATASET must hold {data.task.noun[1]}; there are none. Prepare it with"
                " --folds 2, and with more of them."
            )
    num_known = int(is_known(bundle.known_images, fingerprinted(data)).sum())
    if num_known:
        raise DataError(
            f"DATASET must hold new images; {num_known} of its {len(data.records)} are of the data"
            " set of the bundle, or copies of them. Leave them out."
        )
