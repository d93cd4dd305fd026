"""Generates the stubs before the package is looked at; everything else is in pyproject.toml."""
import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))
import generate  # noqa: E402

generate.main()
setup()
