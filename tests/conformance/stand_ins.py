"""Stand-ins for what the engines import and configuration never calls: packages, and kernels that need a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class _AnyClass(type):
    """A class whose class attributes are made when they are asked for, and stay."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _AnyClass(name, (Anything,), {})
        setattr(cls, name, made)
        return made


class Anything(metaclass=_AnyClass):
    """Takes any call, has any attribute; as a decorator it leaves the function alone."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.__dict__.update(named)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return arguments[0] if len(arguments) == 1 and callable(arguments[0]) and not named else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __class_getitem__(cls, item: Any) -> Any:
        return cls

    def __getitem__(self, item: Any) -> Any:
        return Anything()

    def __mro_entries__(self, bases: Any) -> tuple[type]:
        return (object,)

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__


class _AnyModule(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - what makes it a package
    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _AnyClass(name, (Anything,), {})
        setattr(self, name, made)
        return made


class _Finder(MetaPathFinder, Loader):
    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        known = any(name == own or name.startswith(f"{own}.") for own in self.names)
        return ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _AnyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in_for(*names: str) -> None:
    """These modules, and what lies below them, can be imported from now on; a package that is installed stays."""
    absent = {name for name in names if "." in name or find_spec(name) is None}
    sys.meta_path.insert(0, _Finder(absent))
