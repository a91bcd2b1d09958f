"""What every replica that holds the network does first."""

import ray
import torch

from melanoma.bundle.bundle import Bundle, load_bundle
from melanoma.io.storage import to_path
from serve.logs import keep_traces_out


def load_in_replica(bundle_dir: str, manifest_sha256: str | None) -> tuple[Bundle, str]:
    """Return the bundle and the device of this replica, with as many threads as it has CPUs.

    Raises:
        BundleError: if the bundle cannot be loaded or is not the pinned one; the replica then never
            becomes ready.
    """
    keep_traces_out()
    assigned = ray.get_runtime_context().get_assigned_resources()
    torch.set_num_threads(max(1, int(assigned.get("CPU", 1))))
    # Scores must be those the threshold was chosen on: no reduced precision behind the contract's
    # back.
    torch.backends.cudnn.allow_tf32 = False
    bundle = load_bundle(to_path(bundle_dir), manifest_sha256=manifest_sha256)
    # A GPU that the config did not ask for belongs to somebody else.
    return bundle, "cuda" if assigned.get("GPU", 0) > 0 and torch.cuda.is_available() else "cpu"
