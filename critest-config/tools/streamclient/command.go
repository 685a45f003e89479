package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	clientexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// outcome is how a session ended. Times are milliseconds since the call that asked for its URL.
type outcome struct {
	ExitCode *int      `json:"exit_code"`
	Error    string    `json:"error,omitempty"`
	Detached bool      `json:"detached,omitempty"` // --timeout was over before the command
	URL      float64   `json:"url_ms"`
	First    float64   `json:"first_ms"` // the first byte of output; 0 if there was none
	Exit     float64   `json:"exit_ms"`
	Stdin    *transfer `json:"stdin,omitempty"`
	Stdout   *transfer `json:"stdout,omitempty"`
	Stderr   *transfer `json:"stderr,omitempty"`
}

func (o *outcome) ended(err error) {
	var exit clientexec.CodeExitError
	switch {
	case err == nil:
		o.ExitCode = new(int)
	case errors.As(err, &exit):
		o.ExitCode = &exit.Code
	case errors.Is(err, context.DeadlineExceeded):
		o.Detached = true
		o.Error = err.Error()
	default:
		o.Error = err.Error()
	}
}

// asking gets the URL of a session from the endpoint.
type asking func(ctx context.Context) (url string, err error)

// converse runs one session and measures it.
func converse(ctx context.Context, t *target, ask asking, options remotecommand.StreamOptions) *outcome {
	result := &outcome{}
	begin := time.Now()
	url, err := ask(ctx)
	result.URL = milliseconds(time.Since(begin))
	if err != nil {
		result.ended(err)
		return result
	}
	executor, err := t.executor(url)
	if err == nil {
		err = executor.StreamWithContext(ctx, options)
	}
	result.Exit = milliseconds(time.Since(begin))
	result.ended(err)
	for _, writer := range []io.Writer{options.Stdout, options.Stderr} {
		if output, ours := writer.(*sink); ours && !output.first.IsZero() {
			after := milliseconds(output.first.Sub(begin))
			if result.First == 0 || after < result.First {
				result.First = after
			}
		}
	}
	return result
}

// streams are the flags that say which streams a session has, and where they go.
type streams struct {
	stdin, stdout, stderr string
	stdinBytes            int64
	digest                bool
	rate                  float64
	stall                 time.Duration
	tty                   bool
	sizes                 sizes
}

func (s *streams) flags(set *flag.FlagSet) {
	set.StringVar(&s.stdin, "stdin", "", "a file to send as stdin, - for our own; none if not given")
	set.Int64Var(&s.stdinBytes, "stdin-bytes", 0, "end stdin after so many bytes; 0: at the end of the file")
	set.StringVar(&s.stdout, "stdout", "", "a file for stdout, - for stderr of ours; if not given, it is told in the report")
	set.StringVar(&s.stderr, "stderr", "", "likewise for stderr; `none` asks for no such stream")
	set.BoolVar(&s.digest, "digest", false, "tell SHA-256 of the streams")
	set.Float64Var(&s.rate, "rate", 0, "take at most so many MB of stdout a second; 0: as fast as they come")
	set.DurationVar(&s.stall, "stall", 0, "take nothing for this time when stdout begins")
	set.BoolVar(&s.tty, "tty", false, "with a terminal")
	set.Var(&s.sizes.first, "size", "the terminal's size, COLUMNSxROWS")
	set.Var(&s.sizes.later, "later", "sizes that it takes afterwards: COLUMNSxROWS,...")
	set.DurationVar(&s.sizes.every, "every", 300*time.Millisecond, "the time between these")
}

// open returns the options for client-go; done fills in the report when the session is over.
func (s *streams) open() (options remotecommand.StreamOptions, done func(*outcome), err error) {
	var input *source
	var output, errorOutput *sink
	if s.stdin != "" {
		if input, err = newSource(s.stdin, s.stdinBytes, s.digest); err != nil {
			return options, nil, err
		}
		options.Stdin = input
	}
	if output, err = newSink(s.stdout, s.digest); err != nil {
		return options, nil, err
	}
	output.rate, output.stall = s.rate*1e6, s.stall
	options.Stdout = output
	if !s.tty && s.stderr != "none" {
		if errorOutput, err = newSink(s.stderr, s.digest); err != nil {
			return options, nil, err
		}
		options.Stderr = errorOutput
	}
	if options.Tty = s.tty; s.tty && len(s.sizes.first) > 0 {
		options.TerminalSizeQueue = &s.sizes
	}
	return options, func(result *outcome) {
		if input != nil {
			result.Stdin = input.transfer()
		}
		result.Stdout = output.transfer()
		if errorOutput != nil {
			result.Stderr = errorOutput.transfer()
		}
	}, nil
}

func execMode(arguments []string) (any, bool, error) {
	return single("exec", arguments, func(client runtimeapi.RuntimeServiceClient, s *streams, words []string) asking {
		return func(ctx context.Context) (string, error) {
			answer, err := client.Exec(ctx, &runtimeapi.ExecRequest{
				ContainerId: words[0],
				Cmd:         words[1:],
				Tty:         s.tty,
				Stdin:       s.stdin != "",
				Stdout:      true,
				Stderr:      !s.tty && s.stderr != "none",
			})
			return answer.GetUrl(), err
		}
	})
}

func attachMode(arguments []string) (any, bool, error) {
	return single("attach", arguments, func(client runtimeapi.RuntimeServiceClient, s *streams, words []string) asking {
		return func(ctx context.Context) (string, error) {
			answer, err := client.Attach(ctx, &runtimeapi.AttachRequest{
				ContainerId: words[0],
				Tty:         s.tty,
				Stdin:       s.stdin != "",
				Stdout:      true,
				Stderr:      !s.tty && s.stderr != "none",
			})
			return answer.GetUrl(), err
		}
	})
}

// single runs one session; prepare makes of the words on the command line the call that asks for its URL.
func single(
	name string, arguments []string, prepare func(runtimeapi.RuntimeServiceClient, *streams, []string) asking,
) (any, bool, error) {
	var t target
	var s streams
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	t.flags(set)
	s.flags(set)
	if err := set.Parse(arguments); err != nil {
		return nil, false, err
	}
	if err := t.check(); err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	client, err := t.connect(ctx)
	if err != nil {
		return nil, false, err
	}
	ask := func(context.Context) (string, error) { return t.url, nil }
	if client != nil {
		if set.NArg() < 1 {
			return nil, false, fmt.Errorf("%s: which container?", name)
		}
		ask = prepare(client, &s, set.Args())
	}
	options, done, err := s.open()
	if err != nil {
		return nil, false, err
	}
	result := converse(ctx, &t, ask, options)
	done(result)
	return result, result.ExitCode != nil, nil
}

func milliseconds(duration time.Duration) float64 {
	return float64(duration.Microseconds()) / 1e3
}

// newSource opens a file to be sent.
func newSource(path string, limit int64, digest bool) (*source, error) {
	file := os.Stdin
	if path != "-" {
		var err error
		if file, err = os.Open(path); err != nil {
			return nil, err
		}
	}
	made := &source{from: file}
	if limit > 0 {
		made.from = io.LimitReader(file, limit)
	}
	made.digested(digest)
	return made, nil
}
