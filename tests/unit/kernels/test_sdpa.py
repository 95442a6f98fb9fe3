"""The mix for CUDA devices computes what the host's does, whichever kernels it asks for; here torch has only one."""

import pytest
import torch
from torch.nn.attention.bias import CausalBias

from hydra.kernels.attention import sdpa as mix
from hydra.kernels.attention.paged_attention import View, plan_step
from hydra.protocol.batch import Batch, OpenRow, int32

LENGTH, REACH = 5, 12


def heads(n: int, positions: int, seed: int) -> torch.Tensor:
    return torch.randn(1, n, positions, 16, generator=torch.Generator().manual_seed(seed))


def spelled_out(length: int, reach: int) -> torch.Tensor:
    return torch.full((length, reach), float("-inf")).triu_(reach - length + 1)


@pytest.fixture(params=[(7, 5), (9, 0)], ids=["before-flash", "flash"])
def cuda_mix(request, monkeypatch) -> mix.Mix:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: request.param)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield mix._cuda_mix(0.3, torch.device("cuda:0"), torch.bfloat16)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_several_tokens(cuda_mix, kv_heads):
    query, key, value = heads(4, LENGTH, 1), heads(kv_heads, REACH, 2), heads(kv_heads, REACH, 3)
    host = mix._host_mix(0.3)
    causal, window = spelled_out(LENGTH, REACH), spelled_out(LENGTH, REACH)
    window[:, :4] = float("-inf")
    assert torch.allclose(
        cuda_mix(query, key, value, mix.after_the_past(LENGTH, REACH), True),
        host(query, key, value, causal, True),
        atol=1e-6,
    )
    assert torch.allclose(cuda_mix(query, key, value, window, True), host(query, key, value, window, True), atol=1e-6)
    square = key[:, :, :LENGTH], value[:, :, :LENGTH]
    assert torch.allclose(cuda_mix(query, *square, None, True), host(query, *square, None, True), atol=1e-6)


def test_one_token(cuda_mix):
    query, key, value = heads(2, 3, 1), heads(2, REACH, 2), heads(2, REACH, 3)
    assert torch.allclose(
        cuda_mix(query, key, value, None, False), mix._host_mix(0.3)(query, key, value, None, False), atol=1e-6
    )


def with_sinks(query, key, value, mask, sinks):
    """Spelled out, one key for each head: a softmax over the scores and the sink, whose share is dropped."""
    group = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(group, 1).transpose(-1, -2) * 0.3
    scores = scores if mask is None else scores + mask
    shares = torch.cat((scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)), -1).softmax(-1)[..., :-1]
    return shares @ value.repeat_interleave(group, 1)


@pytest.mark.parametrize("device", ["cpu", "mps"])  # another one spells the scores out
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("size", [0.0, 3.0, 300.0])
def test_sinks_take_their_share(device, kv_heads, size):
    sinks = torch.tensor([1.0, -1.0, 0.3, 0.7]) * size
    mixes = mix.make_sdpa(0.3, None, sinks, torch.float32, torch.device(device))
    query, key, value = heads(4, LENGTH, 1), heads(kv_heads, REACH, 2), heads(kv_heads, REACH, 3)
    for mask in (spelled_out(LENGTH, REACH), spelled_out(LENGTH, REACH).tril_(REACH - LENGTH)):
        reached = mixes(query, key, value, mask, True)
        assert torch.allclose(reached, with_sinks(query, key, value, mask, sinks), atol=1e-6)
    one = query[:, :, :1].view(1, kv_heads, -1, 16)
    expected = with_sinks(query[:, :, :1], key, value, None, sinks)
    assert torch.allclose(mixes(one, key, value, None, False).view(1, 4, 1, 16), expected, atol=1e-6)


def test_sinks_beside_bent_scores():
    sinks, far = torch.tensor([0.5, -0.5, 0.1, 2.0]), 1e6  # a cap that bends nothing
    query, key, value = heads(4, LENGTH, 1), heads(2, REACH, 2), heads(2, REACH, 3)
    reached = mix.make_sdpa(0.3, far, sinks, torch.float32, torch.device("cpu"))(
        query, key, value, spelled_out(LENGTH, REACH), True
    )
    assert torch.allclose(reached, with_sinks(query, key, value, spelled_out(LENGTH, REACH), sinks), atol=1e-4)


def test_a_chunk_on_a_cuda_device_needs_no_memory_for_its_mask(monkeypatch):
    """Only where the mask is the plain causal one; columns stay on the host here."""
    monkeypatch.setattr(
        "hydra.kernels.attention.paged_attention.to_device", lambda column, device: torch.from_numpy(column)
    )
    spelled = []
    monkeypatch.setattr("hydra.kernels.attention.paged_attention._mask", lambda *asked: spelled.append(asked))
    batch = Batch(
        row=int32([0]),
        attempt=int32([0]),
        position=int32([7]),
        length=int32([5]),
        sample=int32([0]),
        new_blocks=int32([0]),
        tokens=int32([1] * 5),
    )
    row = OpenRow(row=0, attempt=0, prompt_tokens=12, history_tokens=12, blocks=[0, 1, 2])
    views = (View(), View(window=100), View(window=6), View(spelled_out=True))
    plan = plan_step(batch, (row,), 4, views, torch.bfloat16, torch.device("cuda:0"))
    assert [isinstance(span.mask, CausalBias) for (span,) in plan.spans] == [True, True, False, False]
    assert len(spelled) == 2
