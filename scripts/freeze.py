#!/usr/bin/env python3
"""Print constraints.txt: the installed versions of all direct and indirect requirements of ringexp[dev].

    python scripts/freeze.py > scripts/constraints.txt

torch decides the versions of triton and of CUDA's libraries, so these are left out.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LEFT_OUT = ("ringexp", "triton")


def closure(name: str, extras: frozenset[str], versions: dict[str, str]) -> None:
    """Add a package and its requirements to `versions`, but not packages that are not installed."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return
    versions[canonicalize_name(name)] = package.version.partition("+")[0]
    for text in package.requires or []:
        need = Requirement(text)
        marker = need.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})
        if wanted and (need.extras or canonicalize_name(need.name) not in versions):
            closure(need.name, frozenset(need.extras), versions)


def main() -> None:
    versions: dict[str, str] = {}
    closure("ringexp", frozenset({"dev"}), versions)
    print(f"# scripts/freeze.py on Python {platform.python_version()}: versions that the tests pass with.")
    print("# pip install -c scripts/constraints.txt 'ringexp[dev]'")
    for name, version in sorted(versions.items()):
        if name not in LEFT_OUT and not name.startswith(("nvidia-", "cuda-")):
            print(f"{name}=={version}")


if __name__ == "__main__":
    main()
