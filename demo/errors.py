"""How a demo says that it did not work."""


class DemoError(Exception):
    """The demo failed; the message is a sentence for whoever runs it."""
