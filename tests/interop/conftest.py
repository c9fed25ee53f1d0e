"""What the comparisons with other libraries share."""

from pathlib import Path

import pytest

PEFTS_REMARKS = (
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Model has `tie_word_embeddings=True` and a tied layer",
    "ignore:fan_in_fan_out is set to:UserWarning",
    "ignore:Setting `save_embedding_layers` to `True`:UserWarning",
)
"""What PEFT says about things it does on its own; none of it concerns what is tested."""


def pytest_collection_modifyitems(items):
    """Let the tests against PEFT pass over its remarks; other warnings stay errors."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name.startswith("test_peft"):
            for remark in PEFTS_REMARKS:
                item.add_marker(pytest.mark.filterwarnings(remark))


@pytest.fixture(scope="module", autouse=True)
def _without_model_cards():
    """Let PEFT write no model card: rendering it takes longer than saving an adapter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peft.PeftModel.create_or_update_model_card", lambda *_: None)
        yield
