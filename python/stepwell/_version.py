"""The one place of the version; stepwell.h's STW_VERSION is tested against it."""

__version__ = "0.1.0"
