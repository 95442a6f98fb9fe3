"""Where a GGUF file may lie and how it is named: here, at the Hub by ranges, in the Hugging Face cache, in parts."""

import os
import shutil
from contextlib import closing
from pathlib import Path

import attrs
import pytest

from hydra.cli.named_model import NamedModel
from hydra.cli.plan import plan_answer, plan_request
from hydra.cli.pull import pull_model
from hydra.cli.up import absolute_model
from hydra.complaint import Complaint
from hydra.processes.preflight import check_model
from hydra.protocol.model.model_name import default_model_id, hub_name
from hydra.protocol.model.source import Directory, HubCommit
from hydra.protocol.refusal import RefusalError
from hydra.protocol.settings.model import ModelSettings
from hydra.settings import Settings
from hydra.store.cache.cache_room import CacheRoom
from hydra.store.cache.range_cache import RangeCache
from hydra.store.cache.retry_policy import RetryPolicy
from hydra.store.gguf.gguf_folder import FOLDERS_MAX
from hydra.store.gguf.gguf_header import FIRST_BYTES, NeedMore, parse_gguf_header
from hydra.store.models import gguf_model
from hydra.store.models.description_cache import DescriptionCache
from hydra.store.models.lasting_library import LastingLibrary, files_are_there
from hydra.store.models.library import LocalLibrary
from hydra.store.models.local_copy import source_fault, why_unlike
from hydra.store.models.model_ref import HubAccess, HubRef, parse_ref
from hydra.store.supply import StoreSupply, hub_opener
from tests.unit.store.gguf_bytes import ARRAY, TEXT, U32, Draft, file_bytes, header_bytes, small_llama
from tests.unit.store.test_supply import order_of


@pytest.fixture
def model(tmp_path) -> Path:
    """A file of its own directory."""
    path = tmp_path / "model" / "small.Q4_1.gguf"
    path.parent.mkdir()
    path.write_bytes(file_bytes(small_llama()))
    return path


def local(tmp_path) -> LocalLibrary:
    return LocalLibrary(cache_dir=tmp_path / "cache")


def refusal_of(library, ref):
    with pytest.raises(RefusalError) as caught:
        library.describe(ref)
    return caught.value.refusal


def large() -> Draft:
    """A header of more than three times the bytes that are read first."""
    draft = small_llama()
    draft.keys.append((b"general.tags", ARRAY, (TEXT, [b"x" * 1000] * (3 * FIRST_BYTES // 1000))))
    return draft


# ---------------------------------------------------------------- the header


def test_a_beginning_says_how_much_more_is_needed():
    raw, draft = file_bytes(small_llama()), small_llama()
    whole = parse_gguf_header(raw, "f", len(raw))
    end = len(header_bytes(draft))
    for cut in range(0, end, 7):
        part = parse_gguf_header(raw[:cut], "f", len(raw))
        assert isinstance(part, NeedMore) and cut < part.n_bytes
        assert part.n_bytes <= end or cut < 4, "never more than the header has, once it is known to be one"
    assert parse_gguf_header(raw[:end], "f", len(raw)).raw == raw[:end] == whole.raw


# ---------------------------------------------------------------- on this machine


def test_a_file_is_named_by_its_path_whether_absolute_or_not(tmp_path, model, monkeypatch):
    monkeypatch.chdir(model.parent)
    by_path, by_name = local(tmp_path).describe(str(model)), local(tmp_path).describe("small.Q4_1.gguf")
    assert by_path == by_name and by_path.model_path == str(model) and by_path.default_id == "small.Q4_1"
    assert parse_ref("small.Q4_1.gguf") == Path("small.Q4_1.gguf")
    assert NamedModel.read("small.Q4_1.gguf") == NamedModel(sent=str(model), is_here=True)
    assert Path(by_path.folder).parent == tmp_path / "cache" / "gguf"
    tokenizer = (Path(by_path.folder) / "tokenizer.json").read_bytes()
    assert tokenizer.startswith(b'{\n  "'), "as long as published files are, by whose length the trial allows time"
    assert {path.name for path in Path(by_path.folder).iterdir()} == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_a_link_out_of_its_directory_means_the_file_it_leads_to(tmp_path, model):
    link = tmp_path / "elsewhere" / "mine.gguf"
    link.parent.mkdir()
    link.symlink_to(model)
    assert local(tmp_path).describe(str(link)) == local(tmp_path).describe(str(model))


def test_another_header_makes_another_folder_and_old_ones_go(tmp_path, model):
    first = local(tmp_path).describe(str(model))
    for number in range(FOLDERS_MAX + 3):
        draft = small_llama()
        draft.keys.append((b"general.quantization_version", U32, number))
        model.write_bytes(file_bytes(draft))
        described = local(tmp_path).describe(str(model))
        assert described.spec.fingerprint != first.spec.fingerprint and described.folder != first.folder
    assert len(list(Path(first.folder).parent.iterdir())) == FOLDERS_MAX and Path(described.folder).is_dir()


def test_other_weights_are_another_model(tmp_path, model):
    first = local(tmp_path).describe(str(model))
    assert why_unlike(str(model.parent), first.spec, first.files) is None and source_fault(first) == ""
    raw = bytearray(model.read_bytes())
    raw[first.tensors[3].offset + first.tensors[3].length // 2] ^= 1
    model.write_bytes(raw)
    assert "another one" in why_unlike(str(model.parent), first.spec, first.files) and "another one" in source_fault(
        first
    )
    model.unlink()
    assert "lacks its part small.Q4_1.gguf" in why_unlike(str(model.parent), first.spec, first.files)


def test_the_very_file_that_was_described_is_not_read_again(tmp_path, model, monkeypatch):
    described = local(tmp_path).describe(str(model))
    copy = tmp_path / "copy" / model.name
    copy.parent.mkdir()
    shutil.copy2(model, copy)
    opened: list[str] = []
    real = gguf_model.read_gguf_header
    monkeypatch.setattr(
        gguf_model, "read_gguf_header", lambda path, file: (opened.append(str(path)), real(path, file))[1]
    )
    assert why_unlike(str(model.parent), described.spec, described.files) is None and not opened
    assert why_unlike(str(copy.parent), described.spec, described.files) is None and opened == [str(copy)]
    size, times = model.stat().st_size, (model.stat().st_atime_ns, model.stat().st_mtime_ns)
    with model.open("r+b") as stream:  # in place, of the same size, and its time set back
        stream.seek(size - 40)
        stream.write(b"another!")
    os.utime(model, ns=times)
    why_unlike(str(model.parent), described.spec, described.files)
    assert opened == [str(copy), str(model)], "it is looked at as closely as any other"


def test_a_model_outlives_its_file(tmp_path, model):
    lasting = LastingLibrary(local(tmp_path), DescriptionCache(tmp_path / "described"), frozenset({str(model)}))
    described = lasting.describe(str(model))
    assert files_are_there(described)
    model.unlink()
    kept = lasting.describe(str(model))
    assert not files_are_there(described)
    assert (kept.spec, kept.tensors) == (described.spec, described.tensors)
    assert (Path(kept.folder) / "tokenizer.json").is_file()


def test_a_worker_reads_the_file_where_it_lies(hub, tmp_path, model):
    library = local(tmp_path)
    described = library.describe(str(model))
    supply = StoreSupply(RangeCache(CacheRoom(root=tmp_path / "ranges")), hub_opener(HubAccess(endpoint=hub.url)))
    order = order_of(library, described, 0, 1)
    assert supply.ensure(order, lambda done, total: None, lambda: False).sources == (Directory(str(model.parent)),)
    supply.confirm(attrs.evolve(order, sources=(Directory(str(model.parent)),)))


# ---------------------------------------------------------------- at the Hub


def publish(hub, tmp_path, **files: bytes) -> str:
    folder = tmp_path / "published"
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", "-")).with_suffix(".gguf").write_bytes(content)
    return hub.add("org/m", folder)


def test_a_file_at_the_hub_is_described_by_ranges_of_its_header(hub, library, tmp_path):
    raw = file_bytes(large())
    commit = publish(hub, tmp_path, **{"m-Q4_K_M": raw, "m-Q8_0": file_bytes(small_llama())})
    described = library().describe("org/m:m-Q4_K_M.gguf")
    assert (described.model_path, described.default_id) == (f"org/m@{commit}:m-Q4_K_M.gguf", "org/m:m-Q4_K_M")
    assert described.sources == (HubCommit("org/m", commit),)
    here = local(tmp_path).describe(str(tmp_path / "published" / "m-Q4_K_M.gguf"))
    assert described.tensors == here.tensors and described.folder == here.folder
    assert attrs.evolve(described.spec, fingerprint="") == attrs.evolve(here.spec, fingerprint="")
    sizes = [(start, sent) for _, start, sent in hub.sent]
    assert sizes[0] == (0, FIRST_BYTES) and sum(sent for _, sent in sizes) <= len(raw) and len(sizes) <= 3
    hub.bodies.clear()
    assert library().describe("org/m:q4_k_m") == described and library().describe(described.model_path) == described
    assert library(offline=True).describe("org/m:Q4_K_M") == described
    assert not hub.sent, "a header is fetched once"


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("Q5_K_M", "m-Q4_K_M.gguf, m-Q8_0.gguf, m-UD-Q8_0.gguf"),
        ("Q8_0", "2 files are of Q8_0: m-Q8_0.gguf, m-UD-Q8_0.gguf"),
        ("Q4_K", "no GGUF file"),
        ("other.gguf", "m-Q4_K_M.gguf"),
    ],
)
def test_a_name_that_fits_no_file_or_several_is_refused_with_the_list(hub, library, tmp_path, wanted, says):
    small = file_bytes(small_llama())
    publish(hub, tmp_path, **{"m-Q4_K_M": small, "m-Q8_0": small, "m-UD-Q8_0": small, "mmproj-Q4_K_M": small})
    refusal = refusal_of(library(), f"org/m:{wanted}")
    assert refusal.code == "model_not_found" and says in refusal.message and "org/m@" in refusal.message


def test_a_broken_header_at_the_hub_names_its_file(hub, library, tmp_path):
    publish(hub, tmp_path, broken=b"GGUF" + bytes(100), page=b"<html>" + b" " * 3000, empty=b"")
    for name, says in (("broken", "version 0"), ("page", "HTML"), ("empty", "empty")):
        refusal = refusal_of(library(), f"org/m:{name}.gguf")
        assert refusal.code == "bad_model" and f"{name}.gguf" in refusal.message and says in refusal.message


def test_a_hub_that_ignores_ranges_is_read_from_the_beginning(hub, library, tmp_path):
    publish(hub, tmp_path, m=file_bytes(large()))
    hub.ranges = False
    assert library().describe("org/m:m.gguf").spec.n_layers == 2


def test_a_repository_of_gguf_files_alone_asks_for_a_name(hub, library, tmp_path):
    publish(hub, tmp_path, **{"m-Q4_K_M": file_bytes(small_llama())})
    refusal = refusal_of(library(), "org/m")
    assert refusal.code == "bad_model" and f"org/m@{hub.commit('org/m')}:m-Q4_K_M.gguf" in refusal.message


def check_fetched(hub, tmp_path, order, raw: bytes) -> None:
    """What a worker has of its one file afterwards is what `raw` has there."""
    with closing(RangeCache(CacheRoom(root=tmp_path / "w0"), policy=RetryPolicy(tries=2))) as cache:
        supply = StoreSupply(cache, hub_opener(HubAccess(endpoint=hub.url)))
        folder = Path(supply.ensure(order, lambda done, total: None, lambda: False).sources[0].path)
        for tensor in order.tensors:
            part = slice(tensor.offset, tensor.offset + tensor.length)
            assert (folder / tensor.file).read_bytes()[part] == raw[part]


def test_a_worker_fetches_the_ranges_of_its_layers(hub, library, tmp_path):
    raw = file_bytes(small_llama())
    publish(hub, tmp_path, m=raw)
    described = library().describe("org/m:m.gguf")
    hub.bodies.clear()
    order = order_of(library(), described, 1, 2)
    check_fetched(hub, tmp_path, order, raw)
    assert sum(sent for _, _, sent in hub.sent) <= sum(tensor.length for tensor in order.tensors) * 1.3 + 4096


def test_the_hugging_face_cache_serves_a_file_it_has(hub, library, tmp_path):
    commit = publish(hub, tmp_path, m=file_bytes(small_llama()))
    root = tmp_path / "hf" / "models--org--m"
    first = library().describe("org/m:m.gguf")
    (root / "snapshots" / commit).mkdir(parents=True)
    (root / "blobs").mkdir()
    shutil.copy(tmp_path / "published" / "m.gguf", root / "blobs" / first.files[0].tag)
    (root / "snapshots" / commit / "m.gguf").symlink_to(Path("../../blobs") / first.files[0].tag)
    hub.bodies.clear()
    shutil.rmtree(tmp_path / "cache")
    described = library(hf_cache=tmp_path / "hf").describe("org/m:m.gguf")
    assert described.sources == (Directory(str(root / "snapshots" / commit)), HubCommit("org/m", commit))
    assert described.spec == first.spec and not hub.sent
    shutil.rmtree(tmp_path / "cache")
    alone = library(hf_cache=tmp_path / "hf", offline=True).describe(f"org/m@{commit}:m.gguf")
    assert alone.spec == first.spec and alone.model_path == first.model_path


# ---------------------------------------------------------------- commands


def test_plan_counts_the_bytes_of_the_file(tmp_path, model):
    settings = Settings(model=ModelSettings(cache_dir=str(tmp_path / "cache")))
    plan = plan_answer(plan_request(str(model), "1,1", "bfloat16", None, settings))
    described = local(tmp_path).describe(str(model))
    assert plan["fits"] and plan["model_path"] == str(model) and plan["tied"]
    assert plan["weight_bytes"] == sum(tensor.length for tensor in described.tensors) // 2, "float32 becomes bfloat16"


def test_up_looks_at_a_file_before_it_starts_anybody(tmp_path, model):
    check_model(absolute_model(str(model)), 128, tmp_path / "cache")
    model.write_bytes(model.read_bytes()[:-64])
    with pytest.raises(Complaint, match="cut short") as caught:
        check_model(str(model), 0, tmp_path / "cache")
    assert caught.value.exit_code == 7


def test_pull_brings_one_file(hub, tmp_path, monkeypatch):
    raw = file_bytes(small_llama())
    commit = publish(hub, tmp_path, **{"m-Q4_K_M": raw, "m-Q8_0": raw})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    settings = Settings(model=ModelSettings(cache_dir=str(tmp_path / "pulled")))
    pulled = pull_model("org/m:Q8_0", settings, lambda line: None)
    assert pulled["model"] == f"org/m@{commit}:m-Q8_0.gguf"
    assert [path.name for path in Path(pulled["weights"]).glob("*.gguf")] == ["m-Q8_0.gguf"]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("typed", "ref", "model_id"),
    [
        ("org/m:Q4_K_M", HubRef("org/m", "main", "Q4_K_M"), "org/m:Q4_K_M"),
        ("org/m@v1:m.Q4_1.gguf", HubRef("org/m", "v1", "m.Q4_1.gguf"), "org/m:m.Q4_1"),
        ("org/m@v1:m-00001-of-00003.gguf", HubRef("org/m", "v1", "m-00001-of-00003.gguf"), "org/m:m"),
        ("org/m:Q4/m-00001-of-00003.gguf", HubRef("org/m", "main", "m-00001-of-00003.gguf", "Q4"), "org/m:m"),
    ],
)
def test_names_at_the_hub(typed, ref, model_id):
    assert parse_ref(typed) == ref and default_model_id(typed) == model_id
    assert parse_ref(str(ref)) == ref


@pytest.mark.parametrize(
    "typed",
    ["org/m:", "org/m:/b", "org/m:a/", "org/m:a//b", "org/m:a/../b", "org/m:a:b", "m:Q4_K_M", "org/m:../x", "org/m: x"],
)
def test_what_is_no_name_of_a_file_at_the_hub(typed):
    assert hub_name(typed) is None


def test_a_path_gives_a_file_its_id():
    assert (
        default_model_id("/models/m-00001-of-00003.gguf") == "m" and default_model_id("/models/m.Q4_1.GGUF") == "m.Q4_1"
    )
    assert default_model_id("/models/plain") == "plain"
