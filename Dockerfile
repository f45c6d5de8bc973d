# Two images. `runtime`, the last, is what a device runs: it builds the bundle's engine at first start, keeps it in /cache, and
# runs a verb on it. `export` makes bundles, on a CPU. docs/how-to/docker.md has the commands for each kind of device.
#   docker build -t sknet . && docker run --gpus all -v engines:/cache sknet
#   docker build --target export -t sknet-export .

# Python 3.11 or later with pip, and for `runtime` on a GPU, TensorRT with its Python module:
#   x86-64 servers and RTX, JetPack 7 (Thor)   nvcr.io/nvidia/tensorrt:25.08-py3
#   JetPack 6 (Orin)                           nvcr.io/nvidia/tensorrt:25.04-py3-igpu
ARG BASE_IMAGE=nvcr.io/nvidia/tensorrt:25.08-py3

# Everything is installed in stages that are left behind, with pip, its caches and the build's tools, and copied from there. The
# environment sees the base's packages for TensorRT's sake alone: what skdeploy needs is installed into it, whatever the base has.
FROM ${BASE_IMAGE} AS builder
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_CONSTRAINT=/src/constraints.txt
RUN python3 -m venv --without-pip --system-site-packages /opt/skdeploy
COPY pyproject.toml constraints.txt ./
COPY tools/requirements.py tools/

# What runs a bundle: no torch. Packages' own tests are 36 MB that nothing imports; compiled Python stays, for a quick start.
FROM builder AS runtime-builder
RUN python3 tools/requirements.py cpu plans > requirements.txt \
 && python3 -m pip --python /opt/skdeploy/bin/python install --quiet --ignore-installed -r requirements.txt \
 && find /opt/skdeploy -type d -name tests -prune -exec rm -r {} +
COPY README.md ./
COPY models models
COPY calibration calibration
COPY skdeploy skdeploy
RUN python3 -m pip --python /opt/skdeploy/bin/python install --quiet --no-deps .

# What makes a bundle: torch for the CPU, if an index that has this build is given as PIP_EXTRA_INDEX_URL; on x86-64, the package
# index itself has torch with 2 GB of CUDA. Tests of packages, and torch's headers and test programs, are
# 300 MB that nothing here uses.
FROM builder AS export-builder
ARG PIP_EXTRA_INDEX_URL
RUN python3 tools/requirements.py cpu export report > requirements.txt \
 && python3 -m pip --python /opt/skdeploy/bin/python install --quiet --ignore-installed -r requirements.txt \
 && find /opt/skdeploy -type d -name tests -prune -exec rm -r {} + \
 && find /opt/skdeploy/lib/*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete \
 && rm -r /opt/skdeploy/lib/*/site-packages/torch/include /opt/skdeploy/lib/*/site-packages/torch/test
COPY README.md ./
COPY models models
COPY calibration calibration
COPY skdeploy skdeploy
RUN python3 -m pip --python /opt/skdeploy/bin/python install --quiet --no-deps .

FROM ${BASE_IMAGE} AS export
COPY --from=export-builder /opt/skdeploy /opt/skdeploy
ENV PATH=/opt/skdeploy/bin:$PATH PYTHONUNBUFFERED=1 HOME=/work
RUN useradd --uid 10001 --home-dir /work --no-create-home skdeploy \
 && install -d -o skdeploy -g skdeploy /work
USER 10001
WORKDIR /work
ENTRYPOINT ["skdeploy"]
CMD ["--help"]

# The bundle that `runtime` carries. Mount another one over /bundle, or build another one in: WEIGHTS is a file of this folder.
FROM export AS bundle
ARG MODEL=sknet-fashion
ARG WEIGHTS=models/weights/sknet-fashion.safetensors
ARG EXPORT_ARGS="--fp16 --target onnx"
COPY models models
# hadolint ignore=SC2086  # EXPORT_ARGS is several words
RUN skdeploy export "$MODEL" --weights "$WEIGHTS" $EXPORT_ARGS --output /work/bundle

FROM ${BASE_IMAGE} AS runtime
COPY --from=runtime-builder /opt/skdeploy /opt/skdeploy
COPY --from=bundle /work/bundle /bundle
ENV PATH=/opt/skdeploy/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp XDG_CACHE_HOME=/cache \
    SKDEPLOY_BUNDLE=/bundle SKDEPLOY_CACHE=/cache
# A new volume takes the owner of the folder that it is mounted on.
RUN useradd --uid 10001 --home-dir /tmp --no-create-home skdeploy \
 && install -d -o skdeploy -g skdeploy /cache
USER 10001
WORKDIR /tmp
VOLUME /cache
# An engine is built in minutes where the device is small; until then there is nothing to probe.
HEALTHCHECK --interval=60s --timeout=30s --start-period=15m --retries=3 CMD ["skdeploy", "start", "--probe"]
ENTRYPOINT ["skdeploy", "start"]
CMD ["verify"]
