"""Every error that a user can cause, as one tree.

    MedfuseError                    1
    ├ InputError                    3   what was given to read
    │ ├ UnreadableFile                  no reader knows the content, or the content is damaged
    │ ├ SeriesError                     which files make up the volume is not clear
    │ ├ MissingAttribute                the header lacks something that must not be guessed
    │ ├ UnsupportedImage                understood, but not usable as a volume (or not here)
    │ └ PatientMismatch                 the two scans belong to different patients
    ├ GeometryError                 4   where voxels lie
    │ ├ GridMismatch                    two volumes that must share a grid do not
    │ └ NoOverlap                       nothing of one volume lies inside the other
    ├ RegistrationError             5   no alignment was found, or none that may be used
    ├ WeightsError                  6   the network's weights are absent, altered or of another network
    ├ OutputError                   7   the result could not be written
    └ NetworkError                  8   another node or service did not answer, or refused

The number is the exit code of the command line; 2 is the command line's own usage error. A message says what was
expected, what was found and where; `hint` says what to do. Neither ever holds patient data. A programmer's mistake
stays a `ValueError` or `TypeError`. `MedfuseWarning` tells what a person should know although the work goes on.
"""

from __future__ import annotations


class MedfuseWarning(Warning):
    """Something that a person should know before trusting a result; one line, without patient data."""


class MedfuseError(Exception):
    """Base of all errors that a user can cause.

    Args:
        message: What was expected, what was found, where. One line, without patient data.
        hint: What to do about it, as an imperative. One line, may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(one_line(message))
        self.hint = one_line(hint)

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}. {self.hint}" if self.hint else message


def one_line(text: str) -> str:
    """The text without what would break its line or steer a terminal: a file's name may hold anything."""
    return "".join(sign if sign.isprintable() else " " if sign.isspace() else "?" for sign in text)


class InputError(MedfuseError):
    """What was given to read cannot be used."""

    exit_code = 3


class UnreadableFile(InputError):
    """No reader knows the content of a file, or the content is damaged."""


class SeriesError(InputError):
    """Which files make up one volume is not clear: none, several, gaps, duplicates."""


class MissingAttribute(InputError):
    """A header lacks something that must not be guessed."""


class UnsupportedImage(InputError):
    """An image was understood, but cannot be used as the volume that was asked for."""


class PatientMismatch(InputError):
    """The two scans belong to different patients."""


class GeometryError(MedfuseError):
    """Where the voxels lie makes the request impossible."""

    exit_code = 4


class GridMismatch(GeometryError):
    """Two volumes that must share one grid do not."""


class NoOverlap(GeometryError):
    """Nothing of one volume lies inside the other."""


class RegistrationError(MedfuseError):
    """No alignment was found, or none that may be used."""

    exit_code = 5


class WeightsError(MedfuseError):
    """The weights of a network are absent, altered or of another network."""

    exit_code = 6


class OutputError(MedfuseError):
    """The result could not be written; nothing was left behind."""

    exit_code = 7


class NetworkError(MedfuseError):
    """Another node or service did not answer, or refused."""

    exit_code = 8
