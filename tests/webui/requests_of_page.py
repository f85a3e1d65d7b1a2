"""Count the requests that the live plan sends to the server, and what changes in the accordion meanwhile."""

import contextlib
import json
import time
from types import SimpleNamespace

# The numbers of the events that ask for the live plan, in gradio 3 and in gradio 4.
EVENTS = """
() => {
    const ids = new Set(gradio_config.components.filter(
        (part) => /_todo_ask$/.test((part.props || {}).elem_id)).map((part) => part.id));
    const starts = (event) => event.targets.map((target) => Array.isArray(target) ? target[0] : target);
    return gradio_config.dependencies.flatMap(
        (event, place) => event.backend_fn && starts(event).some((id) => ids.has(id)) ? [event.id ?? place] : []);
}
"""
WATCH = """
(id) => {
    window.todoChanges = [];
    window.todoWatcher = new MutationObserver((records) => {
        for (const record of records) {
            const {type, attributeName, target} = record;
            window.todoChanges.push(`${type} ${attributeName || ''} <${target.nodeName} ${target.className}>`);
        }
    });
    const all = {attributes: true, childList: true, characterData: true, subtree: true};
    window.todoWatcher.observe(gradioApp().getElementById(id), all);
}
"""
UNWATCH = "() => { window.todoWatcher.disconnect(); return window.todoChanges; }"


# A second and a half by the page's own clock, which is slow on a busy machine: it looks once in 100 milliseconds.
REST = """
() => new Promise((rested) => {
    let looks = 0;
    const timer = setInterval(() => { if (++looks === 15) { clearInterval(timer); rested(); } }, 100);
})
"""


def rest(page):
    """Wait for as long as the page needs to ask for a plan, if it is going to."""
    page.evaluate(REST)


def wait_for_request(page, seen, timeout=60):
    """Wait until there was a request, and for others that may follow it."""
    end = time.monotonic() + timeout
    while not seen.count and time.monotonic() < end:
        page.wait_for_timeout(100)
    rest(page)


@contextlib.contextmanager
def counting(page):
    """Yields an object whose `count` is the number of requests for a plan so far."""
    events = set(page.evaluate(EVENTS))
    assert events
    seen = SimpleNamespace(count=0)

    def note(request):
        if request.method == "POST" and "fn_index" in (request.post_data or ""):
            seen.count += json.loads(request.post_data)["fn_index"] in events

    page.on("request", note)
    try:
        yield seen
    finally:
        page.remove_listener("request", note)


@contextlib.contextmanager
def watching(page, elem_id):
    """Yields a list that has all changes of the DOM inside this element at the end."""
    page.evaluate(WATCH, elem_id)
    changes = []
    try:
        yield changes
    finally:
        changes += page.evaluate(UNWATCH)
