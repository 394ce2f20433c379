"""Foreign suites are run in parts: a class names those of its tests that another one runs."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what a class says is run `elsewhere`."""

    def is_elsewhere(item: pytest.Item) -> bool:
        return isinstance(item, pytest.Function) and item.originalname in getattr(item.cls, "elsewhere", ())

    config.hook.pytest_deselected(items=[item for item in items if is_elsewhere(item)])
    items[:] = [item for item in items if not is_elsewhere(item)]
