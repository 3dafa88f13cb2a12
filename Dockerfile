# Image of the BIDS App: the first stage installs, the second only holds what runs.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# Empty: the package index alone, whose torch for Linux is the CUDA build.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY constraints.txt ./
# torch from its own index and the rest without it: pip asks every index for every package.
RUN pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt --no-deps \
    ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} torch
COPY . .
# Nothing is compiled in the image: what serves compilers and test suites is 0.3 GB too much.
RUN pip --python /opt/venv/bin/python install --no-cache-dir --constraint constraints.txt \
        ".[dask,demo,report,train]" \
    && find /opt/venv -depth \( -name tests -o -path '*/torch/test' -o -path '*/torch/include' \
        -o -path '*/torch/bin/*' ! -name torch_shm_manager \) -exec rm -rf {} +

FROM ${BASE_IMAGE}
COPY --from=build /opt/venv /opt/venv
COPY LICENSE NOTICE /usr/share/doc/bids_synthseg/
# The App runs as any user, without a home, on a read-only root: all that is written goes to /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    NUMBA_CACHE_DIR=/tmp/numba \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor
# TAG is what the outputs say they were made with (GeneratedBy.Container).
ARG TAG=""
ARG VERSION=""
ARG REVISION=""
ARG SOURCE=""
ENV BIDS_SYNTHSEG_DOCKER_TAG=${TAG}
LABEL org.opencontainers.image.title="bids_synthseg" \
      org.opencontainers.image.description="Segmentation of T1w and T2w brain MRI from fetus to adult, as a BIDS App" \
      org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-weights" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT ["bids_synthseg"]
