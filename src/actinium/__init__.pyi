from . import circuits, core, measure, papers, report, world
from .core import edits, errors, metrics, reducers
from .core.loading import load
from .core.model import Model
from .core.recording import Recording
from .core.result import Result
from .core.sites import Site
from .core.task import Task

__all__ = [
    "Model",
    "Recording",
    "Result",
    "Site",
    "Task",
    "circuits",
    "core",
    "edits",
    "errors",
    "load",
    "measure",
    "metrics",
    "papers",
    "reducers",
    "report",
    "world",
]

__version__: str
