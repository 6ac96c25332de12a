package systemtest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// authority is a private certificate authority.
type authority struct {
	t     *testing.T
	cert  *x509.Certificate
	key   crypto.Signer
	roots *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, roots: x509.NewCertPool()}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "a private authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotAfter: time.Now().Add(time.Hour),
	}
	a.cert, a.key = a.sign(template, nil)
	a.roots.AddCert(a.cert)
	return a
}

// sign makes a certificate and signs it with by's key. If by is nil, the certificate is self-signed.
func (a *authority) sign(template *x509.Certificate, by *authority) (*x509.Certificate, crypto.Signer) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		a.t.Fatal(err)
	}
	template.NotBefore = time.Now().Add(-2 * time.Hour)
	parent, signer := template, crypto.Signer(key)
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// leaf returns a server and client certificate for localhost that is valid until notAfter.
func (a *authority) leaf(by *authority, notAfter time.Time) tls.Certificate {
	cert, key := a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "leaf"}, DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, NotAfter: notAfter,
	}, by)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// file writes the authority's certificate to a file and returns its path.
func (a *authority) file() string {
	a.t.Helper()
	path := filepath.Join(a.t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// listenTLS accepts TLS connections for a plain address and returns its port.
func listenTLS(t *testing.T, target string, cfg *tls.Config) (port string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	var links sync.WaitGroup
	links.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			links.Go(func() { forward(client, target) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); links.Wait() })
	_, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// forward passes a connection's bytes on after a successful handshake.
func forward(client net.Conn, target string) {
	defer client.Close()
	if client.(*tls.Conn).Handshake() != nil {
		return
	}
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	var back sync.WaitGroup
	defer back.Wait()
	back.Go(func() { _, _ = io.Copy(client, server); _ = client.Close() })
	_, _ = io.Copy(server, client)
	_ = server.Close()
}

func TestRabbitMQ_D13CertificatesAreVerified(t *testing.T) {
	t.Parallel()
	place := newPlace(t)
	ca := newAuthority(t)
	later := time.Now().Add(time.Hour)
	good, expired, selfSigned := ca.leaf(ca, later), ca.leaf(ca, time.Now().Add(-time.Hour)), ca.leaf(nil, later)
	listen := func(cfg *tls.Config) string { return listenTLS(t, place.proxy.Addr(), cfg) }
	port := listen(&tls.Config{Certificates: []tls.Certificate{good}})
	expiredPort := listen(&tls.Config{Certificates: []tls.Certificate{expired}})
	selfSignedPort := listen(&tls.Config{Certificates: []tls.Certificate{selfSigned}})
	mutual := listen(&tls.Config{Certificates: []tls.Certificate{good}, ClientCAs: ca.roots, ClientAuth: tls.RequireAndVerifyClientCert})
	mutual12 := listen(&tls.Config{Certificates: []tls.Certificate{good}, ClientCAs: ca.roots, ClientAuth: tls.RequireAndVerifyClientCert, MaxVersion: tls.VersionTLS12})
	stranger := newAuthority(t)

	for name, c := range map[string]struct {
		scheme, host string
		secure       bool
		tls          *tls.Config
		query        string
		want         []string // nil: connecting succeeds
	}{
		"right authority":                   {scheme: "amqps", host: "localhost:" + port, tls: &tls.Config{RootCAs: ca.roots}},
		"amqp with a configuration is TLS":  {scheme: "amqp", host: "localhost:" + port, tls: &tls.Config{RootCAs: ca.roots}},
		"secure amqp is TLS":                {scheme: "amqp", host: "localhost:" + port, secure: true, tls: &tls.Config{RootCAs: ca.roots}},
		"secure amqp, authority in the URL": {scheme: "amqp", host: "localhost:" + port, secure: true, query: "?cacertfile=" + url.QueryEscape(ca.file())},
		"secure amqp, system's authorities": {scheme: "amqp", host: "localhost:" + port, secure: true, want: []string{"certificate", "localhost:" + port}},
		"amqps, system's authorities":       {scheme: "amqps", host: "localhost:" + port, want: []string{"certificate", "localhost:" + port}},
		"wrong host":                        {scheme: "amqps", host: "127.0.0.1:" + port, tls: &tls.Config{RootCAs: ca.roots}, want: []string{"certificate", "127.0.0.1:" + port}},
		"wrong host, secure amqp":           {scheme: "amqp", host: "127.0.0.1:" + port, secure: true, query: "?cacertfile=" + url.QueryEscape(ca.file()), want: []string{"certificate", "127.0.0.1:" + port}},
		"other authority":                   {scheme: "amqps", host: "localhost:" + port, tls: &tls.Config{RootCAs: stranger.roots}, want: []string{"certificate", "authority"}},
		"self-signed":                       {scheme: "amqps", host: "localhost:" + selfSignedPort, tls: &tls.Config{RootCAs: ca.roots}, want: []string{"certificate", "authority"}},
		"expired":                           {scheme: "amqps", host: "localhost:" + expiredPort, tls: &tls.Config{RootCAs: ca.roots}, want: []string{"certificate", "expired"}},
		// In TLS 1.3, the server verifies the client's certificate after the client's handshake has ended. The client
		// may be writing by then.
		"client certificate":                  {scheme: "amqps", host: "localhost:" + mutual, tls: &tls.Config{RootCAs: ca.roots, Certificates: []tls.Certificate{ca.leaf(ca, later)}}},
		"no client certificate":               {scheme: "amqps", host: "localhost:" + mutual, tls: &tls.Config{RootCAs: ca.roots}, want: []string{"certificate", "localhost:" + mutual}},
		"no client certificate, TLS 1.2":      {scheme: "amqps", host: "localhost:" + mutual12, tls: &tls.Config{RootCAs: ca.roots}, want: []string{"handshake failure", "localhost:" + mutual12}},
		"client certificate of a stranger":    {scheme: "amqps", host: "localhost:" + mutual, tls: &tls.Config{RootCAs: ca.roots, Certificates: []tls.Certificate{stranger.leaf(stranger, later)}}, want: []string{"certificate"}},
		"verification given up by the user":   {scheme: "amqps", host: "127.0.0.1:" + selfSignedPort, tls: &tls.Config{InsecureSkipVerify: true}},
		"TLS to a plain port":                 {scheme: "amqps", host: place.proxy.Addr(), tls: &tls.Config{RootCAs: ca.roots}, want: []string{"TLS", place.proxy.Addr()}},
		"plain to a TLS port":                 {scheme: "amqp", host: "localhost:" + port, want: []string{"localhost:" + port}},
		"host name of the user":               {scheme: "amqps", host: "127.0.0.1:" + port, tls: &tls.Config{RootCAs: ca.roots, ServerName: "localhost"}},
		"the URL cannot give up verification": {scheme: "amqps", host: "127.0.0.1:" + port, query: "?verify=verify_none&insecure=true", want: []string{"unknown parameter"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := &recorder{}
			user := url.UserPassword("guest", "hush")
			if c.want == nil {
				user = place.url.User
			}
			mine := c.tls.Clone()
			within(t, patience, "NewServer", func() {
				server, _, err := dispatcher.NewServer(&dispatcher.ServerConfig{
					AMQPConnectionString: c.scheme + "://" + user.String() + "@" + c.host + place.url.EscapedPath() + c.query,
					TLSConfig:            mine, SecureConnection: c.secure, Exchange: place.name, DefaultRoutingKey: place.name, Logger: log,
					InitQueues: []dispatcher.Queue{{Name: place.name, BindingKeys: []string{place.name}}},
				})
				if c.want != nil {
					says(t, "NewServer", err, c.want...)
				} else if err != nil {
					t.Error(err)
				}
				if err != nil {
					return
				}
				defer server.Close()
				if err := server.Publish(dispatcher.NewTask("f")); err != nil {
					t.Error(err)
				}
			})
			noSecret(t, "log", log.String())
			if mine != nil && (mine.ServerName != c.tls.ServerName || mine.MinVersion != 0) {
				t.Errorf("NewServer changed the user's TLS configuration: host %q", mine.ServerName)
			}
		})
	}
}

// Over TLS, a lost link recovers just as without TLS.
func TestRabbitMQ_TLSComesBackAfterACut(t *testing.T) {
	t.Parallel()
	r := newPlace(t)
	ca := newAuthority(t)
	port := listenTLS(t, r.proxy.Addr(), &tls.Config{Certificates: []tls.Certificate{ca.leaf(ca, time.Now().Add(time.Hour))}})
	r.serve(func(c *dispatcher.ServerConfig) {
		c.AMQPConnectionString = r.through("localhost:" + port)
		c.TLSConfig, c.SecureConnection = &tls.Config{RootCAs: ca.roots}, true
	})
	got := make(chan int, 10)
	r.worker(tasks{"n": fn(func(n int) { got <- n })})
	for i := range 2 {
		r.publish("n", i)
		for n := wait(t, got, "task"); n != i; n = wait(t, got, "task") { // an ack may be lost with the link, so its task is delivered again
			if n > i {
				t.Fatalf("got %d, want %d", n, i)
			}
		}
		r.cut()
		r.back()
	}
	if s := r.server.Stats(); s.Reconnects != 2 {
		t.Errorf("%d reconnects", s.Reconnects)
	}
	if text := r.log.String(); strings.Contains(text, r.url.User.String()) {
		t.Errorf("the log shows credentials: %s", text)
	}
}
