"""Code that comes with a model: it runs where the user has allowed it, and nobody asks on stdin.

transformers asks "Do you wish to run the custom code? [y/N]" on the terminal where it is not told
`trust_remote_code`. Everything that lorakit loads goes through these functions, which tell it.
"""

from __future__ import annotations

from typing import Any

from lorakit.libraries.hub import cache_alone_if_unreachable, is_hub_id


def load_pretrained(auto_class: Any, name: Any, *, trust_remote_code: bool, **options: Any) -> Any:
    """Call `auto_class.from_pretrained`.

    Args:
        auto_class: A class of transformers: of a configuration, a tokenizer or a model.
        name: Hub id or local directory.
        trust_remote_code: Whether code that comes with it may run.
        options: Passed on.

    Raises:
        ValueError: It needs code of its own, which must not run.
    """
    options["trust_remote_code"] = trust_remote_code
    if not is_hub_id(name, is_base=True):
        return auto_class.from_pretrained(name, **options)
    with cache_alone_if_unreachable():
        return auto_class.from_pretrained(name, **options)


def build_from_config(
    auto_class: Any, config: Any, *, trust_remote_code: bool, device: Any = None, **options: Any
) -> Any:
    """Build a model without weights from its configuration.

    Args:
        auto_class: An auto class of transformers, or the class of a model.
        config: The configuration.
        trust_remote_code: Whether code that comes with it may run.
        device: Device of the uninitialized parameters; None for the meta device.
        options: Other options, such as `dtype`.

    Raises:
        ValueError: It needs code of its own, which must not run.
    """
    import torch

    with torch.device(device or "meta"):
        if hasattr(auto_class, "from_config"):
            return auto_class.from_config(config, trust_remote_code=trust_remote_code, **options)
        return auto_class._from_config(config, **options)  # the class is here: no code is fetched
