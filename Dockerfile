# The service and its command queue-service. docs/deploy.md shows how to run it.

FROM python:3.13-slim AS build
WORKDIR /build
COPY requirements.txt ./
RUN python -m venv --without-pip /venv \
    && python -m pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary :all: -r requirements.txt
COPY pyproject.toml README.md LICENSE gunicorn.conf.py handler.py settings.py ./
COPY web web/
COPY storage storage/
COPY clients clients/
RUN python -m pip wheel --no-cache-dir --disable-pip-version-check --no-deps --wheel-dir /wheel . \
    && python -m pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-deps --no-index /wheel/*.whl

FROM python:3.13-slim
LABEL org.opencontainers.image.title="queue_service" \
      org.opencontainers.image.description="A durable message queue over HTTP and JSON" \
      org.opencontainers.image.licenses="MIT"
# /data holds the messages. A new named volume takes over its owner, so the service can write there.
RUN useradd --system --uid 10001 --user-group --home-dir /data --no-create-home --shell /usr/sbin/nologin queue \
    && install --directory --owner queue --group queue --mode 0750 /data
COPY --from=build /venv /venv
# On 0.0.0.0 the service refuses to start without tokens or QUEUE_ALLOW_ANONYMOUS=yes.
# SQLITE_TMPDIR is for `queue-service vacuum`, since the rest of the disk is read-only.
ENV PATH="/venv/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    QUEUE_HOST=0.0.0.0 \
    PORT=5000 \
    QUEUE_DATABASE_URL=sqlite:////data/queue.db \
    SQLITE_TMPDIR=/data
USER 10001:10001
VOLUME /data
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/health\", timeout=4)"]
CMD ["queue-service", "serve"]
