from . import (
    applications,
    circuits,
    compare,
    core,
    features,
    functions,
    guard,
    measure,
    papers,
    probes,
    report,
    signal,
    steering,
    store,
    world,
)
from .core import edits, errors, metrics, reducers
from .core.loading import load
from .core.model import Model
from .core.recording import Recording
from .core.result import Result
from .core.sites import Site
from .core.task import Task
from .store.store import Store

__all__ = [
    "Model",
    "Recording",
    "Result",
    "Site",
    "Store",
    "Task",
    "applications",
    "circuits",
    "compare",
    "core",
    "edits",
    "errors",
    "features",
    "functions",
    "guard",
    "load",
    "measure",
    "metrics",
    "papers",
    "probes",
    "reducers",
    "report",
    "signal",
    "steering",
    "store",
    "world",
]

__version__: str
