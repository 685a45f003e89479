package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// chunk is how much is written at a time, as io.Copy does in kubectl.
const chunk = 32 * 1024

// forwardReport tells of the connections of one port-forward session.
type forwardReport struct {
	Seconds  float64  `json:"seconds"` // from the first connection to the end of the last
	Bytes    int64    `json:"bytes"`   // of all connections, in the direction that was asked for
	Rate     float64  `json:"mb_per_second"`
	Failures []string `json:"failures"`
	Error    string   `json:"error,omitempty"` // there was no session
}

// exchange does one connection's work with a service of `serve` and returns the bytes that it was about.
type exchange func(stream httpstream.Stream, number int, size int64) (int64, error)

var exchanges = map[string]exchange{
	"echo": echoed, "count": counted, "discard": uploaded, "source": downloaded, "text": said,
}

func portForwardMode(arguments []string) (any, bool, error) {
	var t target
	set := flag.NewFlagSet("portforward", flag.ContinueOnError)
	t.flags(set)
	port := set.Int("port", 0, "the port of the pod")
	service := set.String("service", "echo", "what answers there: echo, count, discard or source of `streamclient serve`; text: fail with what comes")
	connections := set.Int("connections", 1, "connections in all")
	parallel := set.Int("parallel", 0, "of them at the same time; 0: all")
	size := set.Int64("bytes", 1<<20, "bytes for each")
	if err := set.Parse(arguments); err != nil {
		return nil, false, err
	}
	if err := t.check(); err != nil {
		return nil, false, err
	}
	work := exchanges[*service]
	if work == nil || *port < 1 || *connections < 1 {
		return nil, false, errors.New("portforward: needs --port, and a --service and a number of --connections that exist")
	}
	if *parallel == 0 {
		*parallel = *connections
	}
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	client, err := t.connect(ctx)
	if err != nil {
		return nil, false, err
	}
	address := t.url
	if client != nil {
		answer, err := client.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: set.Arg(0)})
		if err != nil {
			return &forwardReport{Error: err.Error()}, false, nil
		}
		address = answer.GetUrl()
	}
	dialer, err := t.dialer(address)
	if err != nil {
		return nil, false, err
	}
	connection, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return &forwardReport{Error: err.Error()}, false, nil
	}
	defer connection.Close()
	go func() { // the streams know nothing of a context
		<-ctx.Done()
		connection.Close()
	}()

	results := make([]result, *connections)
	begin := time.Now()
	inParallel(*connections, *parallel, func(number int) {
		results[number].bytes, results[number].err = forwarded(connection, *port, number, *size, work)
	})
	report := &forwardReport{Seconds: time.Since(begin).Seconds(), Failures: []string{}}
	for _, each := range results {
		report.Bytes += each.bytes
		if each.err != nil && len(report.Failures) < shown {
			report.Failures = append(report.Failures, each.err.Error())
		}
	}
	report.Rate = float64(report.Bytes) / 1e6 / report.Seconds
	return report, len(report.Failures) == 0, nil
}

type result struct {
	bytes int64
	err   error
}

// forwarded makes one connection: a stream for errors and one for data, both with the same request id.
func forwarded(connection httpstream.Connection, port, number int, size int64, work exchange) (int64, error) {
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, strconv.Itoa(number))
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	failures, err := connection.CreateStream(headers)
	if err != nil {
		return 0, fmt.Errorf("creating the error stream: %w", err)
	}
	defer connection.RemoveStreams(failures)
	failures.Close() // nothing is written to it
	failed := make(chan error, 1)
	go func() {
		message, err := io.ReadAll(failures)
		if len(message) > 0 {
			err = fmt.Errorf("the error stream says: %s", message)
		}
		failed <- err
	}()
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := connection.CreateStream(headers)
	if err != nil {
		return 0, fmt.Errorf("creating the data stream: %w", err)
	}
	defer connection.RemoveStreams(data)
	bytes, err := work(data, number, size)
	data.Reset()
	return bytes, errors.Join(<-failed, err)
}

// echoed sends, ends its side, and wants the same back.
func echoed(stream httpstream.Stream, number int, size int64) (int64, error) {
	random := rand.NewChaCha8([32]byte{byte(number), byte(number >> 8)})
	sent, received := sha256.New(), sha256.New()
	written := make(chan error, 1)
	go func() { written <- send(stream, io.TeeReader(io.LimitReader(random, size), sent), true) }()
	bytes, err := io.Copy(received, stream)
	switch {
	case err != nil:
		return bytes, err
	case bytes != size:
		return bytes, fmt.Errorf("%d of %d bytes came back", bytes, size)
	}
	if err := <-written; err != nil {
		return bytes, err
	}
	return bytes, compare(sent, received)
}

// counted sends, ends its side, and wants to be told how much has arrived.
func counted(stream httpstream.Stream, _ int, size int64) (int64, error) {
	written := make(chan error, 1)
	go func() { written <- send(stream, io.LimitReader(zeros{}, size), true) }()
	return size, errors.Join(confirm(stream, size), <-written)
}

// uploaded announces how much it sends and keeps its side open: not every runtime passes on that it has ended.
func uploaded(stream httpstream.Stream, _ int, size int64) (int64, error) {
	announced := strings.NewReader(strconv.FormatInt(size, 10) + "\n")
	written := make(chan error, 1)
	go func() { written <- send(stream, io.MultiReader(announced, io.LimitReader(zeros{}, size)), false) }()
	return size, errors.Join(confirm(stream, size), <-written)
}

// confirm waits for the server to say how much has arrived.
func confirm(stream httpstream.Stream, size int64) error {
	answer, err := io.ReadAll(stream)
	if err == nil && string(answer) != strconv.FormatInt(size, 10) {
		err = fmt.Errorf("sent %d bytes, the server counted %q", size, answer)
	}
	return err
}

// downloaded orders so many bytes, and counts.
func downloaded(stream httpstream.Stream, _ int, size int64) (int64, error) {
	if err := send(stream, strings.NewReader(strconv.FormatInt(size, 10)+"\n"), false); err != nil {
		return 0, err
	}
	bytes, err := io.CopyBuffer(counter{}, stream, make([]byte, chunk))
	if err == nil && bytes != size {
		err = fmt.Errorf("%d of %d bytes came", bytes, size)
	}
	return bytes, err
}

// said ends its side at once and fails with what the server says, for servers that are not ours.
func said(stream httpstream.Stream, _ int, _ int64) (int64, error) {
	if err := stream.Close(); err != nil {
		return 0, err
	}
	var text bytes.Buffer
	size, err := io.Copy(&text, io.LimitReader(stream, told))
	if err == nil && size > 0 {
		err = fmt.Errorf("the server says: %q", text.String())
	}
	return size, err
}

// send copies all to a stream, and ends our side of it if that is the end.
func send(stream httpstream.Stream, from io.Reader, end bool) error {
	if _, err := io.CopyBuffer(onlyWriter{stream}, from, make([]byte, chunk)); err != nil || !end {
		return err
	}
	return stream.Close()
}

func compare(sent, received hash.Hash) error {
	if !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
		return errors.New("other bytes came back than were sent")
	}
	return nil
}

// onlyWriter hides whatever else a stream can do, so that its writes have the size of a chunk.
type onlyWriter struct{ io.Writer }

// counter takes everything.
type counter struct{}

func (counter) Write(data []byte) (int, error) { return len(data), nil }

// zeros never ends.
type zeros struct{}

func (zeros) Read(buffer []byte) (int, error) {
	clear(buffer)
	return len(buffer), nil
}
