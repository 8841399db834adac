#!/usr/bin/env python3
"""Print constraints.txt: the versions in this environment of all that ringexp[dev] needs, directly or not.

    python scripts/freeze.py > scripts/constraints.txt

triton is left to torch, whose CUDA builds ask for one version of it; so are CUDA's libraries.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LEFT_OUT = ("ringexp", "triton")


def closure(name: str, extras: frozenset[str], found: dict[str, str]) -> None:
    """Add `name` and what it needs to `found`; what is not installed is not needed on this platform."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return
    found[canonicalize_name(name)] = package.version.partition("+")[0]
    for text in package.requires or []:
        need = Requirement(text)
        marker = need.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})
        if wanted and (need.extras or canonicalize_name(need.name) not in found):
            closure(need.name, frozenset(need.extras), found)


def main() -> None:
    found: dict[str, str] = {}
    closure("ringexp", frozenset({"dev"}), found)
    print(f"# scripts/freeze.py on Python {platform.python_version()}: versions that the tests pass with.")
    print("# pip install -c scripts/constraints.txt 'ringexp[dev]'")
    for name, version in sorted(found.items()):
        if name not in LEFT_OUT and not name.startswith(("nvidia-", "cuda-")):
            print(f"{name}=={version}")


if __name__ == "__main__":
    main()
