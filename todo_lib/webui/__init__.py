"""The WebUI's side of ToDo: the only package here that may import gradio or the WebUI's `modules`."""
