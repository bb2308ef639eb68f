"""How the registries find what they register: by what the modules of a package declare."""

import pkgutil
from importlib import import_module
from typing import Any


def declared(package: str, name: str) -> list[Any]:
    """What every module of a package declares as `name`, in the order of the modules' names."""
    modules = pkgutil.iter_modules(import_module(package).__path__)
    return [getattr(import_module(f"{package}.{module.name}"), name) for module in modules]
