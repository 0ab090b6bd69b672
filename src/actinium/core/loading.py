"""Where models come from: the hub, a folder, a factory in a file, a module in memory, or the package itself."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actinium.core.adapter import is_adapter, read_adapter
from actinium.core.errors import ActiniumWarning, InputError, LoadError, nearest, unknown
from actinium.core.model import Model

__all__ = ["load", "shipped", "shipped_names"]

WORLD = Path(__file__).resolve().parent.parent / "world" / "weights"
COMPILED = WORLD.parent / "compiled"
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def shipped_names() -> list[str]:
    """Names of the models that the package ships or compiles, without ``world:``."""
    whole, adapters = WORLD.glob("*/config.json"), WORLD.glob("*/adapter_config.json")
    return sorted([*(p.parent.name for p in (*whole, *adapters)), *_compiled_names()])


def _compiled_names() -> list[str]:
    return [p.stem for p in COMPILED.glob("[a-z]*.py")]


def shipped(name: str) -> Path:
    """The folder of a shipped model.

    Raises:
        LoadError: if there is none of this name; the nearest is offered.
    """
    folder = WORLD / name
    if not name or not ((folder / "config.json").is_file() or is_adapter(folder)):
        raise LoadError(unknown("shipped model", f"world:{name}", [f"world:{n}" for n in shipped_names()]))
    return folder


def load(
    source: Any,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    device_map: Any = None,
    tp_plan: str | None = None,
) -> Model:
    """Load a model.

    Args:
        source: a hub name ("gpt2"), a folder in Hugging Face format, a folder with an adapter of PEFT (it is merged
            into its base), "world:lm" (shipped), "world:induction" (compiled), "file.py:function" or
            "package.module:function" (a factory that returns an `nn.Module`), an `nn.Module`, or a `Model`.
        device: where to put it; "cpu" by default.
        dtype: type of its weights; by default float32 on a CPU and the checkpoint's own elsewhere.
        tokenizer: a tokenizer, or the name or folder of one; by default the model's own.
        trust_remote_code: run code that comes with a hub model.
        device_map: spread a hub model or folder over devices, as transformers does ("auto", or a dict); needs
            accelerate.
        tp_plan: split it over the processes of `torchrun`, as transformers does ("auto").
    Returns:
        Model, in evaluation mode unless a module was passed, whose mode is kept.
    Raises:
        LoadError: if it cannot be found or read; weights are read from safetensors only, never unpickled.
        InputError: for a wrong type, device or dtype, or a way of spreading that the source does not have.
    """
    kind = _dtype(dtype)
    spread = {k: v for k, v in (("device_map", device_map), ("tp_plan", tp_plan)) if v is not None}
    if spread and device is not None:
        raise InputError(f"pass device or {' and '.join(spread)}, not both")
    place = _device(device)
    if spread and (not isinstance(source, str | Path) or (":" in str(source) and not Path(source).exists())):
        raise InputError(f"{' and '.join(spread)} needs a hub name or a folder, for transformers loads it in parts")
    if isinstance(source, Model):
        source.module.to(device=place if device is not None else None, dtype=kind)
        return source
    if isinstance(source, nn.Module):
        if device is not None or kind is not None:
            source.to(device=place if device is not None else None, dtype=kind)
        return Model(source, _tokenizer(tokenizer))
    if not isinstance(source, str | Path):
        raise InputError(f"cannot load a {type(source).__name__}; pass a name, a folder or an nn.Module")
    text = str(source)
    if not text.strip():
        raise InputError("the model's name is empty")
    if text.startswith("world:") and (name := text[len("world:") :]) in _compiled_names():
        return _compiled(name, place, kind, tokenizer)
    if text.startswith("world:"):
        return _pretrained(shipped(text[len("world:") :]), text, place, kind, tokenizer, False)
    if ":" in text and not Path(text).exists():
        return _factory(text, place, kind, tokenizer)
    return _pretrained(
        Path(text) if Path(text).exists() else text, text, place, kind, tokenizer, trust_remote_code, spread
    )


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise InputError(unknown("dtype", dtype, DTYPES))
    return DTYPES[dtype]


def _device(device: str | torch.device | None) -> torch.device:
    try:
        place = torch.device(device or "cpu")
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return place


def _tokenizer(given: Any) -> Any:
    if not isinstance(given, str | Path):
        return given
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(given))
    except Exception as error:
        raise LoadError(f"cannot load the tokenizer {str(given)!r}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _factory(text: str, device: torch.device, dtype: torch.dtype | None, tokenizer: Any) -> Model:
    where, _, name = text.rpartition(":")
    path = Path(where)
    try:
        if path.suffix == ".py":
            if not path.is_file():
                raise LoadError(f"no file {where!r} (for a factory, pass 'file.py:function')")
            spec = importlib.util.spec_from_file_location(f"actinium_factory_{path.stem}", path)
            assert spec is not None and spec.loader is not None
            holder = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = holder
            spec.loader.exec_module(holder)
        else:
            holder = importlib.import_module(where)
    except LoadError:
        raise
    except ImportError as error:
        raise LoadError(f"cannot import {where!r} for the model {text!r}: {error}{_nearest_shipped(text)}") from error
    except (Exception, SystemExit) as error:
        raise LoadError(f"{where} failed: {type(error).__name__}: {_first_line(error)}") from error
    make = getattr(holder, name, None)
    if make is None:
        raise LoadError(f"{where}: {unknown('function', name, [n for n in vars(holder) if not n.startswith('_')])}")
    try:
        made = make if isinstance(make, nn.Module) else make()
    except (Exception, SystemExit) as error:
        raise LoadError(f"{text} failed: {type(error).__name__}: {_first_line(error)}") from error
    module, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if isinstance(module, Model):
        return module
    if not isinstance(module, nn.Module):
        raise LoadError(f"{text} returned a {type(module).__name__}; a factory returns a torch.nn.Module")
    return Model(module.to(device=device, dtype=dtype).eval(), _tokenizer(tokenizer) or own, name=text)


def _compiled(name: str, device: torch.device, dtype: torch.dtype | None, tokenizer: Any) -> Model:
    """A model whose weights are written by a program of the world; each has its file."""
    made: Model = importlib.import_module("actinium.world.compiled").build(name).model
    return Model(made.module.to(device=device, dtype=dtype), _tokenizer(tokenizer) or made.tokenizer, name=made.name)


def _model_class(folder: Path | str, config: Any) -> Any:
    import transformers

    for name in getattr(config, "architectures", None) or []:
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    for auto in ("AutoModelForCausalLM", "AutoModelForImageClassification", "AutoModelForMaskedLM"):
        if type(config) in getattr(transformers, auto)._model_mapping:
            return getattr(transformers, auto)
    return transformers.AutoModel


def _pretrained(
    folder: Path | str,
    name: str,
    device: torch.device,
    dtype: torch.dtype | None,
    tokenizer: Any,
    trust: bool,
    spread: dict[str, Any] | None = None,
) -> Model:
    import transformers

    if isinstance(folder, Path) and is_adapter(folder):
        return _adapted(folder, name, device, dtype, tokenizer, trust, spread)
    _check_folder(folder)
    if _is_image_network(folder):
        if spread:
            raise InputError(f"{name} is too small to be spread over devices; pass device")
        module = importlib.import_module("actinium.world.image_models").read_cnn(folder)
        return Model(module.to(device=device, dtype=dtype), _tokenizer(tokenizer), name=name)
    options: dict[str, Any] = {"trust_remote_code": trust}
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), **options)
    except Exception as error:
        raise LoadError(_not_found(name, error)) from error
    cls = transformers.AutoModelForCausalLM if trust else _model_class(folder, config)
    if dtype is None and device.type == "cpu" and not spread:
        dtype = torch.float32
    try:
        with _quiet():
            loaded: Any = cls.from_pretrained(
                str(folder),
                dtype=dtype or "auto",
                use_safetensors=True,
                output_loading_info=True,
                **options,
                **(spread or {}),
            )
    except Exception as error:
        raise LoadError(f"cannot load the weights of {name!r}: {_first_line(error)}") from error
    module, report = loaded
    missing = sorted(report.get("missing_keys") or [])
    if missing:
        warnings.warn(
            f"{name}: {len(missing)} weights are missing and were drawn at random: {', '.join(missing[:4])}",
            ActiniumWarning,
            stacklevel=3,
        )
    own, processor = _companions(folder, module)
    placed = module if spread else module.to(device)
    model = Model(placed.eval(), _tokenizer(tokenizer) or own, processor, name)
    _check_tokenizer(model)
    return model


def _adapted(
    folder: Path,
    name: str,
    device: torch.device,
    dtype: torch.dtype | None,
    tokenizer: Any,
    trust: bool,
    spread: dict[str, Any] | None,
) -> Model:
    """The base of an adapter with the adapter merged into its weights."""
    adapter = read_adapter(folder)
    if "tp_plan" in (spread or {}):
        raise InputError("tp_plan cannot split an adapter; merge it into its base with PEFT and load that")
    # A base is a shipped model, a folder or a hub name; a file of weights must not choose code that runs.
    ours = adapter.base.startswith("world:")
    base: Path | str = shipped(adapter.base[len("world:") :]) if ours else adapter.base
    base = Path(base) if Path(base).exists() else base
    if isinstance(base, Path) and is_adapter(base):
        raise LoadError(f"{name} is an adapter of {adapter.base}, which is an adapter itself; merge that one with PEFT")
    own = folder if tokenizer is None and (folder / "tokenizer_config.json").is_file() else tokenizer
    model = _pretrained(base, adapter.base, device, dtype, own, trust, spread)
    adapter.merge(model.module)
    return Model(model.module, model.tokenizer, model.processor, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own progress bar, which small models flash past."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _check_folder(folder: Path | str) -> None:
    if not isinstance(folder, Path):
        # A hub name has one slash at most: what cannot be one is not asked for over the network.
        if folder.startswith((".", "/", "~")) or folder.count("/") > 1:
            raise LoadError(f"no model {folder!r}: there is no such folder")
        return
    if not folder.is_dir():
        raise LoadError(f"{folder} is a file; pass the folder that holds config.json and model.safetensors")
    path = folder / "config.json"
    if not path.is_file():
        raise LoadError(f"{folder} has no config.json; a Hugging Face model folder was expected")
    try:
        json.loads(path.read_text(encoding="utf8"))
    except (ValueError, OSError) as error:
        raise LoadError(f"{path} is damaged: {error}") from None


def _is_image_network(folder: Path | str) -> bool:
    """Whether a folder holds a convolutional network of the world, whose class is the package's own."""
    if not isinstance(folder, Path):
        return False
    content = json.loads((folder / "config.json").read_text(encoding="utf8"))
    return isinstance(content, dict) and content.get("model_type") == "actinium-cnn"


def _nearest_shipped(name: str) -> str:
    near = nearest(name, [f"world:{n}" for n in shipped_names()])
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _not_found(name: str, error: Exception) -> str:
    hint = _nearest_shipped(name)
    return f"no model {name!r}: it is no folder here, and the hub did not give it ({_first_line(error)}){hint}"


def _companions(folder: Path | str, module: nn.Module) -> tuple[Any, Any]:
    """The tokenizer and the image processor that come with a model, each None if it has none."""
    import transformers

    takes_images = getattr(module, "main_input_name", "") == "pixel_values" or hasattr(module, "vision_model")
    tokenizer = processor = None
    if getattr(module, "main_input_name", "") != "pixel_values":
        tokenizer = _optional(transformers.AutoTokenizer, folder)
    if takes_images:
        processor = _optional(transformers.AutoImageProcessor, folder)
    return tokenizer, processor


def _optional(auto: Any, folder: Path | str) -> Any:
    try:
        return auto.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, ImportError):
        # A checkpoint without a tokenizer or processor is complete in itself: it then takes ids or tensors.
        return None


def _check_tokenizer(model: Model) -> None:
    size = getattr(model.config, "vocab_size", None)
    if model.tokenizer is None or not isinstance(size, int):
        return
    largest = max(model.tokenizer.get_vocab().values(), default=0)
    if largest >= size:
        raise LoadError(
            f"the tokenizer of {model.name!r} has token ids up to {largest}, but the model knows {size} tokens; "
            "pass the tokenizer it was trained with"
        )
