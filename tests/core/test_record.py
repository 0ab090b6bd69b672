"""Recording stops early, reads the positions asked for, and gives the same whatever the batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from actinium.core import reducers
from actinium.core.edits import Add
from actinium.core.errors import InputError, SiteError
from actinium.core.inputs import Tokens, pad
from actinium.core.model import Model
from architectures import ATTENTION, CAUSAL, build, inputs_for, shared, token_ids

LENGTHS = (7, 3, 5, 4)


def ragged(side="right"):
    texts = [token_ids(1, n, seed=n)[0].tolist() for n in LENGTHS]
    ids, mask = pad(texts, 0, side)
    return Tokens(ids, mask, torch.arange(len(ids)))


class Started:
    """Names of the modules whose forward began, in order."""

    def __init__(self, module: nn.Module) -> None:
        self.names: list[str] = []
        self.handles = [
            part.register_forward_pre_hook(lambda m, a, name=name: self.names.append(name))
            for name, part in module.named_modules()
            if name
        ]

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "falcon", "bloom", "mpt", "gemma2", "mixtral", "mamba"])
def test_nothing_after_the_last_site_is_run(name):
    """Recording one site starts a prefix of the modules that a whole pass starts, and no later block."""
    model, inputs = shared(name), inputs_for(name)
    watch = Started(model.module)
    try:
        model(inputs)
        whole = list(watch.names)
        reach = []
        for site in model.sites():
            watch.names.clear()
            model.record(inputs, site.name)
            assert watch.names == whole[: len(watch.names)], site.name
            reach.append(len(watch.names))
            after = 0 if site.layer is None else site.layer + 1
            later = [n for n in watch.names if any(n.endswith(f".{i}") for i in range(after, 3))]
            assert site.name in ("final_norm", "logits") or not later, (site.name, later)
        assert reach[0] < reach[-1]
        assert "lm_head" not in whole[: reach[-2]]
    finally:
        watch.close()


def test_the_pass_ends_within_the_block_at_the_site():
    model = shared("llama")
    watch = Started(model.module)
    try:
        model.record(token_ids(), ["blocks.0.resid_post", "blocks.1.attn.out"])
        assert "model.layers.1.self_attn.o_proj" in watch.names
        assert "model.layers.1.mlp" not in watch.names
        assert "model.layers.2" not in watch.names
    finally:
        watch.close()


def test_a_block_that_stops_ends_at_the_last_site_unless_another_recording_goes_on():
    model, after = shared("llama"), []
    watch = Started(model.module)
    try:
        with model.recording("blocks.0.resid_post", stop=True) as rec:
            model.module(token_ids())
            after.append("the pass")
        assert not after and "model.layers.1" not in watch.names
        want = model.record(token_ids(), "blocks.0.resid_post")["blocks.0.resid_post"]
        torch.testing.assert_close(rec["blocks.0.resid_post"], want)
        with model.recording("logits") as whole, model.recording("blocks.0.resid_post", stop=True):
            model.module(token_ids())
            after.append("the pass")
        assert after and "logits" in whole and "lm_head" in watch.names
    finally:
        watch.close()


def test_memory_of_the_graph_is_not_kept_unless_asked():
    model = shared("gpt2")
    assert not model.record(token_ids(), "blocks.0.resid_post")["blocks.0.resid_post"].requires_grad
    assert model.record(token_ids(), "blocks.0.resid_post", grad=True)["blocks.0.resid_post"].requires_grad


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "positions",
    [0, 2, -1, [0, 2], [-1, -2], [0, -1], slice(1, 3), slice(-2, None), slice(0, 3, 2), torch.tensor([1, 2])],
)
def test_positions_count_the_tokens_of_each_text(positions, side):
    model, tokens = shared("llama"), ragged(side)
    sites = ["blocks.1.resid_post", "blocks.1.attn.q", "blocks.2.attn.k", "blocks.0.mlp.post", "logits"]
    whole = model.record(tokens, sites)
    rec = model.record(tokens, sites, positions=positions)
    for site in sites:
        for i, n in enumerate(LENGTHS):
            real = whole[site][i][tokens.mask[i]]
            if isinstance(positions, slice):
                wanted = list(range(n))[positions]
            else:
                given = [positions] if isinstance(positions, int) else list(map(int, positions))
                wanted = sorted(p % n for p in given)
            assert torch.equal(rec[site][i], real[wanted]), (site, i)


def test_positions_may_differ_from_row_to_row():
    model, tokens = shared("gpt2"), ragged("left")
    whole = model.record(tokens, "blocks.1.resid_post")["blocks.1.resid_post"]
    wanted = torch.tensor([[6, 2], [0, -1], [1, 4], [2, 3]])
    for batch_size in (None, 3):
        rec = model.record(tokens, "blocks.1.resid_post", positions=wanted, batch_size=batch_size)
        for i, n in enumerate(LENGTHS):
            real = whole[i][tokens.mask[i]]
            assert torch.allclose(
                rec["blocks.1.resid_post"][i], real[sorted(p % n for p in wanted[i].tolist())], atol=1e-5
            )


def test_positions_choose_the_queries_of_a_pattern():
    model = shared("llama")
    whole = model.record(token_ids(), "blocks.1.attn.pattern")["blocks.1.attn.pattern"]
    rec = model.record(token_ids(), "blocks.1.attn.pattern", positions=[2, -1])
    assert torch.equal(rec["blocks.1.attn.pattern"], whole[:, :, [2, 6]])


def test_positions_that_some_texts_lack_are_refused():
    for positions in (5, [0, 6], slice(3, None), -6):
        with pytest.raises(InputError, match="position"):
            shared("llama").record(ragged(), "blocks.1.resid_post", positions=positions)


def test_positions_at_a_site_without_any_are_refused():
    with pytest.raises(InputError, match="no positions"):
        shared("vit").record(inputs_for("vit"), "logits", positions=0)


@pytest.mark.parametrize("name", CAUSAL)
def test_batches_give_what_one_batch_gives(name):
    model, tokens = shared(name), ragged("left")
    whole = model.record(tokens, "**")
    for batch_size in (1, 3):
        parts = model.record(tokens, "**", batch_size=batch_size)
        assert parts.sites == whole.sites
        for site in whole.sites:
            low = whole[site] < -1e9
            got, want = parts[site].masked_fill(low, 0), whole[site].masked_fill(low, 0)
            assert torch.allclose(got, want, rtol=1e-4, atol=1e-4), site
        assert torch.equal(parts.rows, whole.rows)
        assert torch.equal(parts.mask, whole.mask)


def test_images_and_dicts_are_batched_alike():
    vit = shared("vit")
    images = inputs_for("vit", batch=5)
    whole, parts = vit.record(images, "**"), vit.record(images, "**", batch_size=2)
    assert all(torch.allclose(parts[s], whole[s], atol=1e-5) for s in whole.sites)
    t5, inputs = shared("t5"), inputs_for("t5", batch=5)
    whole, parts = t5.record(inputs, "**.resid_post"), t5.record(inputs, "**.resid_post", batch_size=2)
    assert all(torch.allclose(parts[s], whole[s], atol=1e-5) for s in whole.sites)


SITES = ["blocks.1.resid_post", "blocks.1.attn.z", "blocks.2.attn.k", "blocks.0.mlp.post"]


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_reducers_see_every_real_position_once(batch_size):
    model, tokens = shared("llama"), ragged("left")
    rec = model.record(tokens, SITES)
    moments = model.record(tokens, SITES, reduce=reducers.Moments(), batch_size=batch_size)
    for site in SITES:
        rows = rec[site][tokens.mask].flatten(1).double()
        assert torch.allclose(torch.as_tensor(moments[site].mean).double(), rows.mean(0), atol=1e-5)
        assert set(torch.as_tensor(moments[site].count).tolist()) == {sum(LENGTHS)}


def test_several_reducers_are_named():
    model = shared("llama")
    rec = model.record(ragged(), SITES, reduce={"mean": reducers.Mean(), "top": reducers.TopK(k=2)}, batch_size=2)
    assert set(rec[SITES[0]]) == {"mean", "top"}
    whole = model.record(ragged(), SITES)
    best = whole[SITES[0]][ragged().mask].amax(0)
    assert torch.allclose(rec[SITES[0]]["top"].per_feature.values[:, 0].float(), best, atol=1e-5)
    # Neither the reducer that was passed nor another site's copy is touched.
    assert not torch.allclose(
        torch.as_tensor(rec[SITES[0]]["mean"]), torch.as_tensor(rec["blocks.0.mlp.post"]["mean"])[:32]
    )


class Contexts:
    wants_context = True

    def __init__(self) -> None:
        self.seen = []

    def update(self, values, context) -> None:
        self.seen.append((values, context))

    def result(self):
        return self.seen


def test_a_reducer_that_wants_context_gets_the_whole_tensor_and_its_rows():
    model, tokens = shared("llama"), ragged()
    whole = model.record(tokens, ["blocks.1.attn.pattern", "blocks.1.attn.z"])
    rec = model.record(tokens, whole.sites, reduce=Contexts, batch_size=3)
    for site in whole.sites:
        (first, one), (second, two) = rec[site]
        assert torch.allclose(torch.cat([first, second]), whole[site], atol=1e-5)
        assert one.rows.tolist() + two.rows.tolist() == [0, 1, 2, 3]
        assert torch.equal(torch.cat([one.mask, two.mask]), tokens.mask)
        assert torch.equal(torch.cat([one.tokens, two.tokens]), tokens.ids)
        assert (one.site, len(one.dims)) == (site, whole[site].ndim)


def test_features_of_images_are_channels_for_a_reducer():
    net = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    x = torch.randn(3, 3, 8, 8)
    rec = Model(net).record(x, "module:0", reduce=reducers.Mean(), batch_size=2)
    with torch.no_grad():
        want = net(x).mean((0, 2, 3))
    assert torch.allclose(torch.as_tensor(rec["module:0"]).float(), want, atol=1e-5)


def test_what_is_no_reducer_is_refused_before_the_pass():
    with pytest.raises(InputError, match="update"):
        shared("llama").record(token_ids(), "embed", reduce=object())


def test_values_are_kept_as_the_type_and_on_the_device_asked_for():
    model = shared("gpt2")
    rec = model.record(token_ids(), ["blocks.1.resid_post"], dtype=torch.float64, device="meta")
    assert rec["blocks.1.resid_post"].dtype == torch.float64
    assert rec["blocks.1.resid_post"].device.type == "meta"
    half = model.record(token_ids(), ["blocks.1.resid_post"], dtype=torch.float16)["blocks.1.resid_post"]
    whole = model.record(token_ids(), "blocks.1.resid_post")["blocks.1.resid_post"]
    assert torch.equal(half, whole.half())


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon", "opt"])
def test_recorded_tensors_outlive_later_passes(name):
    """What a later pass writes must not reach the values of an earlier recording."""
    model = shared(name)
    first = model.record(token_ids(seed=1), "**")
    kept = {s: first[s].clone() for s in first.sites}
    model.record(token_ids(seed=2), "**")
    model(token_ids(seed=3))
    assert all(torch.equal(first[s], kept[s]) for s in first.sites)


def test_gradients_reach_the_recorded_tensors_inputs():
    """d(sum of a later site)/d(earlier site) by autograd equals finite differences along one direction."""
    model = Model(build("gpt2").double())
    rec = model.record(token_ids(), ["blocks.0.resid_post", "blocks.2.mlp.out"], grad=True)
    (grad,) = torch.autograd.grad(rec["blocks.2.mlp.out"].sum(), rec["blocks.0.resid_post"])
    direction, step = torch.linspace(-1, 1, 32).double(), 1e-6
    ends = []
    for sign in (1, -1):
        with model.edit({"blocks.0.resid_post": Add(direction, scale=sign * step)}):
            ends.append(model.record(token_ids(), "blocks.2.mlp.out")["blocks.2.mlp.out"].sum())
    assert torch.allclose((ends[0] - ends[1]) / (2 * step), (grad * direction).sum(), rtol=1e-5)


def test_two_nested_recordings_each_read_what_they_asked_for():
    model, inputs = shared("llama"), token_ids()
    whole = model.record(inputs, "**")
    pair = ["blocks.0.resid_post", "blocks.2.attn.pattern"]
    with model.recording("blocks.0.**") as outer, model.recording(pair) as inner:
        model(inputs)
    assert all(torch.equal(outer[s], whole[s]) for s in outer.sites)
    assert inner.sites == pair
    assert all(torch.equal(inner[s], whole[s]) for s in inner.sites)


def test_a_record_inside_a_recording_does_not_cut_the_outer_one_short():
    model, inputs = shared("llama"), token_ids()
    whole = model.record(inputs, "**")
    with model.recording("blocks.2.resid_post") as outer:
        inner = model.record(inputs, "blocks.0.resid_post")
        model(inputs)
    assert torch.equal(inner["blocks.0.resid_post"], whole["blocks.0.resid_post"])
    # Two passes ran within the outer block: the inner record's, which the outer one kept going, and the call.
    assert torch.equal(outer["blocks.2.resid_post"], torch.cat([whole["blocks.2.resid_post"]] * 2))


def test_several_calls_within_one_recording_are_more_rows():
    model = shared("gpt2")
    with model.recording(["blocks.1.resid_post", "blocks.1.attn.pattern"]) as rec:
        model(token_ids(2, 7, seed=1))
        model(token_ids(3, 5, seed=2))
    one = model.record(token_ids(2, 7, seed=1), rec.sites)
    two = model.record(token_ids(3, 5, seed=2), rec.sites)
    assert rec["blocks.1.resid_post"].shape == (5, 7, 32)
    assert torch.allclose(rec["blocks.1.resid_post"][2:, :5], two["blocks.1.resid_post"], atol=1e-6)
    assert torch.allclose(rec["blocks.1.attn.pattern"][:2], one["blocks.1.attn.pattern"], atol=1e-6)
    assert rec.mask.sum(1).tolist() == [7, 7, 5, 5, 5]


@pytest.mark.parametrize("name", ["llama", *[n for n in ATTENTION if n in ("bloom", "gptj", "mpt")]])
def test_a_site_is_read_after_the_edits_at_it(name):
    model, inputs = shared(name), token_ids()
    plain = model.record(inputs, "blocks.1.resid_post")["blocks.1.resid_post"]
    with model.edit({"blocks.1.resid_post": Add(torch.ones(32))}):
        edited = model.record(inputs, "blocks.1.resid_post")["blocks.1.resid_post"]
    assert torch.allclose(edited, plain + 1, atol=1e-6)


def test_asking_for_no_sites_is_refused():
    for nothing in ([], ()):
        with pytest.raises(SiteError, match="no sites"):
            shared("gpt2").record(token_ids(), nothing)


def test_labels_and_layout_of_a_recording():
    model, tokens = shared("llama"), ragged()
    rec = model.record(tokens, ["blocks.*.resid_post", "blocks.1.attn.pattern"])
    stacked = rec.stack("blocks.*.resid_post")
    assert stacked.shape == (3, 4, 7, 32)
    assert torch.equal(stacked[-1], rec["blocks.-1.resid_post"])
    labelled = rec.to_xarray()
    assert labelled["blocks.1.resid_post"].dims == ("batch", "pos", "d_model")
    assert labelled["blocks.1.attn.pattern"].dims == ("batch", "head", "query", "key")
    assert (labelled["blocks.1.resid_post"].values == rec["blocks.1.resid_post"].numpy()).all()
    assert (labelled["token"].values == tokens.ids.numpy()).all()
    with pytest.raises(InputError, match="differ in shape"):
        rec.stack("blocks.1.**")
    with pytest.raises(SiteError, match=r"blocks\.1\.resid_post"):
        rec["blocks.1.resid_pst"]
