"""What each package's runtime dependencies weigh on disk, read from the installed distributions.

Writes ``benchmarks/results/dependency_weight.json``: for every direct requirement of every package its version,
its own installed bytes, and the bytes of everything that it brings and that torch does not bring already.
"""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from slim_core.files import write_json

PACKAGES = ("slim-core", "slim-zoo", "slim-prune", "slim-quant", "slim-latency")
RESULTS = Path(__file__).parent / "results" / "dependency_weight.json"


def own_bytes(name: str) -> int:
    """Bytes of the files that the distribution ``name`` installed."""
    files = metadata.distribution(name).files or []
    paths = {Path(str(file.locate())) for file in files}
    return sum(path.stat().st_size for path in paths if path.is_file())


def requirements(name: str, extra: str = "") -> list[Requirement]:
    """Direct requirements of ``name`` that hold on this machine, those of ``extra`` included."""
    found = [Requirement(text) for text in metadata.requires(name) or []]
    return [req for req in found if req.marker is None or req.marker.evaluate({"extra": extra})]


def closure(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """``name`` and everything that it requires, by canonical name."""
    seen: set[str] = set()
    queue = [(canonicalize_name(name), extra) for extra in (extras or ("",))]
    while queue:
        current, extra = queue.pop()
        if (current not in seen) or extra:
            seen.add(current)
            for req in requirements(current, extra):
                key = canonicalize_name(req.name)
                if key not in seen:
                    queue += [(key, one) for one in (req.extras or {""})]
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS)
    output = parser.parse_args().output
    base = closure("torch")
    rows = []
    for package in PACKAGES:
        extras = sorted(set(metadata.metadata(package).get_all("Provides-Extra") or []))
        for extra in ["", *extras]:
            plain = {req.name for req in requirements(package)} if extra else set()
            for req in requirements(package, extra):
                if req.name.startswith("slim-") or req.name in plain:
                    continue
                brings = closure(req.name, tuple(req.extras)) - (set() if req.name == "torch" else base)
                rows.append({
                    "package": package, "extra": extra, "requirement": req.name, "specifier": str(req.specifier),
                    "version": metadata.version(req.name), "own_bytes": own_bytes(req.name),
                    "with_what_it_brings_bytes": sum(own_bytes(one) for one in brings), "distributions": len(brings),
                })  # fmt: skip
    write_json(output, {"python": platform.python_version(), "platform": platform.platform(), "rows": rows})


if __name__ == "__main__":
    main()
