# One image for each compose profile: `demo` runs the bundled model on a CPU, `gpu` any Qwen3-VL on an NVIDIA card.
# Debian 12, because its own Python is 3.11: the headers Triton needs are then the ones of python3-dev.
FROM debian:bookworm-slim AS base
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 qwen3vl \
 && install --directory --owner qwen3vl --mode 0700 /var/lib/qwen3vl /var/cache/huggingface
ENV PATH=/opt/venv/bin:$PATH HF_HOME=/var/cache/huggingface PYTHONUNBUFFERED=1 \
    QWEN3VL_SERVER__HOST=0.0.0.0 QWEN3VL_SERVER__STATE_DIR=/var/lib/qwen3vl
# Where pip may find a CPU build of torch, which spares the demo image several GB; without it pip takes the CUDA build.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /srv/qwen3vl-compat
COPY pyproject.toml requirements.lock ./
# The dependencies alone, in a layer that a change of the code leaves as it is.
RUN python3 -m venv /opt/venv \
 && pip install --no-cache-dir --require-hashes --no-deps -r requirements.lock \
 && pip install --no-cache-dir "$(grep -o 'torch==[0-9.]*' pyproject.toml)"
COPY README.md LICENSE ./
COPY adapters adapters
COPY policies policies
COPY qwen3vl_compat qwen3vl_compat
RUN pip install --no-cache-dir --no-build-isolation '.[local,langchain]'
EXPOSE 8080
VOLUME /var/lib/qwen3vl
ENTRYPOINT ["qwen3vl-compat"]
CMD ["serve"]

FROM base AS gpu
# Triton writes, compiles and links a small C module when the first kernel is launched.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev \
 && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER qwen3vl

FROM base AS demo
USER qwen3vl
