"""What several test files share: one made run a session."""

import pytest


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """The folder of a whole run (example_run.py); to be read only."""
    import example_run

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENAI_BASE_URL", raising=False)
        return example_run.make(tmp_path_factory.mktemp("runs") / "run")
