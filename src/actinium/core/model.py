"""A module and everything that can be asked of it. The module itself is never changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core import attention, replay, taps
from actinium.core import record as reading
from actinium.core.anatomy import Anatomy, Tower, anatomy_of
from actinium.core.editing import EditAction
from actinium.core.edits import as_edits
from actinium.core.errors import InputError, SiteError
from actinium.core.families import Family
from actinium.core.inputs import Inputs, Tokens, prepare, tokenize
from actinium.core.passes import Generation, Pass, Positions
from actinium.core.recording import Recording
from actinium.core.sites import Site, select, split_call
from actinium.core.taps import Program, Tap

__all__ = ["Model"]


class Model:
    """Wraps any `torch.nn.Module`.

    Args:
        module: the model; it is used as it is.
        tokenizer: a Hugging Face tokenizer, for texts.
        processor: a Hugging Face image processor, for images.
        name: how the model is called in reports.
    Raises:
        InputError: if `module` is no `nn.Module`.
    """

    def __init__(self, module: nn.Module, tokenizer: Any = None, processor: Any = None, name: str = "") -> None:
        if not isinstance(module, nn.Module):
            raise InputError(f"expected a torch.nn.Module, not {type(module).__name__}")
        # A compiled wrapper would not see hooks added after it was traced; the module inside it is the same model.
        self.module: nn.Module = getattr(module, "_orig_mod", module)
        self._compiled = self.module is not module
        self.tokenizer, self.processor = tokenizer, processor
        self.name = name or type(self.module).__name__
        self.anatomy: Anatomy = anatomy_of(self.module)
        self._fingerprint: tuple[Any, str] | None = None

    # What it is -----------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The Hugging Face configuration, or None."""
        return getattr(self.module, "config", None)

    @property
    def family(self) -> Family | None:
        """The row of the family table, or None."""
        return self.anatomy.family

    @property
    def kind(self) -> str:
        """ "causal-lm", "masked-lm", "encoder-decoder", "vision" or "other"."""
        config, tower = self.config, self.anatomy.towers[-1] if self.anatomy.towers else None
        if config is not None and getattr(config, "is_encoder_decoder", False):
            return "encoder-decoder"
        if getattr(self.module, "main_input_name", "") == "pixel_values":
            return "vision"
        if tower is None or "logits" not in self.anatomy.sites or "d_vocab" not in self.anatomy.sites["logits"].dims:
            return "other"
        return "causal-lm" if tower.stack.causal else "masked-lm"

    @property
    def tower(self) -> Tower:
        """The tower whose output is read (the decoder of an encoder-decoder).

        Raises:
            SiteError: if the module is no transformer we can read.
        """
        if not self.anatomy.towers:
            raise SiteError(f"{self.name} has no transformer blocks that we recognise; use 'module:' sites")
        return self.anatomy.towers[-1]

    @property
    def n_layers(self) -> int:
        """Number of blocks, 0 without any."""
        return len(self.anatomy.towers[-1].blocks) if self.anatomy.towers else 0

    @property
    def d_model(self) -> int:
        """Width of the residual stream, 0 without one."""
        return self.anatomy.towers[-1].d_model if self.anatomy.towers else 0

    @property
    def n_heads(self) -> int:
        """Number of query heads, 0 without attention."""
        return self.anatomy.towers[-1].heads if self.anatomy.towers else 0

    @property
    def context(self) -> int | None:
        """Most tokens in one sequence, None where there is no limit."""
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
            value = getattr(self.config, name, None)
            if isinstance(value, int) and value > 0:
                # RoBERTa counts positions from the one after its padding token's id.
                roberta = getattr(self.config, "model_type", "") in ("roberta", "xlm-roberta")
                return value - int(self.config.pad_token_id) - 1 if roberta else value
        return None

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating-point parameter."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.get_default_dtype())

    def fingerprint(self) -> str:
        """SHA-256 over the class, the configuration and every weight; the same for equal models."""
        state = self.module.state_dict(keep_vars=True)
        version = tuple((k, v.data_ptr(), v._version) for k, v in state.items() if isinstance(v, Tensor))
        if self._fingerprint is not None and self._fingerprint[0] == version:
            return self._fingerprint[1]
        total = hashlib.sha256(type(self.module).__name__.encode())
        config = self.config.to_dict() if hasattr(self.config, "to_dict") else {}
        ignored = (
            "_name_or_path",
            "transformers_version",
            "_attn_implementation",
            "architectures",
            "dtype",
            "torch_dtype",
        )
        total.update(
            json.dumps({k: v for k, v in config.items() if k not in ignored}, sort_keys=True, default=str).encode()
        )
        for name in sorted(state):
            value = state[name]
            if not isinstance(value, Tensor):
                continue
            total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            if value.numel() and value.device.type != "meta":
                total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        self._fingerprint = (version, total.hexdigest())
        return self._fingerprint[1]

    def __repr__(self) -> str:
        parts = [type(self.module).__name__]
        if self.n_layers:
            parts.append(f"{self.n_layers} blocks, d_model {self.d_model}, {self.n_heads} heads")
        parts.append(f"{sum(p.numel() for p in self.module.parameters()):,} parameters")
        return f"Model({self.name}: {', '.join(parts)})"

    # Sites ----------------------------------------------------------------------------------------------------

    def sites(self, pattern: str | Sequence[str] = "**") -> list[Site]:
        """What can be read or written.

        Args:
            pattern: standard names, or `module:` and `module_in:` patterns for any module.
        Raises:
            SiteError: if nothing matches.
        """
        if pattern == "**" and not self.anatomy.sites:
            return [self._module_site(n)[0] for n in self._module_names("module:")]
        if pattern == "**":
            return list(self.anatomy.sites.values())
        return [site for site, _, _ in self.resolve(pattern)]

    def has(self, pattern: str | Sequence[str]) -> bool:
        """Whether every name or pattern matches something."""
        try:
            return bool(self.resolve(pattern))
        except SiteError:
            return False

    def resolve(self, at: str | Site | Sequence[str | Site]) -> list[tuple[Site, Tap, int | None]]:
        """The sites, taps and call numbers that names and patterns mean.

        Raises:
            SiteError: if one matches nothing; it says what this architecture has instead.
        """
        if not isinstance(at, str | Site | Sequence):
            raise SiteError(f"a site is a text such as 'blocks.0.resid_post', not {type(at).__name__}")
        given = [at] if isinstance(at, str | Site) else list(at)
        out: dict[tuple[str, int | None], tuple[Site, Tap, int | None]] = {}
        if not given:
            select([], [])
        for one in given:
            text = one.name if isinstance(one, Site) else one
            if not isinstance(text, str):
                raise SiteError(f"a site is a text such as 'blocks.0.resid_post', not {type(text).__name__}")
            name, call = split_call(text)
            if name.startswith(("module:", "module_in:")):
                prefix = name[: name.index(":") + 1]
                for found in select(name, self._module_names(prefix)):
                    out[found, call] = (*self._module_site(found), call)
                continue
            for found in select(name, self.anatomy.sites, self.n_layers, partial(self.anatomy.absent, name)):
                out[found, call] = (self.anatomy.sites[found], self.anatomy.taps[found], call)
        return list(out.values())

    def _module_names(self, prefix: str) -> list[str]:
        return [prefix + path for path, _ in self.module.named_modules() if path]

    def _module_site(self, name: str) -> tuple[Site, Tap]:
        kind, _, path = name.partition(":")
        module = self.module.get_submodule(path)
        root = self.module
        tap = Tap(module, "output" if kind == "module" else "input", root=root, sequence=False)
        return Site(name, (), {}, None, name), tap

    # Reading --------------------------------------------------------------------------------------------------

    def prepare(self, inputs: Any) -> Inputs:
        """Bring inputs to what the module's forward takes. Raises InputError for what cannot be read."""
        return prepare(self.module, inputs, self.tokenizer, self.processor, self.context)

    @contextmanager
    def running(
        self, program: Program, on_pass: Callable[[nn.Module, Pass], None] | None = None, nested: bool = False
    ) -> Iterator[None]:
        """Put a program in force for the block; hooks, attention and watches are undone however it ends.

        Args:
            program: what to do.
            on_pass: called at the start of each forward pass of the whole module.
            nested: the caller already runs compiled code eagerly (replay, once for a whole sweep).
        """
        program.on_pass = on_pass
        towers = self.anatomy.towers
        with ExitStack() as stack:
            if not nested:
                stack.enter_context(self.eagerly())
            stack.callback(attention.close_watches, attention.open_watches())
            stack.enter_context(taps.running(self.module, program, [t.root for t in towers], self._watch))
            yield

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Run compiled parts of the model as plain modules: code traced before a hook came would not call it."""
        compiled = self._compiled or any(
            m.__dict__.get("_compiled_call_impl") or "_orig_mod" in m._modules for m in self.module.modules()
        )
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield

    def _watch(self, tap: Tap) -> Callable[[], None]:
        tower = next(t for t in self.anatomy.towers if t.root is tap.root)
        return attention.install(tap, self.module, tower.stack.calls, tower.heads)

    def record(
        self,
        inputs: Any,
        at: str | Site | Sequence[str | Site],
        *,
        positions: Positions | None = None,
        reduce: Any = None,
        grad: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Recording:
        """Run the model and read activations; the pass ends after the last standard site asked for.

        Args:
            inputs: a text, texts, token ids (batch, pos), `Tokens`, images or a dict of the forward's arguments.
                A text longer than the context is cut into windows, said so in a warning.
            at: site names and patterns. A `module:` site without a call number is read at every call, so the pass
                runs to its end.
            positions: read only these token positions of each text (0 first token, -1 last).
            reduce: a reducer (or {name: reducer}) that is given each batch instead of keeping it: `update(values)`
                with (n, features) over real positions, and `result()`. With `wants_context = True` it gets
                `update(values, context)` with the whole tensor.
            grad: keep the autograd graph.
            device, dtype: where and as what to keep the values; the model's own by default.
            batch_size: rows in a pass, all at once by default.
            progress: show a progress bar.
        Returns:
            Recording: by site, tensors in the site's layout (zeros on padding), or the reducer's result.
        Raises:
            InputError: if inputs or positions cannot be read.
            SiteError: if a site does not exist or was not run.
        """
        return reading.record(
            self,
            self.prepare(inputs),
            at,
            positions=positions,
            reduce=reduce,
            grad=grad,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            progress=progress,
        )

    def recording(
        self, at: Any, *, grad: bool = False, device: Any = None, dtype: torch.dtype | None = None, stop: bool = False
    ) -> Any:
        """Record around any calls of the model, `generate` included; the Recording is filled when the block ends.

        With a key-value cache each site holds the prompt and the new tokens, as one pass over the sequence gives
        (the last token generated was never run through the model and is not there).

        With `stop` the block, and the pass in it, end when every site has been reached, unless something else is
        recorded at the same time: nothing behind is computed, and nothing is returned.
        """
        return reading.recording(self, at, grad=grad, device=device, dtype=dtype, stop=stop)

    # Writing --------------------------------------------------------------------------------------------------

    @contextmanager
    def edit(self, edits: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> Iterator[Model]:
        """Put edits in force for the block, in this thread, for every call of the module.

        Args:
            edits: {site or pattern: edit or edits}, or pairs. A pattern applies the edit at each of its sites.
        Raises:
            InputError, SiteError: before anything runs, if an edit does not fit its site.
        """
        program = Program()
        for name, edit in as_edits(edits):
            for site, tap, call in self.resolve(name):
                program.add(tap, EditAction(edit.bound(site), site, tap, call, program))
        with self.running(program):
            yield self

    def replay(self, inputs: Any, variants: Sequence[Mapping[str, Any]], **options: Any) -> Tensor:
        """Logits of the same inputs under each of many variants, computing only what each changes.

        See `actinium.core.replay.replay`.
        """
        return replay.replay(self, inputs, variants, **options)

    # Running --------------------------------------------------------------------------------------------------

    def __call__(self, inputs: Any) -> Any:
        """The module's own output on prepared inputs."""
        _, args, kwargs = next(self.prepare(inputs).batches(None, self.device))
        return self.module(*args, **kwargs)

    def logits(self, inputs: Any) -> Tensor:
        """(batch, pos, d_vocab) of a language model, (batch, class) of a classifier.

        Raises:
            InputError: if the module's output has no logits.
        """
        output = self(inputs)
        value = getattr(output, "logits", output)
        if not isinstance(value, Tensor):
            raise InputError(f"{self.name} returns {type(output).__name__}, which has no logits")
        return value

    def loss(self, inputs: Any, reduction: str = "mean") -> Tensor:
        """Cross-entropy of the next token, in nats.

        Args:
            inputs: texts or tokens.
            reduction: "mean" over all targets, or "token": (batch, pos - 1), NaN where there is no target.
        Raises:
            InputError: for another reduction, a model that does not predict the next token, or texts of one token.
        """
        if reduction not in ("mean", "token"):
            raise InputError(f"reduction must be 'mean' or 'token', not {reduction!r}")
        if self.kind != "causal-lm":
            raise InputError(f"{self.name} is a {self.kind}; the next-token loss needs a causal language model")
        ready = self.prepare(inputs)
        if ready.tokens is None:
            raise InputError("the loss needs tokens")
        logits, ids = self.logits(ready), ready.tokens.ids.to(self.device)
        real = ready.tokens.mask.to(self.device)
        wanted = real[:, 1:] & real[:, :-1]
        if not bool(wanted.any()):
            raise InputError("the loss needs a text of two tokens or more")
        each = nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        each = torch.where(wanted, each.view(wanted.shape), torch.nan)
        return each.nanmean() if reduction == "mean" else each

    def unembed(self, resid: Tensor) -> Tensor:
        """Logits that a residual stream (…, d_model) would give at the end of the model (logit lens).

        Raises:
            InputError: if the model has no final norm and unembedding that we know.
        """
        return replay.tail(self, resid)

    def to_tokens(self, texts: str | Sequence[str]) -> Tokens:
        """Tokenise; a text longer than the context is cut into windows, said so in a warning."""
        return tokenize(self.tokenizer, [texts] if isinstance(texts, str) else texts, self.context)

    def to_str_tokens(self, ids: Any) -> list[str]:
        """Each token as text: of a text, or of (pos,) ids."""
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer")
        if isinstance(ids, str):
            ids = self.to_tokens(ids).ids[0]
        return [self.tokenizer.decode([int(i)]) for i in ids]

    def generate(self, inputs: Any, **options: Any) -> Any:
        """Continue texts with the library's own `generate`.

        Args:
            inputs: a text, texts, or token ids (batch, pos).
            **options: those of `transformers.GenerationMixin.generate`.
        Returns:
            The new text, the new texts, or for token ids the whole sequences (batch, pos).
        Raises:
            InputError: if the model cannot generate, a text is too long, or beams are recorded.
        """
        run = getattr(self.module, "generate", None)
        if run is None:
            raise InputError(f"{self.name} cannot generate")
        beams = (
            options.get("num_beams") or getattr(getattr(self.module, "generation_config", None), "num_beams", 1) or 1
        )
        if beams > 1 and any(p.readers for p in taps.state.programs):
            raise InputError(
                "beam search moves rows between beams at every step; record a greedy or sampled generation"
            )
        if isinstance(inputs, Tensor):
            tokens = Tokens(inputs, torch.ones_like(inputs, dtype=torch.bool), torch.arange(len(inputs)))
        elif isinstance(inputs, Tokens):
            tokens = inputs
        else:
            texts = [inputs] if isinstance(inputs, str) else list(inputs)
            side = "right" if self.kind == "encoder-decoder" else "left"
            tokens = tokenize(self.tokenizer, texts, self.context, side, window=False)
        fill = getattr(self.tokenizer, "pad_token_id", None)
        if fill is None:
            fill = getattr(self.tokenizer, "eos_token_id", None)
        if fill is not None:
            options.setdefault("pad_token_id", fill)
        taps.state.generation = None if self.kind == "encoder-decoder" else Generation(tokens.mask.sum(1))
        try:
            out = run(
                input_ids=tokens.ids.to(self.device), attention_mask=tokens.mask.long().to(self.device), **options
            )
        finally:
            taps.state.generation = None
        if isinstance(inputs, Tensor | Tokens) or not isinstance(out, Tensor):
            return out
        new = out if self.kind == "encoder-decoder" else out[:, tokens.ids.shape[1] :]
        decoded: list[str] = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return decoded[0] if isinstance(inputs, str) else decoded
