"""Every shape and type that a signature states is checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("misdirect", "beartype.beartype")  # before anything imports misdirect

import torch  # noqa: E402

torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it computes
