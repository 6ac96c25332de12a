package rabbitmq

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"

	amqp "github.com/rabbitmq/amqp091-go"
)

// secure speaks TLS over s if a asks for it. If the client did so, the frames could not be read before the client reads
// them.
func (b *Broker) secure(ctx context.Context, s *socket, a address) (secured net.Conn, err error) {
	if a.scheme != "amqps" {
		return s, nil
	}
	cfg := b.cfg.TLS.Clone()
	if cfg == nil {
		if cfg, err = tlsOf(a.uri); err != nil {
			return nil, fmt.Errorf("create TLS config from URI: %w", err)
		}
	}
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	if cfg.ServerName == "" {
		cfg.ServerName = a.host
	}
	defer func() { // the configuration may contain the user's functions
		if p := recover(); p != nil {
			err = fmt.Errorf("TLS configuration panicked: %v", p)
		}
	}()
	c := tls.Client(s, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// tlsOf returns the TLS configuration that the parameters of a URL ask for: cacertfile, certfile, keyfile and
// server_name_indication. It reads the files at every dial, so that they can be replaced.
func tlsOf(uri amqp.URI) (*tls.Config, error) {
	cfg := &tls.Config{ServerName: uri.ServerName}
	if uri.CACertFile == "" {
		var err error
		if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
			return nil, fmt.Errorf("load system certificates: %w", err)
		}
	} else {
		pem, err := os.ReadFile(uri.CACertFile)
		if err != nil {
			return nil, fmt.Errorf("read CA certificate: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AppendCertsFromPEM(pem)
	}
	if uri.CertFile == "" || uri.KeyFile == "" {
		return cfg, nil
	}
	own, err := tls.LoadX509KeyPair(uri.CertFile, uri.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("load client certificate: %w", err)
	}
	cfg.Certificates = []tls.Certificate{own}
	return cfg, nil
}
