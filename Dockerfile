FROM python:3.12-slim AS build
WORKDIR /src
COPY constraints.txt setup.cfg pyproject.toml README.md LICENSE ./
COPY registry registry
RUN python -m venv /opt/registry \
    && /opt/registry/bin/pip install --no-cache-dir --constraint constraints.txt '.[postgresql]'

FROM python:3.12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends git openssh-client \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /srv/registry --create-home registry
COPY --from=build /opt/registry /opt/registry
COPY config /srv/registry/config
WORKDIR /srv/registry
RUN install -d -o registry -g registry var
USER registry
ENV PATH=/opt/registry/bin:$PATH PYTHONUNBUFFERED=1
VOLUME /srv/registry/var
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
CMD ["registry", "serve", "--host", "0.0.0.0", "--port", "8080"]
