package logs

import (
	"log/slog"
	"time"
)

// Drain calls stop and logs the begin and the end of a shutdown, with the number of running calls and the time it took.
// again means that the shutdown is already under way or over. said is as in Brief.
func Drain(log *slog.Logger, again bool, running int, stop func() error, said ...string) error {
	began := time.Now()
	if !again {
		log.Info("shutdown begins", "running", running)
	}
	err := stop()
	switch took := Rounded(time.Since(began)); {
	case err != nil:
		log.Error("shutdown is incomplete", "took", took, "err", Brief(err, said...))
	case !again:
		log.Info("shutdown ended", "took", took)
	}
	return err
}
