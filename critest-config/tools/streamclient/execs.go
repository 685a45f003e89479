package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shown is how many of the wrong ones the report describes.
const shown = 20

// wrong is an exec that did not end as expected.
type wrong struct {
	Number   int    `json:"number"`
	Expected string `json:"expected"`
	Got      string `json:"got"`
}

// execsReport tells of many execs; the milliseconds stand in the order in which they were begun.
type execsReport struct {
	Count   int       `json:"count"`
	Seconds float64   `json:"seconds"`
	Wrong   int       `json:"wrong"`
	First   []wrong   `json:"first_wrong"`
	URL     []float64 `json:"url_ms"`
	Byte    []float64 `json:"first_ms"`
	Exit    []float64 `json:"exit_ms"`
}

func execsMode(arguments []string) (any, bool, error) {
	var t target
	set := flag.NewFlagSet("execs", flag.ContinueOnError)
	t.flags(set)
	count := set.Int("count", 100, "execs")
	parallel := set.Int("parallel", 1, "of them at the same time")
	codes := set.String("codes", "0", "exit codes that are expected, in turns: CODE,... ; {code} in ARG stands for it")
	output := set.String("output", "", "what stdout must be; {number} in it and in ARG is the number of the exec")
	if err := set.Parse(arguments); err != nil {
		return nil, false, err
	}
	if err := t.check(); err != nil {
		return nil, false, err
	}
	if t.endpoint == "" || set.NArg() < 2 || *parallel < 1 {
		return nil, false, errors.New("execs: needs --endpoint, a container and a command, and --parallel of at least 1")
	}
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	client, err := t.connect(ctx)
	if err != nil {
		return nil, false, err
	}
	container, command, expected := set.Arg(0), set.Args()[1:], strings.Split(*codes, ",")

	report := &execsReport{
		Count: *count, First: []wrong{},
		URL: make([]float64, *count), Byte: make([]float64, *count), Exit: make([]float64, *count),
	}
	var lock sync.Mutex
	one := func(number int) {
		code := expected[number%len(expected)]
		fill := strings.NewReplacer("{code}", code, "{number}", strconv.Itoa(number)).Replace
		request := &runtimeapi.ExecRequest{ContainerId: container, Stdout: true, Stderr: true}
		for _, word := range command {
			request.Cmd = append(request.Cmd, fill(word))
		}
		ask := func(ctx context.Context) (string, error) {
			answer, err := client.Exec(ctx, request)
			return answer.GetUrl(), err
		}
		stdout, stderr := &sink{}, &sink{}
		result := converse(ctx, &t, ask, remotecommand.StreamOptions{Stdout: stdout, Stderr: stderr})
		want, got := "code "+code, "error "+result.Error
		if result.ExitCode != nil {
			got = fmt.Sprintf("code %d", *result.ExitCode)
		}
		if *output != "" {
			want += fmt.Sprintf(", %q", fill(*output))
			got += fmt.Sprintf(", %q", stdout.transfer().Text)
		}
		lock.Lock()
		defer lock.Unlock()
		report.URL[number], report.Byte[number], report.Exit[number] = result.URL, result.First, result.Exit
		if want != got {
			report.Wrong++
			if len(report.First) < shown {
				report.First = append(report.First, wrong{number, want, got + " " + stderr.transfer().Text})
			}
		}
	}
	begin := time.Now()
	inParallel(*count, *parallel, one)
	report.Seconds = time.Since(begin).Seconds()
	return report, report.Wrong == 0, nil
}

// inParallel calls work with the numbers from 0 below count, so many at a time.
func inParallel(count, parallel int, work func(number int)) {
	numbers := make(chan int)
	var workers sync.WaitGroup
	for range parallel {
		workers.Go(func() {
			for number := range numbers {
				work(number)
			}
		})
	}
	for number := range count {
		numbers <- number
	}
	close(numbers)
	workers.Wait()
}
