"""Every shape and type that a signature states is checked while the tests run."""

import os

from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs the network, and where there is none the hub is asked for 23 seconds

install_import_hook("misdirect", "beartype.beartype")  # before anything imports misdirect

import gc  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it computes

from hypothesis import Phase, settings  # noqa: E402

# Without the phase that explains a failure: it traces every line, and CPython 3.11 has crashed under that in a generator.
settings.register_profile("untraced", phases=[phase for phase in Phase if phase is not Phase.explain])
settings.load_profile("untraced")


@pytest.fixture(scope="module", autouse=True)
def swept() -> None:
    """What is imported or was made by earlier tests is not looked through again at every garbage collection."""
    gc.collect()
    gc.freeze()


FEW = {"llama", "gpt2", "mixtral"}
WHOLE = {"test_families.py", "test_published.py"}  # these choose for themselves


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is asked of every family is long but for a few of them.

    The command line's fuzz tests first: late in a long session CPython 3.11.7 itself has crashed under them.

    Seen twice as a segmentation fault and twice as `SystemError: error return without exception set`, each time in a
    class of the standard library (`Callable[..., Any]`, `pathlib`); never in a session that begins with them.
    """
    for item in items:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        family = given.get("family", given.get("case"))
        name = family[0] if isinstance(family, tuple) else family
        if isinstance(name, str) and name not in FEW and item.path.name not in WHOLE:
            item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: item.path.name != "test_fuzz_cli.py")
