# One process, one volume. Build: docker build -t stripemeter .
# Run:   docker run -p 3000:3000 -v stripemeter:/data -e STRIPEMETER_ADMIN_KEY=... stripemeter
# Listening beyond loopback makes API keys required (STRIPEMETER_AUTH).

FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/stripemeter
COPY requirements.lock pyproject.toml README.md CHANGELOG.md ./
COPY engine/ engine/
COPY wal/ wal/
COPY gateway/ gateway/
COPY sdk/python/stripemeter/ sdk/python/stripemeter/
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
 && /opt/stripemeter/bin/pip install --no-cache-dir --constraint requirements.lock /wheels/*.whl

FROM python:3.11-slim
RUN useradd --system --user-group --uid 10001 --home-dir /data --no-create-home stripemeter \
 && install --directory --owner stripemeter --group stripemeter --mode 0700 /data
COPY --from=build /opt/stripemeter /opt/stripemeter
ENV PATH=/opt/stripemeter/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    STRIPEMETER_HOST=0.0.0.0 \
    STRIPEMETER_DATA_DIR=/data
USER stripemeter
WORKDIR /data
VOLUME /data
EXPOSE 3000
STOPSIGNAL SIGTERM
# Ready, not only alive: it answers 503 while recovering, which the start period allows for.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + (os.environ.get('STRIPEMETER_PORT') or '3000') + '/health/ready', timeout=4)"]
# Exec form: the server itself is process 1 and gets SIGTERM, which a shell in between would swallow. It
# installs its own handlers, without which the kernel ignores the signal for process 1.
ENTRYPOINT ["stripemeter"]
CMD ["serve"]
