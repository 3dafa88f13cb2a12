# Image of the BIDS App: the first stage installs, the second only holds what runs.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /build
RUN python -m venv /opt/venv
COPY constraints.txt ./
# torch from its own index and the rest without it: pip asks every index for every package.
RUN /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt --no-deps \
    ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} torch==2.13.0
COPY . .
RUN /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt ".[demo,report,train]"

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="bids_synthseg" \
      org.opencontainers.image.description="Segmentation of T1w and T2w brain MRI from fetus to adult, as a BIDS App" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
# What the outputs say they were made with (GeneratedBy.Container).
ARG TAG=""
# The App runs as any user, without a home, on a read-only root: all that is written goes to /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    NUMBA_CACHE_DIR=/tmp/numba \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    BIDS_SYNTHSEG_DOCKER_TAG=${TAG}
WORKDIR /tmp
USER 1000
ENTRYPOINT ["bids_synthseg"]
