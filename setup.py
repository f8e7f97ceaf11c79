"""Packages the config pages as `hybrid.configs`; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["hybrid", "hybrid.*"]), "hybrid.configs"],
    package_dir={"hybrid.configs": "configs"},
)
