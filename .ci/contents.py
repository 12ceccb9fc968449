"""Checks that the wheel and the sdist in a folder contain only files that git knows."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

PACKAGE = "monocloud_async"
ADDED = {"pyproject.toml", "PKG-INFO", ".gitignore"}  # by hatchling, to every sdist

(wheel,) = Path(sys.argv[1]).glob("*.whl")
(sdist,) = Path(sys.argv[1]).glob("*.tar.gz")
known = subprocess.check_output(["git", "ls-files", "-z"], text=True).split("\0")
known = [name for name in known if "/." not in name]  # without dotfiles
targets = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
roots = targets["sdist"]["only-include"]
shared = targets["wheel"]["shared-data"].values()


def under(*roots: str) -> set[str]:
    return {name for name in known if any(name == r or name.startswith(f"{r}/") for r in roots)}


def same(archive: Path, found: set[str], expected: set[str]) -> None:
    if found != expected:
        extra, missing = sorted(found - expected), sorted(expected - found)
        sys.exit(f"{archive.name}: too much: {extra}; missing: {missing}")
    print(f"{archive.name}: {len(found)} files")


with zipfile.ZipFile(wheel) as opened:
    release = "-".join(wheel.name.split("-")[:2])
    names = {name for name in opened.namelist() if not name.startswith(f"{release}.dist-info/")}
same(wheel, names, under(PACKAGE) | {f"{release}.data/data/{name}" for name in shared})

with tarfile.open(sdist) as unpacked:
    top = sdist.name.removesuffix(".tar.gz") + "/"
    names = {name.removeprefix(top) for name in unpacked.getnames()}
same(sdist, names, under(*roots) | ADDED)
