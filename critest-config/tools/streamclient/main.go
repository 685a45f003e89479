// Command streamclient talks to a CRI runtime's streaming server with client-go's own stack, and
// tells what it found as one line of JSON.
//
//	streamclient exec        [flags] --endpoint unix:///PATH CONTAINER COMMAND [ARG...]
//	streamclient attach      [flags] --endpoint unix:///PATH CONTAINER
//	streamclient execs       [flags] --endpoint unix:///PATH CONTAINER COMMAND [ARG...]
//	streamclient portforward [flags] --endpoint unix:///PATH POD
//	streamclient serve       [flags]
//
// exec and attach run one session; execs runs many and measures them; portforward makes connections
// to the ports of a pod where `streamclient serve` answers. With --url instead of --endpoint, exec,
// attach and portforward skip the RPC and need no id. `streamclient MODE --help` lists the flags.
//
// The exit code is 0 if everything went as it should: a session told an exit code, all codes were
// those expected, all bytes arrived. It is 1 if not, and 2 if it was called wrongly.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
)

// A mode reads its arguments, does its work, and returns what is to be told and whether all was well.
type mode func(arguments []string) (report any, ok bool, err error)

var modes = map[string]mode{
	"exec":        execMode,
	"attach":      attachMode,
	"execs":       execsMode,
	"portforward": portForwardMode,
	"serve":       serveMode,
}

func main() {
	if len(os.Args) < 2 || modes[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: streamclient exec|attach|execs|portforward|serve [flags] ...")
		os.Exit(2)
	}
	report, ok, err := modes[os.Args[1]](os.Args[2:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "streamclient:", err)
		os.Exit(2)
	}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		fmt.Fprintln(os.Stderr, "streamclient:", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}
