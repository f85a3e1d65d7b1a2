"""The options of the tests."""


def pytest_addoption(parser):
    parser.addoption("--compatibility", action="store_true", help="make the compatibility table, and write its page")
    parser.addoption("--soak", type=int, help="make so many generations at random on one WebUI")
