# One image for every program of ours: the API (the default), `python worker.py` and `python -m timemachine.setup`.

FROM python:3.13.15-slim-trixie AS packages
COPY requirements.txt .
# Wheels only: nothing is compiled, so neither stage has a compiler.
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --only-binary :all: --require-hashes -r requirements.txt

FROM python:3.13.15-slim-trixie
# Unbuffered, so that the last lines before a crash are in the log.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
COPY --from=packages /venv /venv
WORKDIR /app
COPY worker.py ./
COPY activities activities
COPY api api
COPY timemachine timemachine
COPY workflows workflows
# By number: Kubernetes' runAsNonRoot cannot judge a name.
USER 10001:10001
EXPOSE 8080
# Exec form, so that SIGTERM reaches Python and not a shell.
CMD ["python", "-m", "api"]
