"""Builds the cffi extension and ships the C sources and the firmware inside the package; the rest
is in pyproject.toml.
"""

import sys
import sysconfig
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "python" / "stepwell"))


def package_tree(package: str, folder: str) -> list[str]:
    """``package`` and one sub-package for every folder below ``folder``: all files of the C trees
    are package data.
    """
    below = (
        path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_dir()
    )
    return [package, *(".".join([package, *path.parts]) for path in sorted(below))]


def python_packages() -> list[str]:
    inits = (
        path.parent.relative_to(ROOT / "python") for path in (ROOT / "python").rglob("__init__.py")
    )
    return sorted(".".join(path.parts) for path in inits)


# cffi builds against the stable ABI, which a free-threaded Python lacks: one wheel serves every
# Python from 3.10 on.
STABLE_ABI = (
    {}
    if sysconfig.get_config_var("Py_GIL_DISABLED")
    else {"bdist_wheel": {"py_limited_api": "cp310"}}
)

c_packages = package_tree("stepwell.csrc", "csrc") + package_tree("stepwell.firmware", "firmware")
setup(
    packages=python_packages() + c_packages,
    package_data={name: ["*"] for name in c_packages}
    | {"stepwell": ["*.c", "*.h", "*.json", "py.typed", "templates/*", "demo/*"]},
    options=STABLE_ABI,
    cffi_modules=["python/stepwell/_ffi_build.py:ffi"],
)
