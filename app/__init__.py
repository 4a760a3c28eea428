"""A web page and a 3D viewer around the pipeline: optional, in an environment of their own (requirements-app.txt)."""
