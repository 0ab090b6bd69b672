"""What every fitted method has in common: scikit-learn's contract for settings, and the check that it was fitted."""

from __future__ import annotations

import inspect
from typing import Any, Self

from actinium.core.errors import InputError, UnknownNameError, unknown

__all__ = ["Estimator"]

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Estimator:
    """A method that is fitted: settings in the constructor and nothing else, values that end in `_` after `fit`.

    A subclass keeps each argument of its constructor under the argument's name, and may name in `fitted` the
    attribute that is there once `fit` was called. Where its constructor takes `**common`, these are the settings of the
    class above, to whose constructor they go, without those that it names in `decided`: these it gives itself.
    """

    fitted: str = ""
    decided: tuple[str, ...] = ()

    @classmethod
    def _names(cls) -> list[str]:
        names: dict[str, None] = {}
        for above in cls.__mro__:
            made = vars(above).get("__init__")
            if made is None:
                continue
            parameters = inspect.signature(made).parameters.values()
            kinds = {p.kind for p in parameters}
            names |= {p.name: None for p in parameters if p.name != "self" and p.kind not in VARIABLE}
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
        return [name for name in names if name not in cls.decided]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Change settings.

        Raises:
            UnknownNameError: there is no such setting.
        """
        known = self._names()
        for name, value in params.items():
            if name not in known:
                raise UnknownNameError(unknown("parameter", name, known))
            setattr(self, name, value)
        return self

    def check_fitted(self) -> None:
        """Refuse to go on before `fit`.

        Raises:
            InputError: `fit` was not called.
        """
        if self.fitted not in vars(self):
            raise InputError(f"this {type(self).__name__} is not fitted yet; call fit first")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_params().items())})"
