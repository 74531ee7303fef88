"""Check built distributions: the wheels of two builds are equal byte for byte, and their metadata is publishable."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet


def takes_this_core(specifier: SpecifierSet) -> bool:
    """Whether ``specifier`` means ``>=0.1.0.dev0,<0.2``, however the build backend writes that."""
    takes = {version for version in ("0.0.9", "0.1.0.dev0", "0.1.0", "0.1.7", "0.2.0.dev0", "0.2.0") if
             specifier.contains(version, prereleases=True)}  # fmt: skip
    return takes == {"0.1.0.dev0", "0.1.0", "0.1.7"}


def problems_of(wheel: Path, twin: Path) -> list[str]:
    """Return what is wrong with ``wheel``; ``twin`` is the same wheel from another build."""
    found = []
    if not twin.is_file():
        found.append("the second build did not make it")
    elif hashlib.sha256(wheel.read_bytes()).digest() != hashlib.sha256(twin.read_bytes()).digest():
        found.append("two builds differ")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(metadata_name).decode()
    lines = [line.removeprefix("Requires-Dist:") for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    requirements = [Requirement(line) for line in lines]
    found += [f"local requirement: {requirement}" for requirement in requirements if requirement.url]
    if "License-Expression: Apache-2.0" not in metadata:
        found.append("no Apache-2.0 licence expression")
    if not any(name.endswith("/py.typed") for name in names):
        found.append("no py.typed")
    if not any("/licenses/LICENSE" in name for name in names):
        found.append("no LICENSE inside")
    core = [requirement.specifier for requirement in requirements if requirement.name == "slim-core"]
    if not wheel.name.startswith("slim_core-") and not (core and all(map(takes_this_core, core))):
        found.append("does not require slim-core>=0.1.0.dev0,<0.2")
    return found


def main(first: str, second: str) -> int:
    wheels = sorted(Path(first).glob("*.whl"))
    found = {wheel.name: problems_of(wheel, Path(second) / wheel.name) for wheel in wheels}
    failures = [f"{name}: {problem}" for name, problems in found.items() for problem in problems]
    print("\n".join(failures) if failures else f"{len(wheels)} wheels are reproducible and publishable")
    return 1 if failures or not wheels else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
