"""The token that `hf auth login` left on this machine.

Promises: it is used only where no other was given, and only with the Hub itself: a mirror or another Hub that
HF_ENDPOINT names gets the token that was set for it, and no other. HF_HUB_DISABLE_IMPLICIT_TOKEN forbids it altogether.
Refuses to know how logins are kept.
"""

import attrs
from huggingface_hub import constants, get_token

from hydra.store.models.model_ref import ENDPOINT, HubAccess


def with_login(access: HubAccess) -> HubAccess:
    """`access`, by whoever is logged in here if it has no token."""
    if access.token or access.offline or access.endpoint != ENDPOINT or constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return access
    return attrs.evolve(access, token=get_token() or "")
