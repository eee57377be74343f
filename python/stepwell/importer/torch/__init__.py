"""torch module -> float graph, proven by running both.

``tracing`` runs the module's forward on proxies; ``recurrent``, ``layers``, ``activations``,
``plumbing`` and ``arithmetic`` say what each torch module and function does to them (tables in
``handlers``); ``signals`` collects the layers; ``conversion`` finds out how the module takes its
input and makes the graph; ``replay`` compares. Weights are read, nothing is unrolled, and the
module is not changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepwell.errors import ImportRefused
from stepwell.importer.outputs import Names, as_names

if TYPE_CHECKING:
    import torch

    from stepwell.importer.imported import Imported

__all__ = ["import_torch"]


def import_torch(
    module: torch.nn.Module,
    verify: bool = True,
    *,
    steps: int | None = None,
    n_in: int | None = None,
    outputs: Names = None,
) -> Imported:
    """Read a torch module, as it is in eval mode.

    ``steps``: the length of the windows it was trained on, for layers that see a whole window at
    once (attention, mean over time). ``n_in``: how many inputs it takes, where no layer that reads
    them tells. ``outputs``: names of the results of forward that the stream shall have, side by
    side in this order: the keys of a dict, the fields of a namedtuple or dataclass, else output0,
    output1 and so on; None: all but states.

    Raises ImportRefused, naming the submodule or the fx node and the reason, when something in it
    cannot be streamed or is not understood, or when the stream differs from the module by more than
    1e-5 of the output's range.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportRefused("torch modules need torch: pip install torch") from error
    from stepwell.importer.torch.conversion import converted

    for name, number in (("steps", steps), ("n_in", n_in)):
        if number is not None and (
            not isinstance(number, int) or isinstance(number, bool) or number < 1
        ):
            raise ImportRefused(f"{name} must be a positive integer, it is {number!r}")
    wanted = as_names(outputs)
    try:
        return converted(module, verify, steps, n_in, wanted)
    except ImportRefused:
        raise
    except Exception as error:  # a module runs the user's code: there is no telling what it raises
        raise ImportRefused(
            f"{type(module).__name__} cannot be read ({type(error).__name__}: "
            f"{str(error)[:300]}): export it with torch.onnx.export and convert the file, or give "
            "the submodules as an nn.Sequential"
        ) from error
