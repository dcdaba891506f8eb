# A static binary and nothing else; PKCS#11 tokens need a dynamic one (make build) and the library of the token. Mount the configuration at /etc/enrollgate and a volume at /var/lib/enrollgate.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 GOEXPERIMENT=runtimesecret go build -trimpath -ldflags '-s -w' -o /enrollgate ./cmd/enrollgate && mkdir -p /var/lib/enrollgate

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /enrollgate /enrollgate
COPY --from=build --chown=65532:65532 /var/lib/enrollgate /var/lib/enrollgate
USER 65532:65532
EXPOSE 443 80 9464 135 49200
VOLUME /var/lib/enrollgate
HEALTHCHECK --interval=30s --timeout=6s --start-period=20s CMD ["/enrollgate", "health"]
ENTRYPOINT ["/enrollgate"]
CMD ["serve"]
