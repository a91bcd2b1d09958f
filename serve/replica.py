"""The first steps of every replica that holds the network."""

import ray
import torch

from melanoma.bundle.bundle import Bundle, load_bundle
from melanoma.io.storage import to_path
from serve.logs import keep_traces_out


def load_in_replica(bundle_dir: str, manifest_sha256: str | None) -> tuple[Bundle, str]:
    """Load the bundle, set the number of threads to that of CPUs, and return bundle and device.

    Args:
        bundle_dir: folder of the bundle, or its address in object storage.
        manifest_sha256: sha256 of the only manifest that may be loaded; None allows any.

    Raises:
        BundleError: if the bundle cannot be loaded or is not the pinned one. The replica then never
            becomes ready.
        SettingError: if the bundle judges embeddings.
    """
    keep_traces_out()
    assigned = ray.get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(assigned.get("CPU", 1))))
    # The threshold was chosen on scores of full precision. TF32 would change them and so break the
    # contract.
    torch.backends.cudnn.allow_tf32 = False
    bundle = load_bundle(to_path(bundle_dir), manifest_sha256=manifest_sha256)
    bundle.check_takes_images()
    # Use a GPU only if the config asks for one; any other belongs to another process.
    return bundle, "cuda" if assigned.get("GPU", 0) > 0 and torch.cuda.is_available() else "cpu"
