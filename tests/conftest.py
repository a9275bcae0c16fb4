"""One plugin file per outside thing the tests use."""

pytest_plugins = ["tests.fix_control", "tests.fix_stack"]
