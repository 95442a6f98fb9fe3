"""How a GGUF model is sampled where a request leaves it out: as its file says, or greedily where it is small."""

import pytest

from hydra.protocol.refusal import RefusalError
from hydra.protocol.sampling import DefaultSampling
from hydra.store.models.library import LocalLibrary
from tests.unit.store.gguf_bytes import F32, I32, TEXT, file_bytes, small_llama

SMALL = ((b"general.organization", TEXT, b"HuggingFaceTB"), (b"general.basename", TEXT, b"smollm2"))
STORED = (
    (b"general.sampling.temp", F32, 0.6),
    (b"general.sampling.top_k", I32, 7),
    (b"general.sampling.min_p", F32, 0.1),
)


def described(tmp_path, *keys) -> DefaultSampling:
    draft = small_llama()
    draft.keys += keys
    path = tmp_path / "small.gguf"
    path.write_bytes(file_bytes(draft))
    return LocalLibrary(cache_dir=tmp_path / "cache").describe(str(path)).spec.default_sampling


@pytest.mark.parametrize(
    ("keys", "sampling"),
    [
        ((), DefaultSampling()),
        (SMALL, DefaultSampling(temperature=0.0)),
        (SMALL[1:], DefaultSampling()),
        (STORED, DefaultSampling(temperature=0.6, top_k=7, min_p=0.1)),
        ((*SMALL, *STORED), DefaultSampling(temperature=0.6, top_k=7, min_p=0.1)),
    ],
    ids=["silent", "small", "of somebody else", "by its file", "its file counts"],
)
def test_a_model_is_sampled_as_its_file_says_or_greedily_where_it_is_small(keys, sampling, tmp_path):
    assert described(tmp_path, *keys) == sampling


def test_what_is_no_number_is_refused_by_its_key(tmp_path):
    with pytest.raises(RefusalError, match=r"small\.gguf: general\.sampling\.temp must be a number"):
        described(tmp_path, (b"general.sampling.temp", TEXT, b"warm"))
