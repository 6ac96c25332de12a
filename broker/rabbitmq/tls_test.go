package rabbitmq_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
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

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/seed-416683c9/dispatcher/broker/rabbitmq"
)

// encrypted listens with TLS in front of the broker, for the host name localhost. It returns the port and the
// certificate.
func encrypted(t testing.TB, cfg *tls.Config) (port string, roots *x509.CertPool) {
	t.Helper()
	target := amqpURL(t).Host
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	roots = x509.NewCertPool()
	roots.AddCert(leaf)
	cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
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
			links.Go(func() {
				defer client.Close()
				server, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer server.Close()
				links.Go(func() { _, _ = io.Copy(client, server); _ = client.Close() })
				_, _ = io.Copy(server, client)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); links.Wait() })
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port, roots
}

func TestTLSIsVerified(t *testing.T) {
	t.Parallel()
	port, roots := encrypted(t, &tls.Config{})
	oldPort, oldRoots := encrypted(t, &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10})
	user := amqpURL(t).User.String()
	for name, test := range map[string]struct {
		host string
		tls  *tls.Config
		want string
	}{
		"known authority":        {"localhost:" + port, &tls.Config{RootCAs: roots}, ""},
		"system's authorities":   {"localhost:" + port, nil, "certificate"},
		"other host name":        {"127.0.0.1:" + port, &tls.Config{RootCAs: roots}, "127.0.0.1"},
		"host name of the user":  {"127.0.0.1:" + port, &tls.Config{RootCAs: roots, ServerName: "localhost"}, ""},
		"verification given up":  {"127.0.0.1:" + port, &tls.Config{InsecureSkipVerify: true}, ""},
		"old TLS, old minimum":   {"localhost:" + oldPort, &tls.Config{RootCAs: oldRoots, MinVersion: tls.VersionTLS10}, "version"},
		"listener in the clear":  {amqpURL(t).Host, &tls.Config{RootCAs: roots}, "handshake"},
		"first host then second": {"", &tls.Config{RootCAs: roots}, ""},
	} {
		urls := []string{"amqps://" + user + "@" + test.host + "/"}
		if test.host == "" { // each host's own name is checked
			urls = []string{"amqps://" + user + "@127.0.0.1:" + port + "/", "amqps://" + user + "@localhost:" + port + "/"}
		}
		b := newBroker(t, rabbitmq.Config{URLs: urls, TLS: test.tls})
		for range 4 { // the order is random
			s, err := b.Open(testContext(t))
			switch {
			case err == nil && test.want != "":
				t.Errorf("%s: Open succeeded", name)
			case err != nil && (test.want == "" || !strings.Contains(err.Error(), test.want)):
				t.Errorf("%s: %v", name, err)
			}
			if err == nil {
				_ = s.Close(testContext(t))
			}
		}
	}
}

// Frames are filtered above TLS. The parameters of a URL count if there is no TLS configuration.
func TestTLSFromTheURLAndUnreadableMessagesOverIt(t *testing.T) {
	t.Parallel()
	cfg := &tls.Config{}
	port, _ := encrypted(t, cfg)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cfg.Certificates[0].Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	u := *amqpURL(t)
	u.Scheme, u.Host = "amqps", "127.0.0.1:"+port
	query := url.Values{"cacertfile": {file}}
	u.RawQuery = query.Encode()
	if _, err := newBroker(t, rabbitmq.Config{URLs: []string{u.String()}}).Open(testContext(t)); err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("another host name: %v", err)
	}
	query.Set("server_name_indication", "localhost")
	u.RawQuery = query.Encode()
	s := open(t, newBroker(t, rabbitmq.Config{URLs: []string{u.String()}}))
	q := newQueue(t, s)
	ch := otherClient(t, nil)
	send(t, ch, q, amqp.Publishing{MessageId: "1", Headers: nested(33), Body: make([]byte, 300_000)})
	send(t, ch, q, amqp.Publishing{MessageId: "2", Headers: amqp.Table{"fine": true}})
	got, err := s.TryGet(testContext(t), q, 2)
	if err != nil || len(got) != 2 || got[0].Unreadable == "" || len(got[0].Body) != 300_000 || got[1].Headers["fine"] != true {
		t.Fatalf("%d came, %v", len(got), err)
	}
}

// A function of the TLS configuration runs while the server connects. Its panic must not end the process.
func TestAPanicOfATLSConfigurationIsAnError(t *testing.T) {
	t.Parallel()
	port, roots := encrypted(t, &tls.Config{})
	cfg := &tls.Config{RootCAs: roots, VerifyConnection: func(tls.ConnectionState) error { panic("boom") }}
	b := newBroker(t, rabbitmq.Config{URLs: []string{"amqps://localhost:" + port}, TLS: cfg})
	if _, err := b.Open(testContext(t)); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Error(err)
	}
}
