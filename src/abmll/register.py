"""Makes PEFT know the tuner "ABMLL": at once if PEFT is loaded, else when it is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
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


class _ThenRegister(Loader):
    """Loads PEFT as its own loader does, then registers."""

    def __init__(self, loader: Loader, finder: MetaPathFinder) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the real loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run PEFT's own `__init__`, its real loader back in place, then register with it and leave no trace."""
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        register()


class _PeftFinder(MetaPathFinder):
    """Waits for `import peft`. It stays until PEFT is loaded: `find_spec` alone, "is PEFT installed?", is no import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of PEFT as the other finders give it, its loader wrapped; None for every other module."""
        if fullname != "peft":
            return None
        others = (f.find_spec for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
        spec = next((found for find in others if (found := find(fullname, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self)
        return spec


def register_lazily() -> None:
    """Register now if PEFT is loaded, else as soon as somebody imports it: abmll itself stays quick to import."""
    if "peft" in sys.modules:
        register()
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())
