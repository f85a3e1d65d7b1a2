"""The least of the WebUI's `modules` package that scripts of an extension notice: its call order and its habits."""
