# The command in a container: slim, not root, every version that runs pinned.
#   docker build -t sftprep .
#   docker run --rm -v "$PWD:/data" sftprep validate chats.jsonl
# PIP_ARGS chooses another package index, for instance one with CPU builds of torch.
FROM python:3.11.13-slim-bookworm AS build
ARG PIP_ARGS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/sftprep
WORKDIR /src
# The lock first: the layer with the large wheels survives a change of the source.
COPY requirements.lock .
RUN /opt/sftprep/bin/pip install ${PIP_ARGS} -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY data_samples data_samples
COPY sftprep sftprep
RUN /opt/sftprep/bin/pip install ${PIP_ARGS} -c requirements.lock '.[train]'

FROM python:3.11.13-slim-bookworm
RUN useradd --uid 1000 --create-home sftprep
COPY --from=build /opt/sftprep /opt/sftprep
ENV PATH=/opt/sftprep/bin:$PATH PYTHONUNBUFFERED=1
USER sftprep
WORKDIR /data
ENTRYPOINT ["sftprep"]
CMD ["--help"]
