package dispatcher

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-416683c9/dispatcher/broker"
)

// Every user's program links the modules that the root links, so a new one must be a decision. River's users had testify
// and goleak in their binaries until v0.43.
func TestRootLinksOnlyTheAgreedModules(t *testing.T) {
	t.Parallel()
	allowed := []string{
		"github.com/seed-416683c9/dispatcher",
		"github.com/cenkalti/backoff/v4",
		"github.com/google/uuid",
		"github.com/rabbitmq/amqp091-go",
		"github.com/sirupsen/logrus",
		"golang.org/x/sys", // needed by logrus
	}
	for _, p := range deps(t, ".") {
		if !slices.ContainsFunc(allowed, func(m string) bool { return p == m || strings.HasPrefix(p, m+"/") }) {
			t.Errorf("the root links %s", p)
		}
	}
}

// Imports point down only. The seam imports only the standard library, an adapter only the seam, and a room only the
// rooms below it.
func TestArrowsPointDown(t *testing.T) {
	t.Parallel()
	const module = "github.com/seed-416683c9/dispatcher"
	// The rooms of the root and what each may import, from the lowest.
	rooms := map[string][]string{
		"taskcontext": {},
		"text":        {},
		"fault":       {"broker"},
		"contain":     {"internal/text"},
		"logs":        {"internal/contain", "internal/text"},
		"record":      {"internal/text", "broker"},
		"wire":        {"internal/record", "internal/fault", "internal/text", "broker"},
		"verdict":     {"internal/record", "internal/fault", "internal/text", "broker"},
		"systemtest":  {}, // tests only
		"link":        {"internal/logs", "internal/contain", "internal/fault", "internal/text", "broker"},
		"engine": {"internal/link", "internal/verdict", "internal/record", "internal/logs", "internal/contain", "internal/fault",
			"internal/text", "broker"},
		"deadletter": {"internal/link", "internal/logs", "internal/contain", "internal/fault", "internal/text", "broker"},
		"publish":    {"internal/link", "internal/logs", "internal/contain", "internal/fault", "internal/text", "broker"},
	}
	var root []string
	allowed := map[string][]string{}
	for room, below := range rooms {
		allowed["internal/"+room] = below
		root = append(root, "internal/"+room)
	}
	root = append(root, "broker", "broker/rabbitmq") // the default broker is the only adapter that the root knows
	allowed[""] = root
	allowed["broker"] = nil
	allowed["broker/memory"] = []string{"broker"}
	allowed["broker/rabbitmq"] = []string{"broker"}
	allowed["broker/brokertest"] = []string{"broker"} // importing an adapter would be a cycle: adapters import it
	allowed["outboxtest"] = append([]string{""}, root...)
	others := map[string][]string{ // besides the standard library
		"broker/rabbitmq":     {"github.com/rabbitmq/amqp091-go"},
		"internal/logs":       {"github.com/sirupsen/logrus", "golang.org/x/sys"},
		"internal/link":       {"github.com/cenkalti/backoff/v4", "github.com/sirupsen/logrus", "golang.org/x/sys"},
		"internal/engine":     {"github.com/cenkalti/backoff/v4", "github.com/google/uuid", "github.com/sirupsen/logrus", "golang.org/x/sys"},
		"internal/deadletter": {"github.com/cenkalti/backoff/v4", "github.com/sirupsen/logrus", "golang.org/x/sys"}, // through internal/link
		"internal/publish":    {"github.com/cenkalti/backoff/v4", "github.com/sirupsen/logrus", "golang.org/x/sys"}, // through internal/link
		"internal/verdict":    {"github.com/cenkalti/backoff/v4"},                                                   // its permanent error is our Permanent
	}
	for pkg, below := range allowed {
		for _, p := range deps(t, "./"+pkg) {
			ours, is := strings.CutPrefix(p, module)
			ours = strings.TrimPrefix(ours, "/")
			switch {
			case is && ours != pkg && !slices.Contains(below, ours):
				t.Errorf("%q imports %q", pkg, ours)
			case !is && pkg != "" && pkg != "outboxtest" && !slices.ContainsFunc(others[pkg], func(m string) bool { return p == m || strings.HasPrefix(p, m+"/") }):
				t.Errorf("%q links %s", pkg, p)
			}
		}
	}
	folders, err := os.ReadDir("internal")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range folders {
		if _, known := rooms[f.Name()]; !known {
			t.Errorf("internal/%s is not in this list", f.Name())
		}
	}
}

// Code that needs reflect stays in few files (ADR 0005).
func TestReflectStaysInItsFiles(t *testing.T) {
	t.Parallel()
	allowed := []string{"reflect_args.go", "internal/wire/bind.go", "internal/wire/infer.go", "internal/wire/exact.go"}
	root, err := filepath.Glob("*.go")
	rooms, err2 := filepath.Glob("internal/*/*.go")
	if err != nil || err2 != nil || len(rooms) == 0 {
		t.Fatal(err, err2)
	}
	for _, file := range append(root, rooms...) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			if path, _ := strconv.Unquote(imp.Path.Value); path == "reflect" && !slices.Contains(allowed, filepath.ToSlash(file)) {
				t.Errorf("%s imports reflect: code that needs it belongs in one of %q", file, allowed)
			}
		}
	}
}

// Go lets a nested module import the internal packages of the root. But users may combine any version of one with any
// version of the other.
func TestNoNestedModuleImportsWhatIsInternal(t *testing.T) {
	t.Parallel()
	mods, err := filepath.Glob("*/go.mod")
	deeper, err2 := filepath.Glob("*/*/go.mod")
	if mods = append(mods, deeper...); err != nil || err2 != nil || len(mods) < 2 {
		t.Fatal(mods, err, err2)
	}
	for _, mod := range mods {
		cmd := exec.Command("go", "list", "-test", "-f", `{{join .Imports "\n"}}`, "./...")
		cmd.Dir = filepath.Dir(mod)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", mod, err)
		}
		for _, p := range strings.Fields(string(out)) {
			if strings.Contains(p, "dispatcher/internal/") {
				t.Errorf("%s imports %s", mod, p)
			}
		}
	}
}

// Programs that use the test kit have their own test libraries, so the kit brings none.
func TestTheTestKitImportsTheStandardLibraryAndOursOnly(t *testing.T) {
	t.Parallel()
	const module = "github.com/seed-416683c9/dispatcher"
	out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, "./dispatchertest").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(out)) {
		if strings.Contains(p, ".") && p != module && !strings.HasPrefix(p, module+"/") {
			t.Errorf("the test kit imports %s", p)
		}
	}
}

// A newcomer runs this program first.
func TestTheProgramInTheREADMERuns(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(readme), "```go\n")
	program, _, _ = strings.Cut(program, "```")
	if n := strings.Count(program, "\n"); n > 30 {
		t.Errorf("the program has %d lines", n)
	}
	dir := t.TempDir()
	file, overlay := filepath.Join(dir, "main.go"), filepath.Join(dir, "overlay.json")
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(here, "examples", "readme", "main.go"): file}})
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{file: []byte(program), overlay: replace} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "run", "-overlay", overlay, "./examples/readme")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if out, err := cmd.Output(); err != nil || string(out) != "2 to ann@example.org\n" {
		t.Errorf("it printed %q, %v\n%s", out, err, errOut.String())
	}
}

// deps returns the packages that pkg links, except those of the standard library.
func deps(t *testing.T, pkg string) []string {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", pkg)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, errOut.String())
	}
	return strings.Fields(string(out))
}

// River lost a field of its configuration because it copied field by field. This test sets every field, and each must
// survive.
func TestDefaultsKeepEveryFieldThatIsSet(t *testing.T) {
	t.Parallel()
	var server ServerConfig
	setAll(t, reflect.ValueOf(&server).Elem())
	server.Logger, server.TLSConfig, server.Broker, server.Outbox = newLogger(false), new(tls.Config), struct{ broker.Broker }{}, struct{ Outbox }{}
	if got := server.withDefaults(); !reflect.DeepEqual(got, server) {
		t.Errorf("got  %+v\nwant %+v", got, server)
	}
	var worker WorkerConfig
	setAll(t, reflect.ValueOf(&worker).Elem())
	got := worker.withDefaults()
	if !reflect.DeepEqual(got, worker) {
		t.Errorf("got  %+v\nwant %+v", got, worker)
	}
	if n := len((&WorkerConfig{Middleware: make([]Middleware, 2)}).withDefaults().Middleware); n != 2 {
		t.Errorf("%d of 2 middlewares are kept", n)
	}
	hooked := ServerConfig{Broker: server.Broker, Hooks: Hooks{Started: func(StartEvent) {}}}
	if hooked.withDefaults().Hooks.Started == nil {
		t.Error("hooks are lost")
	}
	policy := reflect.New(reflect.TypeFor[RetryPolicy]()).Elem()
	setAll(t, policy)
	if got := policy.Addr().Interface().(*RetryPolicy).withDefaults(); !reflect.DeepEqual(RetryPolicy(*got), policy.Interface()) {
		t.Errorf("got  %+v\nwant %+v", *got, policy)
	}
	if got.BindingKeys[0] = "changed"; worker.BindingKeys[0] != "x" {
		t.Error("the copy shares its binding keys with the caller")
	}
}

// setAll sets each field to a value that is not zero. It leaves out interfaces, structs and foreign pointers.
func setAll(t *testing.T, v reflect.Value) {
	for i := range v.NumField() {
		f := v.Field(i)
		switch f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Int, reflect.Int64:
			f.SetInt(7)
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
			switch f.Index(0).Kind() {
			case reflect.Struct:
				setAll(t, f.Index(0))
			case reflect.Func:
				f.SetZero() // functions cannot be compared; the caller tests them
			default:
				f.Index(0).SetString("x")
			}
		case reflect.Pointer:
			if f.Type().Elem().PkgPath() == v.Type().PkgPath() { // ours
				f.Set(reflect.New(f.Type().Elem()))
				setAll(t, f.Elem())
			}
		case reflect.Float64:
			f.SetFloat(0.5)
		case reflect.Interface, reflect.Struct, reflect.Func: // the caller sets or tests these
		default:
			t.Fatalf("field %s: teach this test its kind", v.Type().Field(i).Name)
		}
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	s := (&ServerConfig{}).withDefaults()
	if s.PublishTimeout != 30*time.Second || s.ShutdownTimeout != 30*time.Second || s.MaxBodyBytes != 1<<20 || s.Logger == nil {
		t.Errorf("server %+v", s)
	}
	for in, want := range map[int]int{0: 3, 5: 5, -1: 0} {
		if w := (&WorkerConfig{MaxAbandoned: in}).withDefaults(); w.Limit != 3 || w.MaxAbandoned != want {
			t.Errorf("MaxAbandoned %d: %+v", in, w)
		}
	}
}

// Programs written for gofort/dispatcher set these fields, with these types. They may write Queue and TaskArgument
// without field names.
func TestTheTypesOfGofortDispatcherAreKept(t *testing.T) {
	t.Parallel()
	_ = ServerConfig{AMQPConnectionString: "", ReconnectionRetriesForever: true, ReconnectionRetries: 1, ReconnectionIntervalSeconds: int64(1),
		TLSConfig: nil, SecureConnection: false, DebugMode: true, InitQueues: []Queue{{"q", []string{"k"}}}, Exchange: "e", DefaultRoutingKey: "k", Logger: nil}
	_ = Task{UUID: "u", Name: "n", RoutingKey: "k", Args: []TaskArgument{{"string", "x"}}, Headers: map[string]interface{}{}}
	_ = TaskConfig{TimeoutSeconds: int64(1), Function: nil, TaskUUIDAsFirstArg: true}
	_ = WorkerConfig{Limit: 1, Queue: "q", BindingKeys: []string{"k"}, Name: "w"}
	var (
		_ func(*ServerConfig) (*Server, chan struct{}, error)                  = NewServer
		_ func(*Server, *Task) error                                           = (*Server).Publish
		_ func(*Server, *WorkerConfig, map[string]TaskConfig) (*Worker, error) = (*Server).NewWorker
		_ func(*Server, string) (*Worker, error)                               = (*Server).GetWorkerByName
		_ func(*Server)                                                        = (*Server).Close
		_ func(*Worker, *Server) error                                         = (*Worker).Start
		_ func(*Worker)                                                        = (*Worker).Close
		_ interface {
			Info(...interface{})
			Infof(string, ...interface{})
			Debug(...interface{})
			Debugf(string, ...interface{})
			Error(...interface{})
			Errorf(string, ...interface{})
		} = Log(nil)
	)
}
