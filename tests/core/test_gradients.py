"""Gradients through edits equal those of the same network written out, and a loop of steps lowers a loss."""

from __future__ import annotations

import pytest
import torch

from actinium.core.edits import Add, Clamp, ProjectOut, Replace, Scale
from actinium.core.model import Model
from architectures import build, shared, token_ids

SITE = "blocks.1.resid_post"


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VECTOR, PLANE = drawn(32), drawn(3, 32, seed=1)


def explicit(module, inputs, change, layer):
    """Logits of a Llama whose stream after one block is changed, from its own layers one by one."""
    base = module.model
    h = base.embed_tokens(inputs)
    n = inputs.shape[1]
    positions = torch.arange(n)[None]
    rope = base.rotary_emb(h, positions)
    mask = torch.full((n, n), torch.finfo(h.dtype).min).triu(1)[None, None]
    for i, block in enumerate(base.layers):
        out = block(h, attention_mask=mask, position_embeddings=rope, position_ids=positions)
        h = out[0] if isinstance(out, tuple) else out
        h = change(h) if i == layer else h
    return module.lm_head(base.norm(h))


def test_gradients_of_an_added_vector_are_those_of_the_explicit_network():
    module, inputs = build("llama"), token_ids()
    model = Model(module)
    vector, strength = VECTOR.clone().requires_grad_(), torch.tensor(0.7, requires_grad=True)
    with model.edit({SITE: Add(vector, scale=strength).at(positions=[2, -1])}):
        model(inputs).logits.logsumexp(-1).sum().backward()
    other, factor = VECTOR.clone().requires_grad_(), torch.tensor(0.7, requires_grad=True)
    chosen = torch.zeros(7, 1)
    chosen[[2, 6]] = 1
    explicit(module, inputs, lambda h: h + chosen * factor * other, 1).logsumexp(-1).sum().backward()
    assert torch.allclose(vector.grad, other.grad, rtol=1e-4, atol=1e-5)
    assert torch.allclose(strength.grad, factor.grad, rtol=1e-4)


def test_gradients_of_projected_out_directions_are_those_of_the_explicit_network():
    module, inputs = build("llama"), token_ids()
    model = Model(module)
    plane = PLANE.clone().requires_grad_()
    with model.edit({SITE: ProjectOut(plane)}):
        model(inputs).logits.square().mean().backward()
    other = PLANE.clone().requires_grad_()

    def change(h):
        return h - h @ torch.linalg.pinv(other) @ other

    explicit(module, inputs, change, 1).square().mean().backward()
    assert torch.allclose(plane.grad, other.grad, rtol=1e-3, atol=1e-5)
    assert plane.grad.abs().max() > 1e-4


def test_gradients_of_orthogonal_equally_long_directions_are_finite():
    """Their singular values coincide, where derivatives of single singular vectors do not exist."""
    model = shared("llama")
    plane = torch.eye(32)[:2].requires_grad_()
    with model.edit({SITE: ProjectOut(plane)}):
        loss = model(token_ids()).logits.square().mean()
    (grad,) = torch.autograd.grad(loss, plane)
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("kind", ["add", "project", "scale", "replace"])
def test_optimising_an_edits_own_tensor_lowers_a_loss(kind):
    """One edit object through a loop of steps, as anyone would write it."""
    model, inputs = shared("llama"), token_ids()
    tensor = (0.1 * drawn(32, seed=5) + (kind == "scale")).requires_grad_()
    edit = {"add": Add, "project": ProjectOut, "scale": Scale, "replace": Replace}[kind](tensor)
    optimiser = torch.optim.Adam([tensor], lr=0.05)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        with model.edit({SITE: edit}):
            logits = model(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits[:, -1], torch.tensor([5, 6]))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    model.module.zero_grad()


def test_gradients_pass_through_an_edit_to_what_lies_before_it():
    model = Model(build("gpt2"))
    inputs = token_ids()
    with model.edit({SITE: Clamp(-0.5, 0.5)}):
        rec = model.record(inputs, ["blocks.0.resid_post", "logits"], grad=True)
    (grad,) = torch.autograd.grad(rec["logits"].square().mean(), rec["blocks.0.resid_post"])
    assert grad.abs().max() > 0
