"""What a configuration is refused for before anything is created."""

from __future__ import annotations

import pytest

from refresher_runner.compose import compose
from refresher_runner.errors import ConfigError
from refresher_runner.settings import check


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_several_devices_are_not_one(device: str) -> None:
    config, _ = compose([f"trainer.device={device}"])
    check(config)
    config, _ = compose([f"trainer.device={device}", "trainer.devices=2"])
    with pytest.raises(ConfigError) as refused:
        check(config)
    assert (refused.value.key, refused.value.cure) == ("trainer.device", "use trainer.device=cuda")
