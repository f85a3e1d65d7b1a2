"""A minimal `modules` package of the WebUI: its call order and its habits, as far as an extension's scripts notice."""
