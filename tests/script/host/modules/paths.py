import tempfile

script_path = "/home/somebody/stable-diffusion-webui"
data_path = tempfile.mkdtemp()
