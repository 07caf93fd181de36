# Builds with docker, podman and buildah: `make image`. Both stages must have the same Python.
ARG BASE=docker.io/library/python:3.12-slim

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt setup.cfg pyproject.toml README.md LICENSE ./
COPY registry registry
# Compiled files that hold no times: the same source makes the same bytes, and nothing is written
# when the service starts.
RUN python -m venv /opt/registry \
    && /opt/registry/bin/pip install --no-compile --constraint constraints.txt '.[postgresql]' \
    && /opt/registry/bin/pip uninstall --quiet --yes pip setuptools \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/registry/lib

FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends git openssh-client \
    && useradd --uid 10001 --home-dir /srv/registry --create-home --shell /usr/sbin/nologin registry \
    && install -d -o registry -g registry /srv/registry/var \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
        /usr/local/bin/pip* /usr/local/lib/python3.*/ensurepip /usr/local/lib/python3.*/site-packages/*
COPY --from=build /opt/registry /opt/registry
COPY config /srv/registry/config
WORKDIR /srv/registry
USER 10001
ENV PATH=/opt/registry/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PORT=8080
VOLUME /srv/registry/var
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s CMD ["python", "-c", "import os, urllib.request as web; web.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/healthz', timeout=2)"]
CMD ["sh", "-c", "exec registry serve --host 0.0.0.0 --port \"$PORT\""]
