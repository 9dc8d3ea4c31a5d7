FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
ARG REVISION=unknown
RUN make build TAGS=nodemo VERSION="$VERSION" REVISION="$REVISION"

FROM gcr.io/distroless/static-debian12:nonroot
LABEL org.opencontainers.image.title="lag-monitor" \
      org.opencontainers.image.description="Injects heartbeats at the head of pipelines and measures how late they come out, if they do" \
      org.opencontainers.image.source="https://github.com/lag-monitor/lag-monitor" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/bin/lag-monitor /lag-monitor
# The number, not the name: Kubernetes checks runAsNonRoot by it.
USER 65532:65532
EXPOSE 9847
ENTRYPOINT ["/lag-monitor"]
