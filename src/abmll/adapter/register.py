"""Makes PEFT know the tuner "ABMLL": at once if PEFT is loaded, else when it is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def register() -> None:
    """Register now (imports PEFT). Doing it twice does no harm."""
    from peft.utils.peft_types import PeftType, register_peft_method

    if "ABMLL" not in PeftType.__members__:
        # PeftType is a closed enum and the official registration refuses names outside it: add a real member.
        member = str.__new__(PeftType, "ABMLL")
        member._name_, member._value_ = "ABMLL", "ABMLL"
        type.__setattr__(PeftType, "ABMLL", member)
        PeftType._member_names_.append("ABMLL")
        PeftType._member_map_["ABMLL"] = member
        PeftType._value2member_map_["ABMLL"] = member
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if PeftType.ABMLL not in PEFT_TYPE_TO_CONFIG_MAPPING:
        from abmll.adapter.config import AbmllConfig
        from abmll.adapter.model import AbmllModel

        register_peft_method(name="abmll", config_cls=AbmllConfig, model_cls=AbmllModel, prefix="abmll_")


class _AfterPeft(Loader):
    """Loads PEFT as its own loader does, then registers."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the real loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run PEFT's own `__init__`, then register with it."""
        self.loader.exec_module(module)
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        register()


class _PeftFinder(MetaPathFinder):
    """Waits for `import peft`, and gets out of the way."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of PEFT with the loader wrapped; None for every other module."""
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _AfterPeft(spec.loader)
        return spec


def register_lazily() -> None:
    """Register now if PEFT is loaded, else as soon as somebody imports it: abmll itself stays quick to import."""
    if "peft" in sys.modules:
        register()
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())
