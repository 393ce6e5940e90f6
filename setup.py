"""Finds the packages: folders at the top level are sub-packages of `wvq`, which pyproject.toml cannot say."""

from setuptools import find_packages, setup

ROOMS = ("tokenizer", "generator", "pipelines", "eval", "configs")

packages = find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")])
setup(packages=[*find_packages(include=["wvq", "wvq.*"]), *(f"wvq.{package}" for package in packages)])
