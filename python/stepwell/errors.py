"""The errors a user meets. Each message names the file, node, tensor or row and says what to do."""

from stepwell.text import printable


class StepwellError(Exception):
    """Base of every error that stepwell raises on purpose; the command line prints it and exits
    with 1.

    Its text may quote a file: wherever it is shown, characters that cannot be seen are escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), "\n")


class ImportRefused(StepwellError):
    """The source model holds something that cannot be streamed or is not understood."""


class SampleError(StepwellError):
    """Sample data (calibration, test or live input) has the wrong shape, text in numbers, NaN, ..."""


class SampleWarning(UserWarning):
    """Sample data can be read in two ways: says which one was taken, and how to take the other."""


class QuantizeError(StepwellError):
    """No integer model that passes the overflow proof exists for these weights."""


class ModelError(StepwellError):
    """A .stw file or a state snapshot is damaged, foreign, or of another format."""


class WrongUse(StepwellError):
    """A word that is none of those there are, or options that do not go together; the command line
    exits with 2.
    """


class UnknownWord(QuantizeError, WrongUse):
    """There is no such precision, no such rule of calibration, or no recurrent layer of that name
    in the model.
    """


class UnknownMetric(SampleError, WrongUse):
    """There is no metric of that name."""


class BuildError(StepwellError):
    """A board image could not be built: unknown board, no compiler, model too large, compiler
    error.
    """


class UnknownBoard(BuildError, WrongUse):
    """There is no board of that name."""


class PortMissing(BuildError, WrongUse):
    """A program that flashes needs to be told the port."""


class LinkError(StepwellError):
    """The board at the other end of the link is silent, noisy, or runs something else."""


class FidelityWarning(UserWarning):
    """A stream of the model gives something else than its source was trained to give, by
    notes["fidelity"].
    """
