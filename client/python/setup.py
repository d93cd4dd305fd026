"""Generates the stubs before the package is gathered; everything else is in pyproject.toml."""
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parent))


class BuildWithStubs(build_py):
    def run(self):
        import generate
        generate.main()
        super().run()


setup(cmdclass={"build_py": BuildWithStubs})
