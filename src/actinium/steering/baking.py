"""Edits written into the weights: a plain checkpoint that any server runs, with no hooks left."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.edits import Add, Edit, ProjectOut, Scale, as_edits
from actinium.core.errors import InputError
from actinium.core.maps import is_linear
from actinium.core.model import Model
from actinium.steering.operators import Affine

__all__ = ["ablation_edits", "bake"]

# Settings that give linear maps of a configuration their biases.
BIAS_SETTINGS = ("mlp_bias", "attention_bias", "use_bias", "bias", "qkv_bias", "attention_out_bias")
TOLERANCE = 1e-4
PROBES, LENGTH = 2, 12


def bake(model: Model, edits: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> Model:
    """Write edits into a copy of a model's weights.

    Additions become biases (or move the embedding), projections and the affine operator change the map that writes,
    and its bias. The copy's logits on random tokens are compared with those of the edited model before it is given.

    Args:
        model: a Hugging Face language model, which stays as it is.
        edits: as for `model.edit`, for example from `steering_edits` or `ablation_edits`. Sites: what blocks write
            (`blocks.{i}.mlp.out`, `blocks.{i}.attn.out`), `embed`, `module:<path>` of a linear map or an embedding;
            additions also at `blocks.{i}.resid_pre|mid|post`. Edits: `Add`, `ProjectOut`, `Scale`, `Affine`, at all
            positions and with one strength.

    Returns:
        Model whose `module.save_pretrained(folder)` writes the checkpoint; the embedding is no longer tied to the
        output where it was changed.

    Raises:
        InputError: an edit that weights cannot hold, a site that no single map writes, an architecture whose
            checkpoints have no bias there, or one that does more with what a block writes than to add it.
        SiteError: a site does not exist.

    Source: Arditi et al., 2024, section 4.1 (weight orthogonalisation).
    """
    if getattr(model.config, "to_dict", None) is None:
        raise InputError(f"{model.name} is no Hugging Face model; there is no checkpoint to write the edits into")
    pairs = [(site.name, edit) for name, edit in as_edits(edits) for site, _, _ in model.resolve(name)]
    for name, edit in pairs:
        _check(name, edit)
    places = [_writer(model, name, edit) for name, edit in pairs]
    module = copy.deepcopy(model.module)
    for path, (_, edit) in zip(places, pairs, strict=True):
        _write(module, path, edit)
    out = Model(module, model.tokenizer, model.processor, f"{model.name}, baked")
    _compare(model, out, pairs)
    return out


def ablation_edits(model: Model, directions: Any) -> dict[str, Edit]:
    """Edits that remove directions from everything that is written to the residual stream.

    With them no residual stream has a part along the directions, as if they were projected out at every one.

    Args:
        model: a language model.
        directions: (d_model,) or (k, d_model).
    """
    edit = ProjectOut(directions)
    names = [s.name for s in model.sites() if s.part in ("attn.out", "mixer.out", "mlp.out", "cross_attn.out")]
    edits: dict[str, Edit] = dict.fromkeys(["embed", *names], edit)
    first = model.resolve("embed")[0][1].module
    for path, module in model.module.named_modules():
        # Embeddings of positions and of token types write to the stream, too.
        if isinstance(module, nn.Embedding) and module is not first and module.embedding_dim == model.d_model:
            edits[f"module:{path}"] = edit
    return edits


def _check(name: str, edit: Edit) -> None:
    if not isinstance(edit, Add | ProjectOut | Scale | Affine):
        raise InputError(
            f"{name}: {type(edit).__name__} cannot be written into weights; Add, ProjectOut, Scale, Affine can"
        )
    if any(getattr(edit, limit) is not None for limit in ("positions", "heads", "units", "rows")):
        raise InputError(
            f"{name}: weights are the same at all positions and in all rows; bake an edit without .at(...)"
        )
    strengths = {Add: "scale", Scale: "factor", Affine: "value"}
    value = getattr(edit, strengths.get(type(edit), ""), 0.0)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise InputError(f"{name}: weights have one strength for all rows, not {value.numel()}")
    if isinstance(edit, Add) and edit.vector.ndim != 1:
        raise InputError(
            f"{name}: a vector (d,) can be written into weights, not one of shape {tuple(edit.vector.shape)}"
        )


def _writer(model: Model, name: str, edit: Edit) -> str:
    """Path of the linear map or embedding whose output a site is, up to what was there before."""
    site, tap, _ = model.resolve(name)[0]
    if name.startswith("module:") or site.part == "embed":
        target = tap.module
    elif site.part in ("mlp.out", "attn.out", "resid_mid", "resid_post", "resid_pre"):
        if site.part.startswith("resid") and not isinstance(edit, Add):
            raise InputError(
                f"{name}: what is there was written by all blocks below; project it out of each with ablation_edits,"
                " or only add to it"
            )
        target = _behind(model, name, site.part, site.layer or 0)
    else:
        raise InputError(f"{name} is not what one map writes; bake at embed, attn.out, mlp.out or add at resid_*")
    if not (is_linear(target) or isinstance(target, nn.Embedding)):
        raise InputError(f"{name}: {type(target).__name__} is neither a linear map nor an embedding")
    weight: Any = target.weight
    if weight.is_meta or not weight.is_floating_point():
        raise InputError(f"{name}: the weight is not in memory as numbers ({weight.device}, {weight.dtype})")
    return next(path for path, module in model.module.named_modules() if module is target)


def _behind(model: Model, name: str, part: str, layer: int) -> nn.Module:
    """The module that writes what one block adds to the stream, or the embedding."""
    if part == "resid_pre" and layer == 0:
        return model.resolve(f"{name.rpartition('blocks.')[0]}embed")[0][1].module
    block = layer - 1 if part == "resid_pre" else layer
    read = "attn.z" if part in ("attn.out", "resid_mid") else "mlp.post"
    site = f"{name.rpartition('blocks.')[0]}blocks.{block}.{read}"
    if not model.has(site):
        raise InputError(f"{name}: this architecture has no single map that writes there (no {site})")
    return model.resolve(site)[0][1].module


def _write(module: Any, path: str, edit: Edit) -> None:
    target = module.get_submodule(path)
    if isinstance(target, nn.Embedding):
        _untie(module, target)
    elif (isinstance(edit, Add) or (isinstance(edit, Affine) and _offset(edit) is not None)) and target.bias is None:
        _give_bias(module, path)
        target = module.get_submodule(path)
    rows = isinstance(target, nn.Embedding) or type(target).__name__ == "Conv1D"
    weight, bias = target.weight, getattr(target, "bias", None)
    with torch.no_grad():
        # (…, d_out): each row, or each column of a linear map, is something that is written.
        wide = (weight if rows else weight.T).double()
        new, shift = _edited(wide, edit), None
        if isinstance(target, nn.Embedding):
            new = new if _offset(edit) is None else new + _offset(edit).to(new)  # type: ignore[union-attr]
        else:
            old = torch.zeros(wide.shape[1], dtype=torch.float64, device=wide.device) if bias is None else bias.double()
            shift = _edited(old, edit)
            shift = shift if _offset(edit) is None else shift + _offset(edit).to(shift)  # type: ignore[union-attr]
        weight.copy_(new if rows else new.T)
        if bias is not None and shift is not None:
            bias.copy_(shift)


def _edited(written: Tensor, edit: Edit) -> Tensor:
    """What an edit makes of something written (…, d), without what it adds to everything."""
    if isinstance(edit, Scale):
        factor = edit.factor
        return written * (factor.to(written) if isinstance(factor, Tensor) else factor)
    if isinstance(edit, ProjectOut):
        basis = edit.basis.to(written)
        return written - (written @ basis) @ basis.T
    if isinstance(edit, Affine):
        unit = _unit(edit).to(written)
        return written - (written @ unit)[..., None] * unit
    return written


def _offset(edit: Edit) -> Tensor | None:
    """What an edit adds to everything that is written, (d,) float64."""
    if isinstance(edit, Add):
        return edit.vector.detach().double() * float(edit.scale)
    if isinstance(edit, Affine):
        unit = _unit(edit)
        level = float(edit.value)
        if edit.reference is not None:
            level += float(edit.reference.detach().to(unit) @ unit)
        return unit * level if level else None
    return None


def _unit(edit: Affine) -> Tensor:
    wide = edit.direction.detach().double()
    return wide / wide.norm()


def _untie(module: Any, embedding: nn.Embedding) -> None:
    """Give the output a weight of its own, so that a change of the embedding does not change it."""
    head = module.get_output_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        module.config.tie_word_embeddings = False


def _give_bias(module: Any, path: str) -> None:
    """Give a map a bias by the setting with which the architecture's own checkpoints have one.

    Raises:
        InputError: there is no such setting.
    """
    config = module.config
    for setting in BIAS_SETTINGS:
        if getattr(config, setting, None) is not False:
            continue
        trial = copy.deepcopy(config)
        setattr(trial, setting, True)
        try:
            with torch.device("meta"):
                wanted = type(module)(trial).state_dict()
        except (TypeError, ValueError, RuntimeError):
            continue
        if f"{path}.bias" not in wanted:
            continue
        setattr(config, setting, True)
        for name in set(wanted) - set(module.state_dict()):
            owner, _, own = name.rpartition(".")
            holder = module.get_submodule(owner)
            weight = holder.weight
            zero = torch.zeros(wanted[name].shape, dtype=weight.dtype, device=weight.device)
            holder.register_parameter(own, nn.Parameter(zero, requires_grad=weight.requires_grad))
        return
    raise InputError(
        f"checkpoints of {type(module).__name__} have no bias at {path}, so that an addition there cannot be written"
        " into them; add at blocks.0.resid_pre, whose vector goes into the embedding, or steer with hooks"
    )


def _compare(model: Model, baked: Model, edits: Sequence[tuple[str, Edit]]) -> None:
    """Refuse a copy whose logits are not those of the edited model."""
    vocabulary = int(model.config.vocab_size)
    ids = torch.randint(vocabulary, (PROBES, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with model.edit(edits):
            want = model.logits(ids).double()
        found = baked.logits(ids).double()
    half = model.dtype in (torch.float16, torch.bfloat16)
    limit = (0.05 if half else TOLERANCE) * max(1.0, float(want.abs().max()))
    worst = float((found - want).abs().max())
    if not worst <= limit:
        raise InputError(
            f"{type(model.module).__name__} does more with what its blocks write than to add it (norms or factors"
            f" behind the map): logits of the copy would differ by {worst:.2g}; steer with hooks"
        )
