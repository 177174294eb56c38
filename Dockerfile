# The server and all commands, with the weights inside: nothing is fetched when it runs.
#
#   docker build -t captioner .                                     for CPUs, and GPUs with NVIDIA's driver
#   docker build -t captioner --build-arg TORCH_INDEX=https://… .   with torch from there: for CPUs alone it is lean
#
# An index of your own: --secret id=pip.conf,src=$HOME/.config/pip/pip.conf ; pip's configuration is there for the
# build's commands alone and gets into no layer.
ARG BASE_IMAGE=docker.io/library/python:3.11.14-slim-bookworm

# What captioner needs, in an environment that changes only with pyproject.toml and constraints.txt.
FROM ${BASE_IMAGE} AS dependencies
# An index that has the build of torch you want, such as the CPU one that PyTorch's installation page names; none:
# pip's own, whose build for Linux runs on CPUs and on NVIDIA GPUs alike, but is several GB
ARG TORCH_INDEX=
ARG TORCH_VERSION=2.14.1
WORKDIR /build
RUN python3 -m venv /build/pip && python3 -m venv --without-pip /opt/captioner
COPY pyproject.toml constraints.txt ./
# torch brings what its build needs. timm and torchvision stay away: only checkpoints with a backbone of timm want
# them, and no command makes such
RUN python3 -c "import re, tomllib; \
        needed = tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']; \
        print(*(line for line in needed if not re.match('timm|torch', line)), sep='\n')" > requirements.txt \
    && grep --invert-match --extended-regexp '^(cuda|nvidia|torch|triton)' constraints.txt > pins.txt
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip/bin/pip --python /opt/captioner/bin/python --no-cache-dir install --only-binary :all: \
        ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
        "torch==${TORCH_VERSION}" --requirement requirements.txt --constraint pins.txt

FROM dependencies AS program
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY captioner captioner
COPY service service
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip/bin/pip --python /opt/captioner/bin/python --no-cache-dir install --no-deps --prefix /program .

# A checkpoint just trained is its owner's alone.
FROM ${BASE_IMAGE} AS weights
COPY weights /weights
RUN chmod -R a+rX /weights

FROM ${BASE_IMAGE}
ARG VERSION=unknown
LABEL org.opencontainers.image.title="Captioner" \
      org.opencontainers.image.description="Captions for photographs, and where the model looked for each word" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
RUN useradd --uid 10001 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin captioner \
    && install --directory --owner captioner /var/cache/captioner
COPY --from=dependencies /opt/captioner /opt/captioner
# torch for GPUs brings Triton, which compiles kernels when the image first runs on a GPU, and wants a C compiler
RUN if test -d /opt/captioner/lib/python*/site-packages/triton; then \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=weights /weights /opt/captioner/weights
COPY --from=program /program /opt/captioner
ENV PATH=/opt/captioner/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    TRITON_CACHE_DIR=/var/cache/captioner \
    CAPTIONER_WEIGHTS=/opt/captioner/weights \
    CAPTIONER_HOST=0.0.0.0 \
    CAPTIONER_PORT=8000
USER 10001:10001
WORKDIR /photos
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"CAPTIONER_PORT\"]}/readyz')"]
ENTRYPOINT ["captioner"]
CMD ["serve"]
