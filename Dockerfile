# For a machine with an NVIDIA GPU and the NVIDIA container toolkit (docs/INSTALL.md has the commands).
FROM python:3.11-slim-bookworm

# libgomp and libGL are what the wheels of PyTorch and of the mesh tools expect from the system
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/sap3d
COPY requirements.txt requirements-photos.txt ./
RUN python -m pip install --no-cache-dir -r requirements.txt -r requirements-photos.txt
COPY . .

# Results and own photos live outside of the image: -v "$PWD/runs:/runs"
ENV PYTHON=/usr/local/bin/python ROOT_DIR=/runs NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["sh", "/opt/sap3d/run_pipeline.sh"]
