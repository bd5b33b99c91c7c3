"""Every shape and type that a signature states is checked while the tests run."""

from jaxtyping import install_import_hook

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The command line's fuzz tests first: late in a long session CPython 3.11.7 itself has crashed under them.

    Seen twice as a segmentation fault and twice as `SystemError: error return without exception set`, each time in a
    class of the standard library (`Callable[..., Any]`, `pathlib`); never in a session that begins with them.
    """
    items.sort(key=lambda item: item.path.name != "test_fuzz_cli.py")
