package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/tools/remotecommand"
)

// told is how many bytes of an output the report repeats.
const told = 64 * 1024

// transfer is what went through a stream.
type transfer struct {
	Bytes  int64  `json:"bytes"`
	Digest string `json:"sha256,omitempty"`
	Text   string `json:"text,omitempty"`
}

// tally is what sources and sinks have in common. A session that was left may still be using it.
type tally struct {
	lock  sync.Mutex
	bytes int64
	hash  hash.Hash
}

func (c *tally) digested(wanted bool) {
	if wanted {
		c.hash = sha256.New()
	}
}

func (c *tally) count(data []byte) {
	c.bytes += int64(len(data))
	if c.hash != nil {
		c.hash.Write(data)
	}
}

func (c *tally) transfer() *transfer {
	c.lock.Lock()
	defer c.lock.Unlock()
	result := &transfer{Bytes: c.bytes}
	if c.hash != nil {
		result.Digest = hex.EncodeToString(c.hash.Sum(nil))
	}
	return result
}

// source is read by client-go as stdin.
type source struct {
	tally
	from io.Reader
}

func (s *source) Read(buffer []byte) (int, error) {
	size, err := s.from.Read(buffer)
	s.lock.Lock()
	defer s.lock.Unlock()
	s.count(buffer[:size])
	return size, err
}

// sink is written to by client-go as stdout or stderr.
type sink struct {
	tally
	to    io.Writer // nil: what comes is told in the report
	rate  float64   // bytes a second at most; 0 is no limit
	stall time.Duration
	first time.Time
	text  bytes.Buffer
}

func newSink(path string, digest bool) (*sink, error) {
	made := &sink{}
	made.digested(digest)
	switch path {
	case "":
	case "-":
		made.to = os.Stderr // our stdout is for the report
	default:
		file, err := os.Create(path)
		if err != nil {
			return nil, err
		}
		made.to = file
	}
	return made, nil
}

func (s *sink) Write(data []byte) (int, error) {
	s.lock.Lock()
	if s.first.IsZero() {
		s.first = time.Now()
	}
	s.count(data)
	if s.to == nil {
		s.text.Write(data[:min(len(data), told-s.text.Len())])
	}
	due := s.first.Add(s.stall)
	if s.rate > 0 {
		due = due.Add(time.Duration(float64(s.bytes) / s.rate * float64(time.Second)))
	}
	s.lock.Unlock()
	if s.stall > 0 || s.rate > 0 {
		time.Sleep(time.Until(due))
	}
	if s.to == nil {
		return len(data), nil
	}
	return s.to.Write(data)
}

func (s *sink) transfer() *transfer {
	result := s.tally.transfer()
	s.lock.Lock()
	defer s.lock.Unlock()
	result.Text = s.text.String()
	return result
}

// sizeList is a flag: the sizes of a terminal, COLUMNSxROWS,...
type sizeList []remotecommand.TerminalSize

func (l *sizeList) String() string { return "" }

// Set reads the flag.
func (l *sizeList) Set(text string) error {
	for _, size := range strings.Split(text, ",") {
		columns, rows, found := strings.Cut(size, "x")
		width, err := strconv.ParseUint(columns, 10, 16)
		height, err2 := strconv.ParseUint(rows, 10, 16)
		if !found || err != nil || err2 != nil {
			return fmt.Errorf("%q is not COLUMNSxROWS", size)
		}
		*l = append(*l, remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)})
	}
	return nil
}

// sizes is the terminal that client-go asks for its size.
type sizes struct {
	first, later sizeList
	every        time.Duration
}

// Next waits for the next size; after the last one for ever, as a terminal that nobody resizes.
func (s *sizes) Next() *remotecommand.TerminalSize {
	if len(s.first) > 0 {
		size := s.first[0]
		s.first = nil
		return &size
	}
	if len(s.later) == 0 {
		select {}
	}
	time.Sleep(s.every)
	size := s.later[0]
	s.later = s.later[1:]
	return &size
}
