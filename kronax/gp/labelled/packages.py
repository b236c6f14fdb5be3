"""Packages that labelled data come from: optional extras."""

from typing import Any


def xarray() -> Any:
    """The package.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise ImportError(
            'Datasets need xarray, which is not installed: pip install "kronax[xarray]".'
        ) from error
    return xarray


def pandas() -> Any:
    """The package.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            'Tables need pandas, which is not installed: pip install "kronax[pandas]".'
        ) from error
    return pandas


def cftime() -> Any:
    """The package.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import cftime
    except ImportError as error:
        raise ImportError(
            'Dates of its calendars need cftime: pip install "kronax[xarray]".'
        ) from error
    return cftime
