"""Errors that the host prints and then ignores. Here they are kept, so that tests can look at them."""

import sys

reported = []


def report(message, exc_info=False):
    reported.append((message, sys.exc_info()[1]))
