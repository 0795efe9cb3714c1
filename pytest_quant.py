"""The entry point of the pytest plugin: three options, and nothing else unless --manifest is given.

It lies outside of the package because every run of pytest imports it where the package is installed, and importing
`quant` settles which programs Paddle writes in that process: users' own tests are to run as they did.
"""

import pytest

__all__ = ["pytest_addoption", "pytest_configure"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("quant-manifest", "INT8 models of a manifest")
    group.addoption(
        "--manifest",
        dest="quant_manifest",
        metavar="FILE",
        help="collect the cases of the models that a quant.toml lists",
    )
    group.addoption(
        "--quant-history",
        dest="quant_history",
        metavar="DIR",
        default=".quant",
        help="where the accuracy of these models is kept, a file each run (default: %(default)s)",
    )
    group.addoption(
        "--quant-save",
        dest="quant_save",
        metavar="DIR",
        help="leave the INT8 models whose cases pass here, each in a directory NAME",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quant_manifest") is not None:
        from quant.pytest_plugin import Plugin

        config.pluginmanager.register(Plugin(config), "quant-manifest")
