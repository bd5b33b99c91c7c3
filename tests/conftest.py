"""Every shape and type that a signature states is checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("misdirect", "beartype.beartype")  # before anything imports misdirect

import torch  # noqa: E402

torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it computes

from hypothesis import Phase, settings  # noqa: E402

# Without the phase that explains a failure: it traces every line, and CPython 3.11 has crashed under that in a generator.
settings.register_profile("untraced", phases=[phase for phase in Phase if phase is not Phase.explain])
settings.load_profile("untraced")
