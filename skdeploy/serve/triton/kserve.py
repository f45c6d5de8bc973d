"""A KServe InferenceService of a model repository: what KServe requires is checked here, offline."""

from __future__ import annotations

import json
import re
from typing import Final

from skdeploy.core.errors import UsageError
from skdeploy.core.version import __version__

# KServe's storage initializer (python/storage of kserve/kserve, and docs/modelserving/storage); oci:// is its modelcar.
SCHEMES: Final = ("s3", "gs", "pvc", "https", "http", "hdfs", "webhdfs", "hf", "oci")
DNS_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # KServe's webhook asks for a letter first
LONGEST: Final = 63  # of a DNS label, RFC 1123


def service(name: str, storage_uri: str | None, *, gpu: bool = False) -> str:
    """The YAML of an InferenceService that serves the repository at ``storage_uri`` by Triton. Raises UsageError."""
    if not storage_uri:
        raise UsageError(
            "--kserve needs --storage-uri: where the cluster finds the repository",
            advice="such as --storage-uri s3://bucket/models or pvc://claim/models, and copy the repository there",
        )
    scheme, colon, rest = storage_uri.partition("://")
    if not colon or scheme not in SCHEMES or not rest or not storage_uri.isprintable() or " " in storage_uri:
        raise UsageError(
            f"--storage-uri {storage_uri}: KServe does not read this",
            advice=f"give an address with one of {', '.join(f'{each}://' for each in SCHEMES)}",
        )
    service_name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not DNS_LABEL.fullmatch(service_name) or len(service_name) > LONGEST:
        raise UsageError(
            f"--name {name} cannot name a Kubernetes service",
            advice=f"begin with a letter, and use at most {LONGEST} letters, digits and dashes",
        )
    limits = '      resources:\n        limits:\n          nvidia.com/gpu: "1"\n' if gpu else ""
    return (
        f"# Written by `skdeploy triton`, skdeploy {__version__}. Change it as you like.\n"
        "apiVersion: serving.kserve.io/v1beta1\n"
        "kind: InferenceService\n"
        "metadata:\n"
        f"  name: {service_name}\n"
        "spec:\n"
        "  predictor:\n"
        "    model:\n"
        "      modelFormat:\n"
        "        name: triton\n"
        "      protocolVersion: v2\n"
        f"      storageUri: {json.dumps(storage_uri)}\n"
        f"{limits}"
    )
