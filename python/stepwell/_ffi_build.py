"""Builds stepwell._engine: the C library and _host.c behind cffi (API mode). Run by setup.py.

The declarations are read from the headers themselves, so Python and C cannot drift apart.
"""

import platform
import re
import sys
from pathlib import Path

from cffi import FFI

HERE = Path("python/stepwell")
CSRC = Path("csrc")
# relative to the project's root, where setup.py runs: setuptools refuses absolute source paths
SOURCES = [
    str(path)
    for path in [*sorted(CSRC.glob("*.c")), *sorted(HERE.glob("_*.c"))]
    if path.name != "_engine.c"
]
HEADERS = [str(path) for path in [*sorted(CSRC.glob("*.h")), *sorted(HERE.glob("_*.h"))]]
DECLARING = [CSRC / "stepwell.h", *sorted(HERE.glob("_*.h"))]


def declarations(header: Path) -> str:
    """The part of a header between its @cdef marks, without preprocessor lines."""
    text = header.read_text()
    marked = re.search(r"@cdef-begin.*?\*/(.*?)/\* @cdef-end", text, re.DOTALL)
    if marked is None:
        raise ValueError(f"{header}: no @cdef-begin ... @cdef-end marks")
    return re.sub(r"^\s*#.*$", "", marked.group(1), flags=re.MULTILINE).replace("STW_ROM ", "")


# gcc and clang on x86-64; whether the CPU has AVX2 is asked at run time, so that wheels stay
# portable
HAS_AVX2 = sys.platform != "win32" and platform.machine() in ("x86_64", "AMD64")

ffi = FFI()
for header in DECLARING:
    ffi.cdef(declarations(header))
ffi.set_source(
    "stepwell._engine",
    "\n".join(f'#include "{header.name}"' for header in DECLARING),
    sources=SOURCES,
    include_dirs=[str(CSRC), str(HERE)],
    depends=HEADERS,
    # float results must not depend on the compiler's taste for fused multiply-add
    extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-std=c99", "-ffp-contract=off"],
    define_macros=[("STW_WITH_AVX2", str(int(HAS_AVX2)))],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
