"""A text past a learned table of positions is refused in a line; a rotary model takes any length."""

from __future__ import annotations

import pytest

from misdirect.model.lm import LM
from misdirect.model.load import check_length, load_lm
from misdirect.model.score import text_logprobs
from tiny import tiny_folder


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LM:
    return load_lm(str(tiny_folder(tmp_path_factory.mktemp("models"), request.param)), device="cpu")


def test_only_a_learned_table_limits_the_length(lm: LM) -> None:
    limit = lm.model.config.max_position_embeddings
    check_length(lm, limit, "a text")
    if lm.model.config.model_type == "gpt2":
        with pytest.raises(
            ValueError, match=rf"a text has {limit + 1} tokens .* takes {limit} at most; .*--max-tokens"
        ):
            text_logprobs(lm, [[5] * (limit + 1)])
    else:
        check_length(lm, limit + 1, "a text")
        assert len(text_logprobs(lm, [[5] * (limit + 1)])[0]) == limit
