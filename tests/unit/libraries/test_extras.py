import re

import pytest

from lorakit.errors import ConfigError
from lorakit.libraries import extras


def test_a_missing_package_is_named_with_the_extra_that_installs_it(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    wanted = (
        "training.predict_with_generate needs the package rouge_score, which is not installed. "
        "Install it: pip install 'lorakit[metrics]'."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(wanted)}$"):
        extras.require_package("rouge_score", "training.predict_with_generate")


def test_an_installed_package_is_found():
    extras.require_package("seqeval", "task TOKEN_CLS")
