package systemtest_test

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/seed-416683c9/dispatcher"
)

// drainTime is how long due tasks may take after a cluster is whole again. It is not a speed limit.
const drainTime = time.Minute

// figures counts the outcomes of a load's tasks.
type figures struct {
	tasks, confirmed, boxed, notSent, unavailable, rejected, unconfirmed, nacked int // by the outcome of the publish
	lost, buried, dead, replayed, early, lies, twice, stalled                    int
}

// audit stops the load and checks the fate of every task. Confirmed tasks and tasks kept in the outbox have run. Tasks
// that were not sent or were refused have not. No task was early. audit prints the figures on one line.
func (l *load) audit() {
	l.t.Helper()
	l.stop()
	var n figures
	began := time.Now()
	l.drain()
	took := time.Since(began)
	if n.stalled = l.owed(); n.stalled > 0 {
		l.t.Errorf("%d owed tasks had not run %v after the last publish; these queues are not empty:\n%s", n.stalled, drainTime, l.where())
		l.drain() // to tell late tasks from lost ones
	}
	n.replayed = l.replayed
	dead := l.letters(l.name)
	for who := range l.servers {
		l.leave(who)
	}
	l.judge(&n, dead)
	l.t.Logf("FIGURES %s: %d tasks: %d confirmed, %d kept in the outbox, %d not sent (%d since the queue was away), %d rejected, %d unconfirmed (%d nacked). "+
		"%d lost, %d buried in the outbox, %d dead letters, %d undeliverable and replayed, %d early, %d ran although reported as not sent or rejected, %d ran twice, %d stalled. "+
		"Longest publish %.2f s. Latest delay %.2f s, latest retry %.2f s. Drained in %.1f s. Longest silences: %s",
		l.t.Name(), n.tasks, n.confirmed, n.boxed, n.notSent, n.unavailable, n.rejected, n.unconfirmed, n.nacked,
		n.lost, n.buried, n.dead, n.replayed, n.early, n.lies, n.twice, n.stalled,
		l.slow.Seconds(), l.late["later"].Seconds(), l.late["flaky"].Seconds(), took.Seconds(), strings.Join(l.spans, "; "))
}

// judge fills in n, and fails the test for each task whose fate breaks a promise.
func (l *load) judge(n *figures, dead map[string]string) {
	l.t.Helper()
	buried := l.buried()
	l.mu.Lock()
	defer l.mu.Unlock()
	complaints := map[string]int{}
	complain := func(kind, format string, args ...any) {
		l.t.Helper()
		if complaints[kind]++; complaints[kind] <= 3 { // the first few are enough
			l.t.Errorf(kind+": "+format, args...)
		}
	}
	for i, f := range l.fates {
		id, is := l.id(i), func(err error) bool { return errors.Is(f.err, err) }
		owed := false
		switch {
		case !f.told:
			complain("no answer", "%s %d: its publish has not returned", f.name, i)
		case f.err == nil:
			n.confirmed++
			owed = true
		case is(dispatcher.ErrInOutbox):
			n.boxed++
			owed = true
		case is(dispatcher.ErrRejected):
			n.rejected++
			complain("rejected for an absence", "%s %d: %v", f.name, i, f.err)
		case is(dispatcher.ErrUnavailable):
			n.unavailable++
			n.notSent++
		case is(dispatcher.ErrNotSent):
			n.notSent++
		case is(dispatcher.ErrNacked):
			n.nacked++
			n.unconfirmed++
		default:
			n.unconfirmed++
		}
		switch reason, letter := dead[id]; {
		case owed && f.done:
		case owed && buried[id] != "":
			n.buried++
			complain("buried in the outbox", "%s %d: %s", f.name, i, buried[id])
		case owed && letter:
			n.dead++
			complain("dead letter", "%s %d: %s", f.name, i, reason)
		case owed:
			n.lost++
			complain("lost", "%s %d: the publish reported %v; %d runs", f.name, i, f.err, f.runs)
		case f.runs > 0 && (is(dispatcher.ErrRejected) || is(dispatcher.ErrNotSent)):
			n.lies++
			complain("a lie", "%s %d ran %d times, and its publish reported %v", f.name, i, f.runs, f.err)
		}
		if f.runs > 1 && f.name != "flaky" {
			n.twice++
		}
	}
	n.tasks, n.early = len(l.fates), len(l.early)
	for _, text := range l.early {
		complain("early", "%s", text)
	}
	if n.confirmed < 100 {
		l.t.Errorf("only %d tasks were confirmed, too few to test anything", n.confirmed)
	}
}

// drain waits at most drainTime until every owed task has run. Meanwhile it replays undeliverable tasks, as
// docs/rabbitmq.md tells an operator to do after a classic queue was away.
func (l *load) drain() {
	l.t.Helper()
	undeliverable := l.servers[sender].DeadLetters(dispatcher.Undeliverable)
	for deadline := time.Now().Add(drainTime); l.owed() > 0 && time.Now().Before(deadline); {
		n, err := undeliverable.ReplayAll(l.t.Context())
		if err != nil {
			l.t.Errorf("%d replayed: %v", n, err)
		}
		if l.replayed += n; n > 0 && l.kind == "quorum" {
			l.t.Errorf("%d delayed tasks of a quorum queue were undeliverable", n)
		}
		pause(l.t.Context(), time.Second/2)
	}
}

// owed counts the tasks that must run and have not.
func (l *load) owed() (n int) {
	buried := l.buried()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, f := range l.fates {
		if f.told && !f.done && (f.err == nil || errors.Is(f.err, dispatcher.ErrInOutbox)) && buried[l.id(i)] == "" {
			n++
		}
	}
	return n
}

// id returns the uuid of a task.
func (l *load) id(i int) string { return fmt.Sprintf("%s-%d", l.name, i) }

// buried returns the reasons of the outbox's dead entries, by uuid.
func (l *load) buried() map[string]string {
	all := map[string]string{}
	for _, e := range l.outbox.Dead() {
		all[e.UUID] = e.Refused
	}
	return all
}

// letters returns the reasons of a queue's dead letters, by uuid.
func (l *load) letters(queue string) map[string]string {
	l.t.Helper()
	all := map[string]string{}
	letters, err := l.servers[sender].DeadLetters(queue).List(l.t.Context(), dispatcher.DeadLetterFilter{}, dispatcher.Page{Limit: 1000})
	if err != nil {
		l.t.Error(err)
	}
	for _, letter := range letters {
		all[letter.UUID] = letter.Reason + " " + letter.Error
	}
	return all
}

// where lists the queues that are not empty. It asks every node, because the node that leads a queue knows its number
// of messages.
func (l *load) where() (all string) {
	for _, m := range l.c.members {
		all += m.eval(`[case rabbit_amqqueue:info(Q, [messages]) of
			[{messages, N}] when is_integer(N), N > 0 -> io:format("~s ~b ready or handed out~n", [element(4, amqqueue:get_name(Q)), N]); _ -> ok
		end || Q <- rabbit_amqqueue:list()],
		[case catch rabbit_amqqueue:info(Q, [messages_dlx]) of
			[{messages_dlx, N}] when is_integer(N), N > 0 -> io:format("~s ~b to be dead-lettered~n", [element(4, amqqueue:get_name(Q)), N]); _ -> ok
		end || Q <- rabbit_amqqueue:list()].`)
	}
	return all
}
