"""Which sandbox there is: named by the user, or the first that holds.

    auto              a zygote behind Landlock and seccomp, else bubblewrap, else none
    zygote, bubblewrap
    docker:IMAGE      a container for each sample, of an image that has Python 3.11 or later
    http://…          a service with the API of SandboxFusion (`/run_code`)

`shared_sandbox` reads the name from the environment variable METIER_SANDBOX, which worker processes
inherit. None is ever passed over in silence for one that does not hold.
"""

from __future__ import annotations

import atexit
import functools
import os

from metier.base.errors import DataError
from metier.sandbox.local import Bubblewrap, Docker, LocalSandbox, Zygote
from metier.sandbox.protocol import Sandbox, SandboxUnavailableError

__all__ = ["open_sandbox", "shared_sandbox"]


def open_sandbox(name: str = "auto") -> Sandbox:
    """The sandbox of that name, tried and found to hold.

    Raises `SandboxUnavailableError` where it does not, `DataError` for a name that means none.
    """
    if name.startswith(("http://", "https://")):
        from metier.sandbox.remote import RemoteSandbox  # an HTTP client takes a while to import

        return RemoteSandbox(name)
    if name.startswith("docker:"):
        return LocalSandbox(Docker(name.removeprefix("docker:")))
    if name == "zygote":
        return LocalSandbox(Zygote())
    if name == "bubblewrap":
        return LocalSandbox(Bubblewrap())
    if name != "auto":
        raise DataError(
            f"there is no sandbox {name!r}; known are auto, zygote, bubblewrap, docker:IMAGE and the URL of a service"
        )
    reasons = []
    for starter in (Zygote(), Bubblewrap()):
        try:
            return LocalSandbox(starter)
        except SandboxUnavailableError as error:
            reasons.append(str(error))
    raise SandboxUnavailableError("; ".join(reasons))


def shared_sandbox() -> Sandbox:
    """This process's sandbox, opened when it is first asked for. Raises as `open_sandbox` does, each time."""
    return _shared(os.environ.get("METIER_SANDBOX") or "auto", os.getpid())


@functools.cache
def _shared(name: str, pid: int) -> Sandbox:
    sandbox = open_sandbox(name)
    atexit.register(sandbox.close)
    return sandbox
