package main

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// replaceParts replaces the parts of a Markdown page that the program generates. A part stands between the comments
// <!-- bench: NAME --> and <!-- bench: end -->.
func replaceParts(page string, parts map[string]string) (string, error) {
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		begin, end := "<!-- bench: "+name+" -->\n", "<!-- bench: end -->\n"
		before, rest, found := strings.Cut(page, begin)
		_, after, ended := strings.Cut(rest, end)
		if !found || !ended {
			return "", fmt.Errorf("the page has no part %q", name)
		}
		page = before + begin + "\n" + strings.TrimSpace(parts[name]) + "\n\n" + end + after
	}
	return page, nil
}

// conditions describes the run: when, on what machine, and with which versions.
func (b *bench) conditions(rounds, tasks int) string {
	model, memory := machine()
	versions := []string{"Go " + strings.TrimPrefix(runtime.Version(), "go"), "RabbitMQ " + b.rabbitVersion}
	if b.redisVersion != "" {
		versions = append(versions, "Redis "+b.redisVersion)
	}
	if b.postgresVersion != "" {
		versions = append(versions, "PostgreSQL "+b.postgresVersion)
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			switch m.Path {
			case "github.com/rabbitmq/amqp091-go", "github.com/streadway/amqp", "github.com/hibiken/asynq", "github.com/riverqueue/river":
				versions = append(versions, m.Path[strings.LastIndex(m.Path[:strings.LastIndex(m.Path, "/")], "/")+1:]+" "+m.Version)
			}
		}
	}
	return fmt.Sprintf("%s, %d rounds of %s tasks, bodies of %d bytes. %d cores (%s), %.0f GiB, shared by the programs, the brokers and everything else. "+
		"Other programs used %s cores (median). Versions: %s.\n",
		time.Now().Format("2 January 2006"), rounds, thousands(float64(tasks)), bodyBytes, runtime.NumCPU(), model, memory,
		fixed(median(b.foreign), 2), strings.Join(versions, ", "))
}

// machine returns the model of the processor and the memory in GiB.
func machine() (string, float64) {
	model, memory := "unknown", none
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	text, _ = os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		if value, is := strings.CutPrefix(line, "MemTotal:"); is {
			memory = float64(number(strings.TrimSuffix(strings.TrimSpace(value), " kB"))) / (1 << 20)
		}
	}
	return model, memory
}
