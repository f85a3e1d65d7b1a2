"""What the host swallows, it prints. Here it is kept, so that tests can look."""

import sys

reported = []


def report(message):
    reported.append((message, sys.exc_info()[1]))
